"""Photographs of a data set that is read as it arrives, without being downloaded whole.

Nobody knows how many there are before the end. Rows come with encoded images, so that a shuffle
buffer is small and rows that are passed over are never decoded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from .columns import LABELS, Columns, caption_of, our_columns
from .folders import check_there
from .images import DAMAGE, LabeledImages, as_rgb, class_index, image_column, unreadable
from .splits import Splits

Row = dict[str, Any]


class ImageStream:
    """Photographs of one split, in the order of the source or shuffled; see `open_stream`.

    Args:
        rows: a streamed data set of `datasets` with columns "image", encoded, and maybe `label`.
        labels: new label of every label of the source; rows with another one are left out. None:
            all rows are of one class.
        label: name of the column.
        damaged: "refuse" or "skip" images that cannot be read.
        caption: name of the column of captions; empty: none.
    """

    def __init__(
        self,
        rows,
        class_names: Sequence[str],
        labels: dict[int, int] | None,
        label: str,
        damaged: str,
        caption: str,
    ):
        self.source_rows, self.class_names = rows, list(class_names)
        self.labels, self.label_column = labels, label
        self.damaged, self.caption_column = damaged, caption

    def rows(
        self,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        epoch: int = 0,
        buffer: int = 1,
    ) -> Iterator[tuple[Row, int]]:
        """Rows with their new labels, this process's share of them.

        Shards of the source are shared where their number allows it, else rows in turn.

        Args:
            seed: of the order of shards, and of rows within `buffer` of them; None: in order.
            epoch: another one has another order.
        """
        from datasets.distributed import split_dataset_by_node

        rows = self.source_rows
        if seed is not None:
            rows = rows.shuffle(seed=seed, buffer_size=buffer)
        rows = split_dataset_by_node(rows, rank, world_size)
        rows.set_epoch(epoch)  # of the share, which forgets that of the whole
        for row in rows:
            label = 0 if self.labels is None else self.labels.get(row[self.label_column])
            if label is not None:
                yield row, label

    def photograph(self, row: Row) -> Image.Image | None:
        """The image of a row, RGB and upright; None for a damaged one that is skipped.

        Raises:
            ValueError: a damaged image that is refused.
        """
        from datasets import Image as ImageFeature

        try:
            return as_rgb(ImageFeature().decode_example(row["image"]))
        except DAMAGE as error:
            if self.damaged == "skip":
                return None
            name = row["image"].get("path") if row["image"] else None
            raise unreadable(name or "an image of the data set", error) from error

    def captions(self, rows: Sequence[Row]) -> list[str]:
        """Captions of some rows; none where there are none.

        Raises:
            ValueError: one that is no text.
        """
        column = self.caption_column
        return [caption_of(row[column], column) for row in rows] if column else []

    def first(self, count: int, image_size: int) -> LabeledImages:
        """The first `count` photographs that can be read, kept encoded in memory."""
        found = [(row, label) for row, label in islice(self.rows(), count) if self.photograph(row)]
        rows, labels = [row for row, _ in found], [label for _, label in found]
        kept = _Kept(self, rows)
        return LabeledImages(kept, torch.tensor(labels), self.class_names, image_size, 1.0)


class _Kept:
    """Rows of a stream that are decoded when asked for."""

    def __init__(self, stream: ImageStream, rows: list[Row]):
        self.stream, self.kept = stream, rows

    def __getitem__(self, index: int) -> Row:
        return {"image": self.stream.photograph(self.kept[index])}


class RandomViews(IterableDataset):
    """Endless random views of a stream: `(pixels, label)`, pixels (3, S, S) uint8.

    What comes is a function of the seed, the share and the place alone: a resumed run passes over
    the images that it has had.

    Args:
        view: maps an image and a seed to pixels.
        share: (number of this process, number of processes).
        passed: images of this share to pass over.
        buffer: rows that are shuffled among each other.

    Raises:
        ValueError: while iterating, a share without images.
    """

    def __init__(
        self, stream: ImageStream, view, seed: int, share: tuple[int, int], passed: int, buffer: int
    ):
        self.stream, self.view, self.seed = stream, view, seed
        self.share, self.passed, self.buffer = share, passed, buffer

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        rank, world_size = self.share
        place, epoch = 0, 0
        while True:
            before = place
            for row, label in self.stream.rows(rank, world_size, self.seed, epoch, self.buffer):
                # Places are counted in images that can be read, so where damaged ones are skipped
                # all of them are looked at.
                passed = place < self.passed
                image = None
                if not passed or self.stream.damaged == "skip":
                    image = self.stream.photograph(row)
                    if image is None:
                        continue
                if not passed:
                    yield self.view(image, self.seed * 1_000_003 + place * world_size + rank), label
                place += 1
            if place == before:
                raise ValueError(f"process {rank} of {world_size} gets no image of the stream.")
            epoch += 1


def seed_of(row: Row, seed: int) -> int:
    """A seed for the views of one image: a function of its bytes and `seed` alone."""
    content = row["image"].get("bytes") or str(row["image"].get("path")).encode()
    return int.from_bytes(hashlib.sha256(f"{seed} ".encode() + content).digest()[:7])


def open_stream(
    source: str,
    split: str,
    classes: Sequence[str] | dict[str, str] | None = None,
    damaged: str = "refuse",
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    splits: Splits = Splits(),  # noqa: B008 (frozen)
) -> ImageStream:
    """Photographs of a Hub dataset or a folder of parquet files or tars, read as they arrive.

    Args:
        split: "train" or "validation"; `splits` says what the source calls them.
        classes, damaged, columns: as in `load_images`.

    Raises:
        ValueError: a source without images, without a split to hold out, or whose labels have no
            names, which only all rows together would give.
    """
    from datasets import ClassLabel, load_dataset
    from datasets import Image as ImageFeature

    check_there(str(source))
    parts = load_dataset(str(source), streaming=True)
    # A stream cannot be divided by chance, so its parts must be named.
    train, held_out = splits.chosen(str(source), list(parts))
    if held_out is None:
        raise ValueError(
            f"{source} has no validation split; it has {', '.join(parts)}. A streamed data set "
            "needs one to hold out: name it with validation_split=."
        )
    rows = our_columns(str(source), parts, columns)[train if split == "train" else held_out]
    # Images stay encoded until they are asked for; their column gets the name that is ours.
    if rows.features is None:
        raise ValueError(f"{source} does not say which columns it has; read it without streaming.")
    column = image_column(source, list(rows.features))
    rows = rows if column == "image" else rows.rename_column(column, "image")
    rows = rows.cast_column("image", ImageFeature(decode=False))

    # Labels with names, or none at all.
    label = next((name for name in LABELS if name in rows.features), "")
    names, labels = ["image"], None
    if label:
        if not isinstance(rows.features[label], ClassLabel):
            raise ValueError(
                f"the labels of {source} have no names in its column {label!r}, so their number is "
                "not known while it is streamed; read it without streaming."
            )
        names = list(rows.features[label].names)
        labels = {number: number for number in range(len(names))}
    # Some classes of all, in the order and with the names that were asked for.
    if classes:
        wanted = classes if isinstance(classes, dict) else {name: name for name in classes}
        pairs = enumerate(wanted.items())
        labels = {class_index(source, names, pair): number for number, pair in pairs}
        names = list(wanted.values())
    return ImageStream(rows, names, labels, label, damaged, columns.caption)
