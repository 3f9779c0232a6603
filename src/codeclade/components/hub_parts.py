"""Parts loaded alone from the Hub: their files are fetched first, so that they can be checked.

The library then finds the same commit in its cache. What it would fetch is fetched and no more:
config.json, and the weights of one variant, whole or in shards.
"""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .weight_files import is_shard_name, read_json

OF_THE_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubPart(NamedTuple):
    """A part of a repository whose files are here."""

    folder: Path  # in the cache, inside a folder named by the commit
    commit: str


def fetch_part(
    source: str, stem: str, options: Mapping[str, Any], needs_config: bool = True
) -> HubPart | None:
    """Fetch the config and the .safetensors weights of a part of a Hub repository.

    Args:
        source: name of the repository, "user/name".
        stem: how the part's library names weight files.
        options: arguments by name of `from_pretrained`.
        needs_config: whether a part without config.json is none.

    Returns:
        Where the files are, which may lack weights that the repository does not have; None where
        they could not be had, for the library to meet the same and say why.
    """
    hub = {name: options[name] for name in OF_THE_HUB if options.get(name) is not None}
    folder = Path(options.get("subfolder") or "")
    variant = f".{options['variant']}" if options.get("variant") else ""
    unknown: list[str] = []  # files that may be there, but the Hub cannot be asked

    def fetch(name: str) -> Path | None:
        """One file, of the commit that the first one found belongs to; None where it is not."""
        try:
            path = Path(hf_hub_download(source, (folder / name).as_posix(), **hub))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                unknown.append(name)
            return None
        hub["revision"] = path.parents[len(folder.parts)].name
        return path

    try:
        found = [fetch("config.json")]
        if needs_config and found == [None]:
            return None
        if stem == "model":  # transformers would load an adapter on top, whose file says of what
            fetch("adapter_config.json")
        # The libraries take shards where there is an index of them, else one file.
        index = fetch(f"{stem}.safetensors.index{variant}.json")
        found.append(index or fetch(f"{stem}{variant}.safetensors"))
        if index is not None:
            shards = [glob.escape((folder / name).as_posix()) for name in _shards(index)]
            snapshot_download(source, allow_patterns=shards, **hub)
    # Refusals of the Hub, and names that are none.
    except (OSError, ValueError):
        return None
    here = [path for path in found if path is not None]
    if not here or (found[1] is None and unknown):
        return None
    return HubPart(here[0].parent, hub["revision"])


def _shards(index: Path) -> list[str]:
    """Names of shards in an index; none where it is damaged, which its check says better."""
    try:
        listed = read_json(index).get("weight_map")
    except ValueError:
        return []
    names = set(listed.values() if isinstance(listed, dict) else ())
    return sorted(name for name in names if is_shard_name(name))


def repository_of(part: Path) -> str | None:
    """Name of the repository whose root folder in the cache this is; None for other folders."""
    if _is_snapshot(part):
        return part.parents[1].name.removeprefix("models--").replace("--", "/")
    return None


def was_fetched(part: Path) -> bool:
    """Whether a folder lies in the cache, which may lack files that its repository has."""
    return any(_is_snapshot(folder) for folder in (part, *part.parents))


def _is_snapshot(folder: Path) -> bool:
    return bool(COMMIT.fullmatch(folder.name)) and folder.parent.name == "snapshots"
