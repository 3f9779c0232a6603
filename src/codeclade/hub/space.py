"""The Gradio Space as a repository: the app, the package beside it, and which pipeline it shows.

The package's own source travels with the app, so a Space runs exactly the version that was pushed.
"""

from pathlib import Path

import yaml
from huggingface_hub import HfApi

import codeclade

from .push import Published, check_repo_id, clear_errors, commit

PACKAGE = Path(codeclade.__file__).parent
APP_SUFFIXES = (".py", ".md", ".txt", ".css")


def space_folder() -> Path:
    """Where the app is: inside an installed package, or in the top folder of a checkout.

    Raises:
        OSError: in neither.
    """
    for folder in (PACKAGE / "spaces", PACKAGE.parents[1] / "spaces"):
        if (folder / "app.py").is_file():
            return folder
    raise OSError(f"the app is missing: {PACKAGE / 'spaces'} must hold app.py.")


def space_files(
    space_id: str, repo_id: str | None, private: bool = False
) -> dict[str, Path | bytes]:
    """Files of a Space that shows the pipeline `repo_id`, or the bundled one."""
    check_repo_id(space_id)
    folder = space_folder()
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in APP_SUFFIXES and "__pycache__" not in path.parts
    }
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE)
        bundled = name.parts[0] == "bundled_pipeline"
        if name.parts[0] == "spaces" or (bundled and repo_id):
            continue
        if path.is_file() and (bundled or path.suffix in (".py", ".json")):
            files[f"codeclade/{name.as_posix()}"] = path
    _, front, text = (folder / "README.md").read_text().split("---", 2)
    metadata = yaml.safe_load(front) | {"title": space_id.split("/")[-1]}
    if repo_id:
        metadata["models"] = [repo_id]
        if not private:  # a preload has no token
            metadata["preload_from_hub"] = [repo_id]
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    files["README.md"] = f"---\n{front}---{text}".encode()
    return files


def push_space(
    space_id: str, repo_id: str | None, private: bool = False, token: str | None = None
) -> Published:
    """Create or update a Space; it shows the pipeline `repo_id`, or the bundled one.

    A private pipeline needs the secret HF_TOKEN in the Space's settings.

    Raises:
        ValueError, ConnectionError: as `push`.
    """
    api, files = HfApi(token=token), space_files(space_id, repo_id, private)
    with clear_errors(space_id, api):
        api.create_repo(
            space_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
        )
        info = api.space_info(space_id)
        there = {sibling.rfilename for sibling in info.siblings}
        if "app.py" in there and "codeclade/__init__.py" not in there:
            raise ValueError(f"{space_id} holds another app; choose another name for --space.")
        gone = [name for name in there - set(files) if name.endswith(".py")]
        message = "Upload with codeclade"
        done = commit(api, space_id, "space", files, sorted(gone), message, parent=info.sha)
        if repo_id:
            api.add_space_variable(space_id, "CODECLADE_PIPELINE", repo_id)
    return done
