"""Modules that moved: the old path answers for one more version, with a warning."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def moved(old: str, places: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose contents moved.

    Args:
        old: dotted name of the old module.
        places: dotted name of the new module of every public name, below `codeclade`.
    """

    def attribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        new = f"codeclade.{places[name]}"
        warnings.warn(
            f"{old}.{name} is deprecated; import it from {new}.", DeprecationWarning, stacklevel=2
        )
        return getattr(importlib.import_module(new), name)

    return attribute
