"""Image folders, listed once: `datasets` finds the same by walking the whole tree 46 times."""

import os
import re
from pathlib import Path

from .columns import Columns, renamed
from .hub_ids import is_hub_id, why_not_on_hub

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Folders and files that `datasets` takes for splits.
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}
SPLIT_LIKE = re.compile(rf"(^|[-._ 0-9])({'|'.join(SPLIT_OF)})([-._ 0-9]|$)")


def open_source(source: str, columns: Columns = Columns()):  # noqa: B008 (frozen)
    """The splits of an image folder, a folder of parquet files or a Hub dataset, columns renamed.

    Raises:
        ValueError: a column that is not there, or a folder or Hub dataset that is not.
    """
    from datasets import load_dataset

    check_there(source)
    return renamed(source, class_folders(Path(source)) or load_dataset(source), columns)


def check_there(source: str) -> None:
    """Raise a ValueError unless there is such a folder here, or such a dataset on the Hub."""
    from datasets import config

    if Path(source).exists():
        return
    # The oldest datasets of the Hub have no user before their name.
    if not is_hub_id(source if "/" in source else f"user/{source}"):
        raise ValueError(f"there is no folder {source} of images, and it is no Hub dataset.")
    if Path(config.HF_DATASETS_CACHE, source.replace("/", "___")).is_dir():
        return  # what was read before is read without a connection
    if error := why_not_on_hub(source, "dataset"):
        raise ValueError(
            f"there is no folder {source}, and no dataset {source} of the Hub that could be read; "
            "check the name, the token and the connection."
        ) from error


def class_folders(folder: Path):
    """The splits of CLASS/IMAGE or SPLIT/CLASS/IMAGE, as `load_dataset` gives them.

    None for whatever else a folder holds: other files, names in which `datasets` sees a split,
    images at several depths, links to folders.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

    found = _images_of_splits(folder.resolve()) if folder.is_dir() else {}
    names = sorted({os.path.basename(os.path.dirname(path)) for p in found.values() for path in p})
    if len(names) < 2:  # one class alone is no label
        return None
    features, parts = Features(image=Image(), label=ClassLabel(names=names)), {}
    number = {name: index for index, name in enumerate(names)}
    for split in (split for split in NAMES if split in found):
        paths = sorted(found[split])
        labels = [number[os.path.basename(os.path.dirname(path))] for path in paths]
        parts[split] = Dataset.from_dict({"image": paths, "label": labels}, features=features)
    return DatasetDict(parts)


def _images_of_splits(root: Path) -> dict[str, list[str]]:
    """Paths by split; empty where the folder is of another form."""
    found: dict[str, list[str]] = {}
    depths, called = set(), {}  # a split has one name: "val" or "valid"
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _hidden(name)]
        files = [name for name in files if not _hidden(name)]
        inside = Path(place).relative_to(root).parts
        split = SPLIT_OF.get(inside[0]) if inside else None
        # What stands below the split must be classes and images, and nothing like a split.
        below = [*(inside[1:] if split else inside), *files]
        if any(SPLIT_LIKE.search(name) for name in below):
            return {}
        if any(os.path.islink(os.path.join(place, name)) for name in folders):
            return {}
        if any(not name.lower().endswith(ENDINGS) for name in files):
            return {}
        if split and called.setdefault(split, inside[0]) != inside[0]:
            return {}
        if files:
            depths.add((split is not None, len(inside)))
            found.setdefault(split or "train", []).extend(os.path.join(place, f) for f in files)
    return found if depths in ({(False, 1)}, {(True, 2)}) else {}


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))
