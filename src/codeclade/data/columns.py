"""Columns of a data set under names of our own: image, label, caption.

Parquet files, webdataset tars and data sets on the Hub name their columns as they like; what they
call them is a setting. Classes are numbered over all splits together, so that a class that one
split lacks shifts no number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LABELS = ("label", "labels", "fine_label")  # where nothing is said


@dataclass(frozen=True)
class Columns:
    """What a source calls its columns; empty: the usual names.

    Args:
        image: of images, of file names or of bytes.
        label: of class labels, whole numbers or names.
        caption: of texts, or of lists of texts of which the first is taken; empty: no captions.
    """

    image: str = ""
    label: str = ""
    caption: str = ""


def renamed(source: str, parts, columns: Columns):
    """The splits of a data set with columns "image" and "label", and classes that have names.

    Raises:
        ValueError: a column that is not there.
    """
    from datasets import ClassLabel

    parts = our_columns(source, parts, columns)
    features = next(iter(parts.values())).features
    label = "label" if columns.label else next((name for name in LABELS if name in features), None)
    if label is None or isinstance(features[label], ClassLabel):
        return parts
    return _with_class_names(parts, label)


def our_columns(source: str, parts, columns: Columns):
    """The splits of a data set, also of a streamed one, with columns "image" and "label".

    Raises:
        ValueError: a column that is not there.
    """
    from datasets import Image

    there = next(iter(parts.values())).column_names or []
    for given in (columns.image, columns.label, columns.caption):
        if given and given not in there:
            raise ValueError(f"{source} has no column {given!r}; it has {', '.join(there)}.")
    for given, ours in ((columns.image, "image"), (columns.label, "label")):
        if given and given != ours:
            if ours in there:
                parts = parts.remove_columns(ours)
            parts = parts.rename_column(given, ours)
    # File names and bytes become images when a row is asked for.
    features = next(iter(parts.values())).features
    if columns.image and not isinstance(features["image"], Image):
        parts = parts.cast_column("image", Image())
    return parts


def _with_class_names(parts, column: str):
    """Numbers or names in a column as class labels, in order of the numbers or the alphabet."""
    from datasets import ClassLabel

    values = {name: part[column][:] for name, part in parts.items()}
    found = {value for part in values.values() for value in part}
    kinds = {type(value) for value in found}
    if kinds not in ({int}, {str}):
        return parts  # what reads labels says what is wrong with them
    names = sorted(found)
    number = {value: index for index, value in enumerate(names)}
    feature = ClassLabel(names=[str(value) for value in names])
    for name, part in parts.items():
        encoded = [number[value] for value in values[name]]
        parts[name] = part.remove_columns(column).add_column(column, encoded, feature=feature)
    return parts


def captions_of(rows, column: str, indices: Sequence[int]) -> list[str]:
    """Captions of some rows of a data set.

    Raises:
        ValueError: one that is no text.
    """
    # The column alone is read: going through the rows would decode the images.
    found = rows.select_columns([column])[list(indices)][column]
    return [
        caption_of(value, column, f"image {index}")
        for index, value in zip(indices, found, strict=True)
    ]


def caption_of(value, column: str, name: str = "an image") -> str:
    """The caption that a column holds: a text, or the first one of a list.

    Raises:
        ValueError: naming the image, where it is no text.
    """
    text = value[0] if isinstance(value, list) and value else value
    if not isinstance(text, str):
        raise ValueError(f"{name} has {text!r} in its column {column!r}, not a text.")
    return text
