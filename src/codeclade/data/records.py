"""The JSON files that travel with weights and codes: the one place that knows their fields.

Whoever writes such a file fills a record in; whoever reads one gets a record, checked. Files of
older versions stay readable: fields a file has beyond these are ignored.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from ..components.weight_files import read_json, shortened

KINDS = {str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list"}


@dataclass(kw_only=True)
class Record:
    """A JSON object whose fields are those of a dataclass."""

    FILE: ClassVar[str]  # its usual name

    def to_json(self) -> dict[str, Any]:
        """The object to write, in the order of the fields; what is None is left out."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if value is not None}

    @classmethod
    def from_json(cls, content: Any, path: str | Path) -> Self:
        """A checked record.

        Args:
            content: what JSON gave.
            path: names the file in messages.

        Raises:
            ValueError: naming the file and the field that is missing or of another type.
        """
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold an object, not {type(content).__name__}.")
        hints, values = typing.get_type_hints(cls), {}
        for known in dataclasses.fields(cls):
            kind, optional = _kind(hints[known.name])
            check_field(path, content, known.name, kind, optional)
            values[known.name] = content.get(known.name)
            # "" and nothing mean the same, and one of them is enough for whoever reads the record.
            if optional and values[known.name] == "":
                values[known.name] = None
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The record of a file.

        Raises:
            ValueError: as `from_json`, or no JSON.
        """
        return cls.from_json(read_json(Path(path)), path)


@dataclass(kw_only=True)
class SourceFile(Record):
    """A file that weights were made of."""

    name: str
    bytes: int


@dataclass(kw_only=True)
class Provenance(Record):
    """Where weights come from and what may be done with them."""

    FILE: ClassVar[str] = "provenance.json"

    method: str | None = None  # the project that published them
    license: str | None = None  # a license name of the Hub's
    license_name: str | None = None  # of a license of one's own
    license_link: str | None = None
    statement: str | None = None
    datasets: list | None = None  # Hub ids
    files: list[SourceFile] | None = None

    @classmethod
    def from_json(cls, content: Any, path: str | Path) -> Self:
        record = super().from_json(content, path)
        if record.files is not None:
            record.files = [SourceFile.from_json(one, f"{path}: files") for one in record.files]
        return record


@dataclass(kw_only=True)
class TrainingRecord(Record):
    """How weights were trained."""

    FILE: ClassVar[str] = "training.json"

    stage: str  # tokenizer, generator or refiner
    data: str
    images: int | None = None  # None: streamed, and not counted
    classes: int
    steps: int
    seconds: float
    machine: str
    recipe: dict
    logged: dict  # last numbers of the log, by name

    @classmethod
    def from_json(cls, content: Any, path: str | Path) -> Self:
        record = super().from_json(content, path)
        for name in record.logged:
            check_field(path, record.logged, name, float)
        return record


@dataclass(kw_only=True)
class EvaluationRecord(Record):
    """One measured number with its protocol; the file holds a list of them."""

    FILE: ClassVar[str] = "evaluation.json"

    metric: str
    value: float
    unit: str | None = None
    dataset: str
    dataset_id: str | None = None
    split: str | None = None
    protocol: str  # in words
    conditions: dict | None = None  # fields of evaluation.protocol.Protocol; older files lack it
    standard_error: float | None = None  # of the value
    floor: float | None = None  # the same number of photographs against other photographs


@dataclass(kw_only=True)
class CodesRecord(Record):
    """What code shards hold and what made them."""

    FILE: ClassVar[str] = "codes.json"

    split: str | None = None
    images: int
    views: int
    grid_size: int
    codebook_size: int
    detail_codebook_size: int | None = None
    codebook_sketch: list | None = None  # fingerprint of the codebook
    class_names: list
    recipe: dict
    shards: list  # file names


def _kind(hint: Any) -> tuple[type, bool]:
    """The plain type of an annotation, and whether the field may be left out."""
    inner = typing.get_args(hint)
    # Records unite a type with None and with nothing else, so exactly one is left.
    if isinstance(hint, types.UnionType):
        (hint,) = (one for one in inner if one is not types.NoneType)
        return typing.get_origin(hint) or hint, True
    return typing.get_origin(hint) or hint, False


def check_field(
    path: str | Path, row: dict[str, Any], name: str, kind: type, optional: bool = False
) -> None:
    """Raise a ValueError that names the file unless `row[name]` is a `kind`, a key of `KINDS`.

    Text may not be empty, numbers are finite; an optional field may be missing, null or "".
    """
    value = row.get(name)
    if optional and value in (None, ""):
        return
    # JSON's true is an int to Python, and its NaN a number that no card can show.
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) or value == "" or not _finite(value):
        given = shortened(repr(value))
        raise ValueError(f"{path}: {shortened(name)} must be {KINDS[kind]}, got {given}.")


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
