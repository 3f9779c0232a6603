"""The Gradio Space as a repository: app.py, README, requirements, and the package beside them.

The package's own source, with the app in codeclade/demo, travels along, so a Space runs exactly the
version that was pushed. The front door (app.py, README.md and requirements.txt) is made here; the
folder spaces/ of a checkout holds the same three files.
"""

import importlib.metadata
import tomllib
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from packaging.requirements import Requirement

import codeclade

from .card import TAGS
from .push import Published, check_repo_id, clear_errors, commit

PACKAGE = Path(codeclade.__file__).parent
PACKAGE_SUFFIXES = (".py", ".json", ".jpg")

APP = """from codeclade.demo import create, launch

demo = create()
if __name__ == "__main__":
    launch(demo)
"""
FRONT_MATTER = {  # of the README, see the Hub's "Spaces Configuration Reference"
    "title": "codeclade",
    "emoji": "🌿",
    "colorFrom": "green",
    "colorTo": "indigo",
    "sdk": "gradio",
    "sdk_version": "6.31.0",
    "python_version": "3.12",
    "app_file": "app.py",
    "license": "mit",
    "tags": [*TAGS],
    "short_description": "Class-conditional images, token by token",
    "suggested_hardware": "zero-a10g",
    "startup_duration_timeout": "30m",
}
PINNED = {"torch": "torch==2.13.0"}  # the newest that ZeroGPU runs
SPACE_ONLY = ["spaces"]  # Hugging Face's package for ZeroGPU


def requirements() -> str:
    """requirements.txt of a Space: what pyproject.toml declares for the package and its demo.

    Read from pyproject.toml in a checkout, from the installed package's metadata elsewhere.

    Raises:
        OSError: codeclade is neither a checkout nor installed.
    """
    declared = PACKAGE.parents[1] / "pyproject.toml"
    # Only a checkout has its own pyproject.toml there; above an installed package it would be that
    # of some other project.
    if PACKAGE.parent.name == "src" and declared.is_file():
        project = tomllib.loads(declared.read_text())["project"]
        lines = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    else:
        try:
            lines = importlib.metadata.requires("codeclade") or []
        except importlib.metadata.PackageNotFoundError:
            raise OSError("what codeclade needs is unknown: it is not installed.") from None
    # Metadata lists the packages of all extras, each with a marker: those of other extras drop out,
    # and the marker itself says nothing in a Space.
    needed = []
    for line in lines:
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        if marker is None or marker.evaluate({"extra": "demo"}):
            needed.append(PINNED.get(requirement.name, str(requirement)))
    heading = "# What codeclade[demo] needs, by codeclade.hub.space from pyproject.toml."
    return "\n".join([heading, *sorted(needed), *SPACE_ONLY, ""])


def front_door(**metadata) -> dict[str, bytes]:
    """app.py, README.md and requirements.txt of a Space, with more front matter or other."""
    front = yaml.safe_dump(FRONT_MATTER | metadata, sort_keys=False, allow_unicode=True)
    text = Path(__file__).with_name("space_readme.md").read_text()
    files = {
        "app.py": APP,
        "README.md": f"---\n{front}---\n{text}",
        "requirements.txt": requirements(),
    }
    return {name: content.encode() for name, content in files.items()}


def space_files(
    space_id: str, repo_id: str | None, private: bool = False
) -> dict[str, Path | bytes]:
    """Files of a Space that shows the pipeline `repo_id`, or the bundled one."""
    check_repo_id(space_id)
    metadata: dict = {"title": space_id.split("/")[-1]}
    if repo_id:
        metadata["models"] = [repo_id]
        if not private:  # a preload has no token
            metadata["preload_from_hub"] = [repo_id]
    files: dict[str, Path | bytes] = dict(front_door(**metadata))
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE)
        # The bundled pipeline is sent only where it is the one shown, and never those of earlier
        # versions: dead weight.
        bundled = name.parts[0] == "bundled_pipeline"
        if name.parts[0].startswith("bundled_pipeline") and (repo_id or not bundled):
            continue
        if path.is_file() and (bundled or path.suffix in PACKAGE_SUFFIXES):
            files[f"codeclade/{name.as_posix()}"] = path
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
        # Only a Space of ours is overwritten: for another app, app.py is all there is.
        if "app.py" in there and "codeclade/__init__.py" not in there:
            raise ValueError(f"{space_id} holds another app; choose another name for --space.")
        # Modules of an older version could still be imported; other files are the owner's and stay.
        gone = [name for name in there - set(files) if name.endswith(".py")]
        message = "Upload with codeclade"
        done = commit(api, space_id, "space", files, sorted(gone), message, parent=info.sha)
        # Such a Space carries no pipeline; its app asks this variable which one to load.
        if repo_id:
            api.add_space_variable(space_id, "CODECLADE_PIPELINE", repo_id)
    return done
