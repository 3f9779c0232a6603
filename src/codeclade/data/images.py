"""Photographs with class labels: image folders, parquet files and Hub datasets, and views of them.

A view is a square crop that is a function of the image and a seed alone.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .columns import Columns, captions_of
from .folders import ENDINGS, open_source
from .messages import is_speaker, say
from .pixels import to_pixels
from .splits import Splits

IMAGE_COLUMNS = ("image", "img")  # as data sets on the Hub name them
LABEL_COLUMNS = ("label", "labels", "fine_label")
DAMAGED = ("refuse", "skip")  # what happens to photographs that cannot be read
# What Pillow raises depends on where a file is damaged.
DAMAGE = (OSError, ValueError, SyntaxError, AttributeError, EOFError)
HELD_OUT = 0.05  # share of the images kept for validation where the source has no such split


class LabeledImages(Dataset):
    """Square RGB images with class labels.

    Items are asked for by `(index, seed)`; the seed picks the random crop and flip, and None means
    center crop, no flip. An item is `(pixels, label)`, pixels (3, S, S) uint8.
    """

    def __init__(
        self, rows, labels: Tensor, class_names: Sequence[str], image_size: int, crop: float
    ):
        self.rows, self.labels, self.class_names = rows, labels, list(class_names)
        self.image_size, self.crop = image_size, crop
        self.caption_column = ""  # of `rows`

    def captions(self, indices: Sequence[int]) -> list[str] | None:
        """Captions of some images; None: they have none."""
        if not self.caption_column:
            return None
        return captions_of(self.rows, self.caption_column, indices)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, Tensor]:
        index, seed = key
        return self.views(index, [seed])[0], self.labels[index]

    def views(self, index: int, seeds: Sequence[int | None]) -> Tensor:
        """Views (V, 3, S, S) uint8 of one image, which is decoded once for all of them.

        Raises:
            ValueError: naming an image that cannot be read.
        """
        image = self.photograph(int(index))
        return torch.stack([self.view(image, seed) for seed in seeds])

    def photograph(self, index: int) -> Image.Image:
        """One image as it is stored, RGB and upright.

        Raises:
            ValueError: naming an image that cannot be read.
        """
        try:
            return as_rgb(self.rows[index]["image"])
        except DAMAGE as error:
            raise unreadable(name_of(self.rows, index), error) from error

    def without_damaged(self) -> "LabeledImages":
        """The images that can be read; the others are named on standard error.

        Decodes every image once, which is why nobody does it unasked.

        Raises:
            ValueError: none of them can be read.
        """
        # Every image is opened once, which takes a while; those left out are named.
        good = []
        hidden = {} if is_speaker() else {"disable": True}
        for index in tqdm(range(len(self)), "look for damaged images", unit="image", **hidden):
            try:
                self.photograph(index)
            except ValueError as error:
                say(f"skipped: {str(error).split(' is no image')[0]}", sys.stderr)
            else:
                good.append(index)
        if not good:
            raise ValueError(f"none of the {len(self)} images can be read.")
        if len(good) == len(self):
            return self
        return self.selected(good)

    def selected(self, indices: list[int]) -> "LabeledImages":
        """Some of the images, in the order of their indices."""
        rows, labels = self.rows.select(indices), self.labels[indices]
        found = LabeledImages(rows, labels, self.class_names, self.image_size, self.crop)
        found.caption_column = self.caption_column
        return found

    def view(self, image: Image.Image, seed: int | None) -> Tensor:
        """One (3, S, S) uint8 crop of a PIL image."""
        return view(image, seed, self.image_size, self.crop)


def view(image: Image.Image, seed: int | None, size: int, crop: float) -> Tensor:
    """One (3, size, size) uint8 crop of an RGB image.

    Args:
        seed: of its size, place and flip; None: the center, not flipped.
        crop: largest resize factor before it.
    """
    # The order of the draws (size, place, flip) is part of what a seed means: keep it.
    random = None if seed is None else np.random.default_rng(seed)
    short = size if random is None else round(size * random.uniform(1.0, crop))
    scale = short / min(image.size)
    if scale != 1:
        # Rounding must not leave a side one pixel smaller than the crop.
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    free = image.width - size, image.height - size
    left, top = (f // 2 if random is None else int(random.integers(f + 1)) for f in free)
    array = np.asarray(image.crop((left, top, left + size, top + size)))
    if random is not None and random.random() < 0.5:
        array = array[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def unreadable(name: str, error: Exception) -> ValueError:
    """What is said of a damaged image."""
    reason = " ".join(str(error).split())[:80] or type(error).__name__
    return ValueError(
        f"{name} is no image that can be read: {reason}; repair or remove it, or set "
        "damaged_images=skip."
    )


def as_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB: turned upright, 16 bits scaled to 8, alpha over white."""
    # Cameras store how they were held; what that says is undone before anything is cropped.
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut at 255
        array = np.asarray(image).astype(np.int64)
        wide = image.mode != "I" or array.max(initial=0) > 255
        array = array // 257 if wide else array
        return Image.fromarray(array.clip(0, 255).astype(np.uint8)).convert("RGB")
    # Colors under transparent places are arbitrary, so they must not come to light.
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def name_of(rows, index: int) -> str:
    """Where an image of some rows comes from, as a message says it."""
    if hasattr(rows, "paths"):
        return str(rows.paths[index])
    from datasets import Image as ImageFeature

    # Asked for without decoding, which is what failed.
    try:
        path = rows.cast_column("image", ImageFeature(decode=False))[index]["image"]["path"]
    except (AttributeError, TypeError, KeyError):
        path = None
    return str(path) if path else f"image {index} of the data set"


