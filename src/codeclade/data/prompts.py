"""Files of prompts for text pipelines: plain text, Parti's table and COCO's captions.

- `.txt`: one prompt a line.
- `.tsv` or `.csv`: columns divided by tabs under a header, of which `Prompt` is read, as in
  PartiPrompts.tsv (arXiv 2206.10789) and in LlamaGen's list of COCO captions.
- `.json`: COCO's `captions_*.json`, of every image its first caption (the smallest id).
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..components.weight_files import parse_json, shortened

COLUMN = "prompt"
ENDINGS = (".txt", ".tsv", ".csv", ".json")


@dataclass(frozen=True)
class Prompts:
    """Captions of one file, in order."""

    name: str  # of the file, without its place
    texts: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the captions' sha256."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:16]


def read_prompts(path: str | Path) -> Prompts:
    """The prompts of a file; empty ones are left out.

    Raises:
        ValueError: no such file, another ending, no column of prompts, or no prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path} of prompts.")
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} must end in {', '.join(ENDINGS)} to be read as prompts.")
    # Every format is a list of texts in the end.
    try:
        if path.suffix == ".json":
            texts = _coco(path)
        elif path.suffix == ".txt":
            texts = path.read_text(encoding="utf-8").splitlines()
        else:
            texts = _column(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8.") from None
    # Empty lines are no prompts.
    kept = tuple(text.strip() for text in texts if text.strip())
    if not kept:
        raise ValueError(f"{path} holds no prompt.")
    return Prompts(path.name, kept)


def _column(path: Path) -> list[str]:
    """The column of prompts of a table divided by tabs."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        header = next(rows, [])
        names = [name.strip().lower() for name in header]
        if COLUMN not in names:
            there = shortened(", ".join(header))
            raise ValueError(f"{path} has no column Prompt divided by tabs; it has {there}.")
        place = names.index(COLUMN)
        return [row[place] for row in rows if len(row) > place]


def _coco(path: Path) -> list[str]:
    """The first caption of every image, in order of the images' first captions."""
    content = parse_json(path.read_bytes(), str(path))
    rows = content.get("annotations") if isinstance(content, dict) else None
    fields = {"image_id": int, "id": int, "caption": str}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(k), t) for k, t in fields.items())
        for row in rows
    ):
        raise ValueError(f"{path} must hold COCO captions: annotations of image_id, id, caption.")
    first: dict[int, str] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        first.setdefault(row["image_id"], " ".join(row["caption"].split()))
    return list(first.values())
