"""Modules that moved: the old path answers for one more version, with a warning."""

import pkgutil
import warnings
from collections.abc import Callable
from typing import Any


def moved(old: str, places: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose contents moved.

    Args:
        old: dotted name of the old module.
        places: where every public name of it is now: "data.codes.Codes" is
            `codeclade.data.codes.Codes`; attributes of objects may follow.
    """

    def attribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        new = f"codeclade.{places[name]}"
        text = f"{old}.{name} is deprecated; use {new}."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return pkgutil.resolve_name(new)

    return attribute