def load_images(
    source: str,
    split: str,
    image_size: int,
    classes: Sequence[str] | dict[str, str] | None = None,
    crop: float = 1.0,
    whole: bool = False,
    damaged: str = "refuse",
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    splits: Splits = Splits(),  # noqa: B008 (frozen)
) -> LabeledImages:
    """Photographs from an image folder, a folder of parquet files or a Hub dataset.

    Args:
        source: a local folder (one sub-folder a class, or parquet files) or a Hub dataset id.
        split: "train" or "validation", which `splits` may rename; where the source has no
            validation split, the last 5 % of a fixed shuffle are held out.
        image_size: side S of the square crops.
        classes: names to keep, in the order of their new labels; None keeps all. A dict gives
            the source's own name first (a WordNet id, say) and then the name to use.
        crop: largest resize factor before a random crop (1.0 crops nothing off square images).
        whole: take a split by the source's own name with nothing held out of it; "all" takes all.
        damaged: "refuse" names an image that cannot be read when it is asked for; "skip" looks
            through all of them first, and leaves those out.
        columns, splits: what the source calls them.

    Unless said otherwise the image column is called image or img; the label column label, labels
    or fine_label, and holds class labels, numbers or names.

    Raises:
        ValueError: a source without images, or a split or class name it does not have.
    """
    from datasets import concatenate_datasets

    # The split: as the source has it, else a share that depends on the source alone.
    parts = open_source(str(source), columns)
    if whole and split == "all":
        rows = concatenate_datasets(list(parts.values()))
    elif whole:
        if split not in parts:
            raise ValueError(f"{source} has no split {split!r}; it has {', '.join(parts)}, all.")
        rows = parts[split]
    else:
        train, held_out = splits.chosen(str(source), list(parts))
        if held_out:
            rows = parts[train if split == "train" else held_out]
        else:
            halves = parts[train].train_test_split(test_size=HELD_OUT, seed=0)
            rows = halves["train" if split == "train" else "test"]
    column = image_column(source, rows.column_names)
    if column != "image":
        rows = rows.rename_column(column, "image")
    names, labels = _labels(source, rows)
    # A choice of classes drops rows and numbers the rest by the order of the choice.
    if classes:
        wanted = classes if isinstance(classes, dict) else {name: name for name in classes}
        new_label = {
            class_index(source, names, pair): label for label, pair in enumerate(wanted.items())
        }
        keep = [i for i, label in enumerate(labels.tolist()) if label in new_label]
        rows = rows.select(keep)
        labels = torch.tensor([new_label[labels[i].item()] for i in keep])
        names = list(wanted.values())
    images = LabeledImages(rows, labels, names, image_size, crop)
    images = images.without_damaged() if damaged == "skip" else images
    images.caption_column = columns.caption
    return images


