"""Files and folders that appear whole or not at all, also when a process is killed halfway.

Everything is written under a temporary name beside its place and renamed when it is complete.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

# How torch's writer says that a file did not take all of its bytes.
WRITERS = ("inline_container", "PytorchStreamWriter", "iostream")


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Makes an OSError, which names the path, of what weights' writers say of a full disk.

    Raises:
        OSError: naming the path.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        words = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(name in words for name in WRITERS):
            raise
        raise OSError(f"{path} cannot be written; is the disk full? {words[:100]}") from error


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes otherwise.

    It ends like `path` does, for writers that look at the ending, and bears the process's number,
    so that two processes never share it.
    """
    path = Path(path)
    # Beside its place, since a rename is atomic on one file system alone.
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with disk_errors(path):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON, with a newline at its end."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


@contextmanager
def new_folder(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well, and vanishes otherwise.

    Args:
        out: where it shall be; its parent must exist.
        overwrite: replace a folder there, if it holds nothing the new one does not hold.

    Raises:
        ValueError: a parent that is missing, a file there, or a folder that may not be replaced.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to make {out.name} in.")
    # Renaming would move the link and leave the folder it points to as it was.
    if out.is_symlink():
        raise ValueError(f"--out {out} is a symbolic link; give the folder itself.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"--out {out} is not empty; choose another or give --overwrite.")
    # A killed process may have left a folder under this very name, as process numbers come again.
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with disk_errors(out):
            yield partial
        replace_folder(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(out: Path, new: Path) -> None:
    """Put the folder `new` in the place of `out`, whose files it must all have.

    Raises:
        ValueError: `out` holds a name that `new` does not hold.
    """
    if not out.is_dir():
        new.rename(out)
        return
    # Overwriting is meant for what an earlier run wrote. A mistyped folder of photographs, say,
    # holds names that the new one does not, and is kept.
    foreign = sorted({p.name for p in out.iterdir()} - {p.name for p in new.iterdir()})
    if foreign:
        raise ValueError(
            f"--out {out} holds {foreign[0]}, which would be lost; choose another folder."
        )
    # No portable call swaps two folders, so the old one steps aside first: whenever the process is
    # killed, one of the two is whole, under its name or beside it.
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)  # what was there stays
        raise
    shutil.rmtree(old)
