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


def similar_names(wanted: str, names: Mapping[str, list[int]]) -> list[str]:
    """Up to five of the lower-case `names` that a user may mean by one that is not among them."""
    # All but a letter or two the same, or a word in common. Likeness alone would offer a cat to
    # whoever asks for a hamster.
    known = sorted((one for one in names if "," not in one), key=lambda name: names[name])
    meant = difflib.get_close_matches(wanted, known, n=3, cutoff=0.8)
    words = set(wanted.split())
    meant += [name for name in known if words & set(name.split())]
    meant += [name for name in known if len(wanted) > 3 and wanted in name]
    return list(dict.fromkeys(meant))[:5]


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
    near = similar_names(wanted, names)
    some = ", ".join(near or sorted(names, key=lambda name: names[name])[:20])
    advice = f"did you mean {some}?" if near else f"known: {some}."
    raise ValueError(f"unknown class name {label!r}; {advice}")
