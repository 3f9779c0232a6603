"""Photographs to measure against: which part of a source is used, and how many images are left.

Shapes: B images of S pixels a side.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..data.folders import open_source
from ..data.imagenet import class_names, synset_names
from ..data.images import LabeledImages, load_images

SPLITS = ("validation", "valid", "val", "test")  # held-out images, the first that there is


@dataclass
class Photographs:
    """Photographs of one source."""

    images: LabeledImages
    data: str  # name of the source, without the place on this machine
    split: str
    left_out: int  # images of the source that are not among `images`

    def __str__(self) -> str:
        count = len(self.images)
        return f"{self.data}: {count:,} photographs ({self.split}), {self.left_out:,} left out"

    def few(self, count: int) -> "Photographs":
        """At most `count` of them, evenly spread, as data sets are often sorted by class."""
        there = len(self.images)
        if there <= count:
            return self
        images = self.images.selected([i * there // count for i in range(count)])
        return Photographs(images, self.data, self.split, self.left_out + there - count)


def open_photographs(
    source: str, image_size: int, split: str | None = None, own: list[str] | None = None
) -> Photographs:
    """The photographs of a source that a measurement uses.

    Args:
        source: image folder, parquet folder or Hub dataset.
        image_size: side S of the center crops.
        split: of the source, or "all". Default: its validation or test split; a source without
            one is used whole.
        own: class names of a pipeline, in order: other classes are left out. None keeps all.

    Raises:
        ValueError: a split that the source does not have, or a class that it does not have.
    """
    parts = open_source(str(source))
    total = sum(rows.num_rows for rows in parts.values())
    if split is None:
        split = next((name for name in SPLITS if name in parts), "all")
    images = load_images(source, split, image_size, whole=True)
    if own is not None:
        classes = match_classes(images.class_names, own)
        images = load_images(source, split, image_size, classes, whole=True)
    name = Path(source).name if Path(source).exists() else str(source)
    return Photographs(images, name, split, total - len(images))


def match_classes(names: list[str], own: list[str]) -> dict[str, str]:
    """The source's name of every class of a pipeline: {source's: pipeline's}.

    Args:
        names: the source's class names; WordNet ids stand for their ImageNet names.
        own: the pipeline's names, synonyms separated by commas.

    Raises:
        ValueError: a class that the source does not have, or two that are one there.
    """
    lemmas = synset_names()
    if own == class_names() and set(lemmas) <= set(names):  # "crane" names two of the 1000
        return dict(zip(lemmas, own, strict=True))
    # Every synonym of a class of the source leads to it; the first source class keeps a synonym.
    known = {}
    for name in names:
        for synonym in [name, *name.split(","), *lemmas.get(name, "").split(",")]:
            known.setdefault(synonym.strip().lower(), name)

    # A class of the pipeline is the first of its synonyms that the source knows.
    found = {}
    for label in own:
        match = [known[s.strip().lower()] for s in label.split(",") if s.strip().lower() in known]
        if not match:
            raise ValueError(f"the data has no class {label!r}; it has {', '.join(names[:8])}, ...")
        found[match[0]] = label
    if len(found) < len(own):
        raise ValueError("two classes of the pipeline are the same class of the data.")
    return found


def imagenet_indices(own: list[str]) -> list[int] | None:
    """ImageNet's index of every class; None where one of them is no ImageNet class."""
    ids = list(synset_names())
    try:
        return [ids.index(name) for name in match_classes(ids, own)]
    except ValueError:
        return None


class Fingerprint:
    """Of 8-bit images in any order: the sum of 64 bits of every image's sha256."""

    def __init__(self):
        self.total = 0

    def add(self, images: Tensor) -> None:
        """Add images (B, 3, S, S) uint8."""
        for image in images:
            digest = hashlib.sha256(repr(tuple(image.shape)).encode() + image.numpy().tobytes())
            self.total = (self.total + int.from_bytes(digest.digest()[:8])) % 2**64

    def __str__(self) -> str:
        return f"{self.total:016x}"