def image_column(source: str, there: Sequence[str]) -> str:
    """Name of the column of images.

    Raises:
        ValueError: there is none.
    """
    column = next((name for name in IMAGE_COLUMNS if name in there), None)
    if column is None:
        raise ValueError(f"{source} has no 'image' column; it has {list(there)}.")
    return column


def _labels(source: str, rows) -> tuple[list[str], Tensor]:
    """Class names, and the class of every row; a source without labels is one class."""
    column = next((name for name in LABEL_COLUMNS if name in rows.column_names), None)
    if column is None:
        return ["image"], torch.zeros(len(rows), dtype=torch.int64)
    # The column is read by itself: going through the rows would decode every image.
    values = rows[column][:]
    named = getattr(rows.features[column], "names", None)
    plain = all(isinstance(value, (int, str)) for value in values)
    # Test splits of competitions have -1 for what is to be found out.
    if not plain or (named and values and min(values) < 0):
        raise ValueError(f"{source} has images without a class in its column {column!r}.")
    if named:
        return list(named), torch.tensor(values, dtype=torch.int64)
    # Without names classes are numbered in order: of the numbers, or of the alphabet.
    if len({type(value) for value in values}) > 1:
        raise ValueError(f"{source} has numbers and names in its column {column!r}; use one.")
    known = {value: number for number, value in enumerate(sorted(set(values)))}
    return [str(value) for value in known], torch.tensor([known[value] for value in values])


def class_index(source: str, names: list[str], pair: tuple[str, str]) -> int:
    """The source's label of a class.

    Args:
        names: the source's class names.
        pair: the source's own name of the class, or else the name to use.

    Raises:
        ValueError: a class that the source does not have.
    """
    for candidate in pair:
        if candidate in names:
            return names.index(candidate)
    raise ValueError(
        f"{source} has no class {pair[0]!r}; it has {', '.join(names)}. For all of them give "
        "classes=."
    )


def plain_batches(
    dataset: LabeledImages, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """All items once, in order, center-cropped: (images uint8, labels).

    Of several processes, each gets its own share of the items.
    """
    indices = range(rank, len(dataset), world_size)
    for start in range(0, len(indices), batch_size):
        items = [dataset[i, None] for i in indices[start : start + batch_size]]
        yield torch.stack([image for image, _ in items]), torch.stack([label for _, label in items])


class _Files:
    """Image files as rows of a dataset, opened when asked for."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __getitem__(self, index: int) -> dict[str, Image.Image]:
        return {"image": Image.open(self.paths[index])}


def photographs(folder: str | Path, count: int, image_size: int) -> Tensor:
    """Pixels (B, 3, S, S) of up to `count` center-cropped photographs, spread evenly over a folder.

    Args:
        folder: image files at any depth, or parquet files, of which the validation images are used.

    Raises:
        ValueError: a folder without images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of images.")
    # Sorted, because the file system lists files in an order of its own.
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if paths:
        labels = torch.zeros(len(paths), dtype=torch.int64)
        images = LabeledImages(_Files(paths), labels, ["image"], image_size, 1.0)
    elif any(folder.glob("*.parquet")):
        images = load_images(str(folder), "validation", image_size)
    else:
        raise ValueError(f"{folder} holds no images ({', '.join(ENDINGS)} or .parquet).")
    count = min(count, len(images))
    # Files of one class stand together, so the first ones would show one class alone.
    chosen = [i * len(images) // count for i in range(count)]
    return to_pixels(torch.stack([images[i, None][0] for i in chosen]))
