"""Class names: from what a user types to class ids, with errors that suggest the nearest names."""

import difflib
from collections.abc import Mapping


def ids_by_name(id2label: Mapping[str, str]) -> dict[str, list[int]]:
    """Class ids by lower-case name, synonyms included; a few names mean several classes."""
    names: dict[str, list[int]] = {}
    for key, value in id2label.items():
        for name in {value, *value.split(",")}:
            names.setdefault(name.strip().lower(), []).append(int(key))
    return names


def label_id(label: int | str, count: int, names: dict[str, list[int]]) -> int:
    """Class id below `count` of a class id or of one of `names` (as `ids_by_name` gives them).

    Raises:
        ValueError: an id out of range, or a name that is unknown (the nearest ones are given) or
            means several classes.
    """
    # True is an int in Python, but nobody means class 1 by it.
    if isinstance(label, int) and not isinstance(label, bool):
        if not 0 <= label < count:
            raise ValueError(f"class id {label} is outside 0..{count - 1}.")
        return label
    if not isinstance(label, str):
        raise ValueError(f"class label {label!r} must be a class name or an integer id.")
    # Some names stand for two classes (a crane flies or lifts); guessing one would be wrong half
    # of the time.
    wanted = label.strip().lower()
    found = sorted(set(names.get(wanted, [])))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"class name {label!r} means several classes; give one of ids {found}.")
    if not names:
        raise ValueError(f"this pipeline has no class names; give an id 0..{count - 1}.")
    # difflib compares whole names, so one word of a long name needs a search of its own.
    near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4)
    near += [name for name in names if wanted and wanted in name and name not in near]
    some = ", ".join(near[:5] or list(names)[:20])
    advice = f"did you mean {some}?" if near else f"known: {some}."
    raise ValueError(f"unknown class name {label!r}; {advice}")
