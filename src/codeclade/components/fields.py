"""What the fields of a config may hold: a type and a range, read from the constructor's signature.

A config comes from anywhere and may hold anything: text where a number belongs, NaN, 2^40 layers.
A field is declared once, as `rope_theta: Base = 10000.0`, and checked wherever a file is read.
"""

import inspect
import math
import os
import types
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from transformers import PreTrainedConfig

from .weight_files import shortened

LONGEST_TEXT = 4096  # characters of a config's words; the longest are paths (`_name_or_path`)
MOST_NAMES = 2**20  # of classes


class Bounds(NamedTuple):
    """Where a number must lie; of a list, how many there are."""

    least: float
    most: float
    above: bool = False  # `least` itself is too small


Count = Annotated[int, Bounds(1, 2**24)]  # codes, clusters
CountOrZero = Annotated[int, Bounds(0, 2**24)]
Prefix = Annotated[int, Bounds(1, 2**12)]  # tokens of a caption
Width = Annotated[int, Bounds(1, 2**17)]
Layers = Annotated[int, Bounds(1, 1024)]
Side = Annotated[int, Bounds(1, 2**14)]  # pixels
Grid = Annotated[int, Bounds(1, 1024)]
Window = Annotated[int, Bounds(1, 32)]
Levels = Annotated[tuple[Width, ...], Bounds(1, 12)]
Share = Annotated[float, Bounds(0, 1)]
Epsilon = Annotated[float, Bounds(0, 1, above=True)]  # transformers' own tests take 1
Base = Annotated[float, Bounds(1, 1e12)]  # of the rotation's wave lengths
Weight = Annotated[float, Bounds(0, 1e6)]
Deviation = Annotated[float, Bounds(0, 10)]
Temperature = Annotated[float, Bounds(0, 100)]

# Defaults of both pipelines, which diffusers must find in their signatures as plain types.
SETTINGS: dict[str, Any] = {
    "guidance_scale": Annotated[float, Bounds(0, 1000)],
    "temperature": Temperature,
    "top_k": CountOrZero,
    "top_p": Annotated[float, Bounds(0, 1, above=True)],
}
# Of either library, in any config.json; the other ones they know have no say in these classes.
LIBRARY_FIELDS: dict[str, Any] = {
    "_class_name": str,
    "_diffusers_version": str,
    "_name_or_path": str | os.PathLike,  # a Path where a model was loaded from one in Python
    "_use_default_values": list[str],
    "auto_map": dict | None,
    "quantization_config": dict | None,
}
TRANSFORMERS_FIELDS: dict[str, Any] = {  # and of its configs alone
    "architectures": list[str] | None,
    "chunk_size_feed_forward": CountOrZero,
    "dtype": str | torch.dtype | None,
    "id2label": dict | None,
    "is_encoder_decoder": bool,
    "label2id": dict | None,
    "model_type": str,
    "output_attentions": bool | None,
    "output_hidden_states": bool | None,
    "problem_type": str | None,
    "return_dict": bool | None,
    "tie_word_embeddings": bool | None,
    "torch_dtype": str | torch.dtype | None,
    "transformers_version": str | None,
    "use_cache": bool,
}
SWITCHES = ("transformers_weights", "attn_implementation", "experts_implementation")
DTYPES = ("float32", "float16", "bfloat16", "float64")


