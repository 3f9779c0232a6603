"""Recipes: typed settings of one command, read from a section of a YAML file and `key=value`.

A recipe is a dataclass; its fields say what a section may hold. Values are read as the type of
their field says and not as YAML would guess, so that `mixed_precision=no` is the word "no". The
end-of-line comment of a field is its description in `--help` and in docs/settings.md.
"""

import ast
import inspect
import io
import math
import textwrap
import tokenize
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .families import read_family

Recipe = TypeVar("Recipe")

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list such as [a, b]",
    dict: "a mapping such as {a: b}",
    types.NoneType: "null",
}


def load_recipe(
    kind: type[Recipe],
    section: str,
    source: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    size: str | None = None,
    needed: Sequence[str] = (),
) -> Recipe:
    """A recipe of dataclass `kind` from a section of a recipe file plus `key=value` overrides.

    Args:
        kind: dataclass whose fields are the settings.
        section: name of the section in the file.
        source: a YAML file, the name of a recipe that ships with codeclade, or None.
        overrides: "key=value" texts, which win over the file.
        size: one of the file's sizes; None is its default size.
        needed: settings that must be given although they have a default.

    Raises:
        ValueError: a file, section or size that is not there, a key the recipe does not have, a
            value of the wrong type, or a setting that is missing.
    """
    # Text first, types second: only the dataclass says whether `no` is a word or a truth value.
    values = recipe_values(section, source, overrides, size)
    values = typed(section, values, field_types(kind))
    # Missing settings last: where a key is misspelled, that is the cause and was named above.
    required = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]
    check_given(section, values, [*required, *needed], source)
    return kind(**values)


def recipe_values(
    section: str, source: str | Path | None, overrides: Sequence[str] = (), size: str | None = None
) -> dict[str, Any]:
    """The settings of a section with overrides, scalars still as text.

    Raises:
        ValueError: a file, section or size that is not there, or an override without "=".
    """
    if source is None and size is not None:
        raise ValueError(f"--size {size} chooses a size of a recipe; give --recipe too.")
    values = read_family(source).values(section, size) if source is not None else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r} is not of the form key=value.")
        values[key] = value
    return values


def typed(section: str, values: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Values as the types of their fields say.

    Raises:
        ValueError: a key that is not known, or a value of the wrong type.
    """
    unknown = next((key for key in values if key not in known), None)
    if unknown is not None:
        raise ValueError(f"{section} has no setting {unknown!r}; it has {', '.join(known)}.")
    return {key: _typed(section, key, value, known[key]) for key, value in values.items()}


def check_given(
    section: str, values: dict[str, Any], needed: Sequence[str], source: str | Path | None
) -> None:
    """Raise a ValueError that names the settings of `needed` that have no value."""
    missing = [name for name in dict.fromkeys(needed) if name not in values]
    if missing:
        give = " ".join(f"{name}=..." for name in missing)
        hint = "" if source else ", or a recipe with --recipe (`codeclade recipes` lists them)"
        raise ValueError(f"{section} needs {', '.join(missing)}; give {give}{hint}.")


def field_types(kind: type) -> dict[str, Any]:
    """The type of every field of a dataclass, by name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _typed(section: str, key: str, value: Any, wanted: Any) -> Any:
    """`value`, text or a container that YAML has read, as one of the types of `wanted`."""
    allowed = _alternatives(wanted)
    # Nothing comes first, as empty text would be an empty list; text is last, as it takes all.
    for one in sorted(allowed, key=lambda one: (one is str, one is not types.NoneType)):
        try:
            return _read(value, one)
        except (ValueError, yaml.YAMLError):
            continue
    words = " or ".join(NAMES[one] for one in allowed if one in NAMES)
    raise ValueError(f"{section} setting {key}={value!r} must be {words or 'left out'}.")


def _alternatives(wanted: Any) -> list[type]:
    """The plain types of an annotation: of `list[int] | None`, list and None's."""
    united = typing.get_origin(wanted) in (types.UnionType, typing.Union)
    parts = typing.get_args(wanted) if united else (wanted,)
    return [typing.get_origin(one) or one for one in parts]


def _read(value: Any, wanted: type) -> Any:
    """`value` as one type; a ValueError if it is none of it."""
    # Containers were read by YAML, all else is text. A branch that does not return found a value of
    # another type, and ends in the error below.
    if isinstance(value, (list, dict)):
        if isinstance(value, wanted):
            return value
    elif wanted is types.NoneType:
        if value in ("", "~", "null"):
            return None
    elif wanted is bool:
        if value.lower() in WORDS:
            return WORDS[value.lower()]
    elif wanted in (list, dict):
        found = wanted() if value == "" else yaml.safe_load(value)
        if isinstance(found, wanted):
            return found
    elif wanted is float:
        # "inf" and "nan" are floats to Python, and a mistake in every setting there is.
        if math.isfinite(float(value)):
            return float(value)
    elif wanted in (int, str):
        return wanted(value)
    raise ValueError(f"{value!r} is no {wanted}")


@dataclass
class Setting:
    """One field of a recipe, as it is described to people."""

    name: str
    type: str  # "int", "list or dict"; "" if text cannot give it
    default: str  # as one would write it; "" where a value is needed
    meaning: str  # the field's end-of-line comment


def settings(kind: type) -> list[Setting]:
    """The settings of a recipe dataclass, in the order of its fields."""
    meanings: dict[str, str] = {}
    # The source of a class holds its own fields alone, so inherited ones are described by its
    # bases; a field declared again takes the later words.
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            meanings |= _comments(base)
    hints = field_types(kind)
    return [
        Setting(field.name, _type_name(hints[field.name]), _default(field), meanings[field.name])
        for field in fields(kind)
    ]


def _comments(kind: type) -> dict[str, str]:
    """End-of-line comments of the fields that a class itself declares, by name."""
    # The syntax tree has no comments and the tokens have no fields; line numbers join the two.
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0].body
    return {
        node.target.id: " ".join(
            comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments
        )
        for node in body
        if isinstance(node, ast.AnnAssign)
    }


def _type_name(wanted: Any) -> str:
    named = (one for one in _alternatives(wanted) if one in NAMES and one is not types.NoneType)
    return " or ".join(one.__name__ for one in named)


def _default(field) -> str:
    if field.default is field.default_factory is MISSING:
        return ""
    value = field.default if field.default is not MISSING else field.default_factory()
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)
