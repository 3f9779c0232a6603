"""Where model files come from: a file, a folder, or a repository of the Hub, of which only the
files that are asked for are downloaded.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ..components.weight_files import shortened
from ..data.hub_ids import is_hub_id

TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]  # of httpx, or the fork this huggingface_hub uses

FOLDERS = ("", "vq_model/", "vqvae/", "vqmodel/", "movq/")  # the model itself, or in a pipeline
KINDS = (
    "a .npy or .safetensors file, a published .pt checkpoint, a model or pipeline folder, "
    "or a Hub id (owner/name, or owner/name/file-or-folder)"
)


@dataclass
class Files:
    """The files of a folder or repository.

    Attributes:
        names: paths inside it, with "/".
        fetch: makes one of them a local path.
    """

    names: list[str]
    fetch: Callable[[str], Path]


def find_source(source: str) -> Path | Files:
    """The file, or the files of the folder or Hub repository, that `source` names.

    Raises:
        ValueError: nothing of that name is here, and it is no Hub id, or of no repository that can
            be read.
    """
    if os.path.isfile(source):  # of pathlib's, a name of 5000 letters raises
        return Path(source)
    if os.path.isdir(source):
        return Files(_names(Path(source)), Path(source).joinpath)
    # "owner/name", or a file or folder inside: "owner/name/path". Anything else is asked of nobody.
    owner, _, rest = source.partition("/")
    name, _, inner = rest.partition("/")
    repo, inner = f"{owner}/{name}", inner.rstrip("/")
    if not is_hub_id(repo):
        raise ValueError(f"there is no {shortened(source)!r}; a codebook source is {KINDS}.")
    # The rest may be a file or a folder there; which, only the list of its files tells.
    files = _repository(repo, source)
    if inner in files.names:
        return files.fetch(inner)
    prefix = f"{inner}/" if inner else ""
    below = [name.removeprefix(prefix) for name in files.names if name.startswith(prefix)]
    if not below:
        raise ValueError(f"the Hub repository {repo} has no file or folder {shortened(inner)}.")
    return Files(below, lambda name: files.fetch(prefix + name))


def _names(root: Path) -> list[str]:
    """Files of a folder where weights may be; a search of everything below could take long."""
    return [
        folder + path.name
        for folder in FOLDERS
        for path in sorted((root / folder).glob("*"))
        if path.is_file()
    ]


def _repository(repo: str, source: str) -> Files:
    """The files of a Hub repository; offline, those that are cached."""
    # The list of names is asked for, no file yet: repositories hold hundreds of gigabytes.
    api = HfApi()
    try:
        names = [file.rfilename for file in api.model_info(repo, timeout=10).siblings]
        return Files(names, lambda name: Path(api.hf_hub_download(repo, name)))
    except (TRANSPORT_ERROR, OSError) as error:
        reason = shortened(str(error).strip().partition("\n")[0].rstrip("."), 120)
    # Without the network what is cached still serves, with the network's own reason if nothing is.
    try:
        cached = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{shortened(source)} is neither a file or folder here nor a repository that can be "
            f"read on the Hub ({reason})."
        ) from None
    files = [file for file in cached.rglob("*") if file.is_file()]
    return Files([file.relative_to(cached).as_posix() for file in files], cached.joinpath)
