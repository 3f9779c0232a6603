"""The small files beside weights: read with clear errors, and freed of this machine's paths.

provenance.json, training.json, evaluation.json and codes.json are the only source of what a card
claims; both the card and the upload use what is read here.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

LOCAL_KEYS = ("_name_or_path",)  # where diffusers loaded a folder from: nobody else's business
LOCAL_PATH = re.compile(r"(/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\).*", re.DOTALL)
LOCAL_WORD = re.compile(r"(?<![\w:/.~\\])(?:/|~/|\.\.?/|[A-Za-z]:\\)[^\s\"'#,\]]+")

NUMBER, TEXT = (int, float), (str,)
FIELDS = {  # required fields of every file, and what they hold
    "training.json": {
        "stage": TEXT, "data": TEXT, "images": NUMBER, "classes": NUMBER,
        "steps": NUMBER, "seconds": NUMBER, "machine": TEXT, "recipe": (dict,),
        "logged": (dict,),
    },
    "evaluation.json": {"metric": TEXT, "value": NUMBER, "dataset": TEXT, "protocol": TEXT},
    "codes.json": {
        "images": NUMBER, "views": NUMBER, "grid_size": NUMBER, "codebook_size": NUMBER,
        "shards": (list,), "class_names": (list,), "recipe": (dict,),
    },
}  # fmt: skip
OPTIONAL = {  # fields that may be left out, or null
    "provenance.json": {
        "method": TEXT, "license": TEXT, "license_name": TEXT, "license_link": TEXT,
        "statement": TEXT, "datasets": (list,), "files": (list,),
    },
    "evaluation.json": {"unit": TEXT, "dataset_id": TEXT, "split": TEXT},
    "codes.json": {"detail_codebook_size": NUMBER},
}  # fmt: skip


def read_json(path: Path, kind: type = dict) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: naming the file, where it is no JSON or no `kind` (dict or list).
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # also what is no text
        raise ValueError(f"{path} is no valid JSON: {error}.") from None
    if not isinstance(content, kind):
        wanted = {dict: "an object", list: "a list"}[kind]
        raise ValueError(f"{path} must hold {wanted}, not {type(content).__name__}.")
    return content


def read_facts(path: Path) -> Any:
    """provenance.json, training.json, evaluation.json or codes.json, checked and cleaned.

    Raises:
        ValueError: naming the file and the field that is missing or of another type.
    """
    content = read_json(path, list if path.name == "evaluation.json" else dict)
    for row in content if isinstance(content, list) else [content]:
        if not isinstance(row, dict):
            raise ValueError(f"{path} must be a list of objects, one a number.")
        for fields, optional in ((FIELDS, False), (OPTIONAL, True)):
            for name, kinds in fields.get(path.name, {}).items():
                check_field(path, row, name, kinds, optional)
    if path.name == "training.json":
        for name in content["logged"]:
            check_field(path, content["logged"], name, NUMBER)
    for file in content.get("files") or [] if isinstance(content, dict) else []:
        if not isinstance(file, dict):
            raise ValueError(f"{path}: files must be a list of objects.")
        check_field(path, file, "name", TEXT)
        check_field(path, file, "bytes", NUMBER)
        file["name"] = re.split(r"[/\\]", file["name"])[-1]
    return without_local_paths(content)


def check_field(
    path: Path, row: dict, name: str, kinds: tuple[type, ...], optional: bool = False
) -> None:
    """Raise a ValueError that names the file unless a field is there and of one of `kinds`."""
    value = row.get(name)
    if optional and value in (None, ""):
        return
    fine = isinstance(value, kinds) and not isinstance(value, bool) and value != ""
    if not fine or (isinstance(value, float) and not math.isfinite(value)):
        wanted = {str: "text", int: "a number", dict: "an object", list: "a list"}[kinds[0]]
        raise ValueError(f"{path}: {name} must be {wanted}, got {value!r}.")


def without_local_paths(content: Any) -> Any:
    """JSON content with the file names alone where it names places on this machine."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in LOCAL_KEYS}
        return {key: without_local_paths(value) for key, value in kept.items()}
    if isinstance(content, list):
        return [without_local_paths(value) for value in content]
    if isinstance(content, str) and LOCAL_PATH.fullmatch(content):
        return re.split(r"[/\\]", content.rstrip("/\\"))[-1]
    return content


def recipe_without_local_paths(text: str) -> str:
    """A YAML recipe, comments and all, with file names in place of local paths."""
    return LOCAL_WORD.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)