def declared_fields(kind: type) -> dict[str, Any]:
    """Types by name of what the constructors of a class and of its own base classes take."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if base.__module__.startswith(("diffusers.", "transformers.", "torch.")):
            continue
        if "__init__" in vars(base):
            constructor = inspect.unwrap(vars(base)["__init__"])
            hints = get_type_hints(constructor, include_extras=True)
            found = {**hints, **found}
    return {name: hint for name, hint in found.items() if name not in ("return", "kwargs")}


def check_fields(kind: type, content: Mapping[str, Any], what: str) -> None:
    """Make sure that a config file's fields have the types and ranges that a class declares.

    Args:
        kind: a config class, or a model class of diffusers' kind.
        what: names the file in messages.

    Raises:
        ValueError: naming the first field with a value that it cannot have.
    """
    of_transformers = issubclass(kind, PreTrainedConfig)
    fields = LIBRARY_FIELDS | (TRANSFORMERS_FIELDS if of_transformers else {})
    fields |= declared_fields(kind)
    for name, value in content.items():
        if name in fields:
            check_value(fields[name], value, name, what)
        # Unknown fields become attributes: notes may be there, but nothing that replaces what the
        # class computes itself, or that is a switch of the library.
        elif (
            hasattr(kind, name)
            or name in (*SWITCHES, *TRANSFORMERS_FIELDS)
            or not name.isidentifier()
        ):
            raise ValueError(f"{what}: {shortened(name)!r} is no field of {kind.__name__}.")
        elif not fits(str | float | bool | None, value):  # lists and objects are no notes
            shown = shortened(repr(value), 40)
            raise ValueError(f"{what}: {shortened(name)}={shown} is no value of a config.")
    for name in ("dtype", "torch_dtype"):
        value = content.get(name) or DTYPES[0]
        value = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
        if value not in DTYPES:
            raise ValueError(f"{what}: {name}={value!r} must be one of {', '.join(DTYPES)}.")


def check_settings(settings: Mapping[str, Any], what: str) -> None:
    """Make sure that a pipeline's defaults have values they can have; those not given are left out.

    Raises:
        ValueError: naming the first one that has not.
    """
    for name, hint in SETTINGS.items():
        if name in settings:
            check_value(hint, settings[name], name, what)
    # Schedules check their own parameters; here it is only made sure that these are numbers.
    schedule = settings.get("guidance_schedule")
    check_value(str | dict | None, schedule, "guidance_schedule", what)
    for key, value in schedule.items() if isinstance(schedule, dict) else ():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        for number in numbers if key != "name" else ():
            check_value(Annotated[float, Bounds(-1e6, 1e6)], number, shortened(key), what)
        if key == "name":
            check_value(str, value, "guidance_schedule", what)
    names = settings.get("id2label")
    names = {} if names is None else names
    known = isinstance(names, dict) and len(names) <= MOST_NAMES
    if not known or not all(_is_label(key, value) for key, value in names.items()):
        raise ValueError(f"{what}: id2label must hold a name of each class by its number.")


def _is_label(key: Any, value: Any) -> bool:
    number = str(key)
    return number.isdecimal() and len(number) <= 8 and isinstance(value, str) and len(value) <= 1000


def check_value(hint: Any, value: Any, name: str, what: str) -> None:
    """Raise a ValueError, one sentence, unless a value is what a type hint of this file allows."""
    if not fits(hint, value):
        start = str(value)[:60] if isinstance(value, (str, list, dict, tuple)) else value
        if isinstance(value, int) and abs(value) >= 10**40:
            start = "a number of over 40 digits"  # which Python may refuse to write
        shown = shortened(repr(start) if isinstance(value, str) else start, 40)
        raise ValueError(f"{what}: {name}={shown} must be {described(hint)}.")


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is what a type hint says, its bounds included."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, bounds = get_args(hint)[:2]
        # Bounds are of the number itself, or of how many entries a list has.
        if not fits(inner, value):
            return False
        number = len(value) if isinstance(value, (list, tuple)) else value
        enough = number > bounds.least if bounds.above else number >= bounds.least
        return enough and number <= bounds.most
    if origin in (Union, types.UnionType):
        return any(fits(one, value) for one in get_args(hint))
    if origin in (tuple, list):  # JSON has lists alone
        one = get_args(hint)[0]
        return isinstance(value, (list, tuple)) and all(fits(one, item) for item in value)
    # True and False are whole numbers to Python, but not in a config.
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:  # too large an int has no float
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) < 2**1000 and math.isfinite(value)
    if hint is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    return hint is Any or isinstance(value, hint)


def described(hint: Any) -> str:
    """A type hint in words, as messages give it."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, bounds = get_args(hint)[:2]
        start = f"above {bounds.least:g}, up to" if bounds.above else f"from {bounds.least:g} to"
        number = f"{start} {bounds.most:g}"
        if get_origin(inner) is tuple:
            return f"a list of {number} entries, each {described(get_args(inner)[0])}"
        return f"{described(inner)} {number}"
    if origin in (Union, types.UnionType):
        return " or ".join(described(one) for one in get_args(hint))
    # Types of single values, in words of JSON.
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: f"text of up to {LONGEST_TEXT} characters",
        dict: "an object",
        os.PathLike: "a path",
        type(None): "null",
    }
    return words.get(hint, "a list of text" if origin is list else str(hint))
