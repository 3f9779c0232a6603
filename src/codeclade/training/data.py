"""Training data: photographs with class labels, and code shards made of them by `encode`.

Every batch is a function of (seed, step) alone: resuming at step s needs no sampler state, and the
number of data workers changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

HELD_OUT = 0.05  # share of the images kept for validation where the source has no such split


class LabelledImages(Dataset):
    """Square RGB images with class labels.

    Items are asked for by `(index, seed)`; the seed picks the random crop and flip, and None means
    centre crop, no flip. An item is `(pixels, label)`, pixels (3, S, S) uint8.
    """

    def __init__(
        self, rows, labels: Tensor, class_names: Sequence[str], image_size: int, crop: float
    ):
        self.rows, self.labels, self.class_names = rows, labels, list(class_names)
        self.image_size, self.crop = image_size, crop

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, Tensor]:
        index, seed = key
        image = self.rows[int(index)]["image"].convert("RGB")
        return self.view(image, seed), self.labels[index]

    def view(self, image: Image.Image, seed: int | None) -> Tensor:
        """One (3, S, S) uint8 crop of a PIL image."""
        size = self.image_size
        random = None if seed is None else np.random.default_rng(seed)
        short = size if random is None else round(size * random.uniform(1.0, self.crop))
        scale = short / min(image.size)
        if scale != 1:
            width, height = (max(size, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        free = image.width - size, image.height - size
        left, top = (f // 2 if random is None else int(random.integers(f + 1)) for f in free)
        array = np.asarray(image.crop((left, top, left + size, top + size)))
        if random is not None and random.random() < 0.5:
            array = array[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images (B, 3, S, S) as float32 pixels in [-1, 1]."""
    return images.float() / 127.5 - 1


def load_images(
    source: str,
    split: str,
    image_size: int,
    classes: Sequence[str] | dict[str, str] | None = None,
    crop: float = 1.0,
) -> LabelledImages:
    """Photographs from an image folder, a folder of parquet files or a Hub dataset.

    Args:
        source: a local folder (one sub-folder a class, or parquet files) or a Hub dataset id.
        split: "train" or "validation"; where the source has no validation split, the last 5 % of
            a fixed shuffle are held out.
        image_size: side S of the square crops.
        classes: names to keep, in the order of their new labels; None keeps all. A dict gives
            the source's own name first (a WordNet id, say) and then the name to use.
        crop: largest resize factor before a random crop (1.0 crops nothing off square images).

    Raises:
        ValueError: a source without images, or a class name it does not have.
    """
    from datasets import load_dataset

    parts = load_dataset(str(source))
    validation = next((name for name in ("validation", "valid", "val") if name in parts), None)
    if validation:
        rows = parts["train" if split == "train" else validation]
    else:
        halves = parts["train"].train_test_split(test_size=HELD_OUT, seed=0)
        rows = halves["train" if split == "train" else "test"]
    if "image" not in rows.column_names:
        raise ValueError(f"{source} has no 'image' column; it has {rows.column_names}.")
    if "label" in rows.column_names:
        names = rows.features["label"].names
        labels = torch.tensor(rows["label"][:])
    else:
        names, labels = ["image"], torch.zeros(len(rows), dtype=torch.int64)
    if classes:
        wanted = classes if isinstance(classes, dict) else {name: name for name in classes}
        new_label = {
            _class_index(source, names, own, name): label
            for label, (own, name) in enumerate(wanted.items())
        }
        keep = [i for i, label in enumerate(labels.tolist()) if label in new_label]
        rows = rows.select(keep)
        labels = torch.tensor([new_label[labels[i].item()] for i in keep])
        names = list(wanted.values())
    return LabelledImages(rows, labels, names, image_size, crop)


def _class_index(source: str, names: list[str], own: str, name: str) -> int:
    for candidate in (own, name):
        if candidate in names:
            return names.index(candidate)
    raise ValueError(
        f"{source} has no class {own!r}; it has {', '.join(names)}. For all of them give classes=."
    )


@dataclass
class StepSampler:
    """Batches of `(index, seed)` keys for steps start..end-1, this rank's share of each.

    Epoch e is the permutation of `size` items drawn with seed (seed, e); batches run across epoch
    borders, so every item is visited exactly once an epoch.
    """

    size: int  # number of items
    batch_size: int  # global batch, all ranks together
    seed: int
    start: int
    end: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, None
        for step in range(self.start, self.end):
            keys = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
                keys.append((int(order[position % self.size]), self.seed * 1_000_003 + position))
            yield keys[self.rank :: self.world_size]


def step_loader(dataset: Dataset, sampler: StepSampler, workers: int = 0) -> DataLoader:
    """Batches of `dataset` in the order of `sampler`."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else every start draws from the state dropout resumes from
    )


def plain_batches(dataset: LabelledImages, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All items once, in order, centre-cropped: (images uint8, labels)."""
    for start in range(0, len(dataset), batch_size):
        items = [dataset[i, None] for i in range(start, min(start + batch_size, len(dataset)))]
        yield torch.stack([image for image, _ in items]), torch.stack([label for _, label in items])
