"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"--out {out} is not empty; choose another or give --overwrite.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(out: Path, partial: Path) -> None:
    if out.is_dir():
        foreign = sorted({p.name for p in out.iterdir()} - {p.name for p in partial.iterdir()})
        if foreign:
            raise ValueError(
                f"--out {out} holds {foreign[0]}, which would be lost; choose another folder."
            )
        old = out.with_name(f".{out.name}.old")
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)
    else:
        partial.rename(out)
