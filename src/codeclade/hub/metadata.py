"""The small files beside weights: read as checked records, and freed of this machine's paths.

provenance.json, training.json, evaluation.json and codes.json are the only source of what a card
claims; both the card and the upload use what is read here.
"""

import re
from pathlib import Path
from typing import Any

from ..components.weight_files import read_json
from ..data.records import CodesRecord, EvaluationRecord, Provenance, Record, TrainingRecord

RECORDS: dict[str, type[Record]] = {
    kind.FILE: kind for kind in (Provenance, TrainingRecord, EvaluationRecord, CodesRecord)
}
LOCAL_KEYS = ("_name_or_path",)  # where diffusers loaded a folder from: nobody else's business
LOCAL_PATH = re.compile(r"(/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\).*", re.DOTALL)
LOCAL_WORD = re.compile(r"(?<![\w:/.~\\])(?:/|~/|\.\.?/|[A-Za-z]:\\)[^\s\"'#,\]]+")


def read_record(path: Path) -> tuple[Any, Any]:
    """One of the files in `RECORDS`.

    Returns:
        The record (of evaluation.json a list of records), and the whole content as it may be
        published, unknown fields included.

    Raises:
        ValueError: naming the file and the field that is missing or of another type.
    """
    kind = RECORDS[path.name]
    # Paths are cut before a record is made, so neither card nor upload can show one.
    if kind is EvaluationRecord:
        content = without_local_paths(read_json(path, list))
        if not all(isinstance(row, dict) for row in content):
            raise ValueError(f"{path} must be a list of objects, one a number.")
        records = [kind.from_json(row, path) for row in content]
        if any((record.conditions or {}).get("quick") for record in records):
            raise ValueError(
                f"{path} holds a first look (--quick), which is not published; evaluate without it."
            )
        return records, content
    content = without_local_paths(read_json(path))
    record = kind.from_json(content, path)
    if isinstance(record, Provenance):
        for file in record.files or []:
            file.name = _last_part(file.name)  # also of relative paths the name alone
    # Fields that this version does not know are published as they are; those it knows, as the
    # record has them, with what was just shortened.
    return record, content | record.to_json()


def without_local_paths(content: Any) -> Any:
    """JSON content with the file names alone where it names places on this machine."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in LOCAL_KEYS}
        return {key: without_local_paths(value) for key, value in kept.items()}
    if isinstance(content, list):
        return [without_local_paths(value) for value in content]
    if isinstance(content, str) and LOCAL_PATH.fullmatch(content):
        return _last_part(content)
    return content


def recipe_without_local_paths(text: str) -> str:
    """A YAML recipe, comments and all, with file names in place of local paths."""
    return LOCAL_WORD.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
