"""Tokenize a dataset once into code shards (the format is in data/codes.py)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..components.cluster_map import codebook_sketch
from ..components.vq_model import VQModel
from ..data.atomic import new_file, write_json
from ..data.codes import HEADER, Codes
from ..data.images import DAMAGED, LabeledImages, load_images
from ..data.pixels import to_pixels
from ..data.sheets import image_grid
from .recipe import PRECISIONS, check_settings


@dataclass(kw_only=True)
class EncodeRecipe:
    """Settings of `codeclade encode`.

    Raises:
        ValueError: a count below 1, or an unknown precision.
    """

    data: str  # image folder, parquet folder or Hub dataset
    image_size: int  # pixels a side
    classes: list | dict = field(default_factory=list)  # names to use; empty = all
    views: int = 2  # random crops and flips of every training image; validation has one, centered
    crop: float = 1.1  # largest resize factor before the random crop
    shard_size: int = 10_000  # images a shard
    batch_size: int = 32  # views that go through the tokenizer at once: bounds the memory
    mixed_precision: str = "no"  # no, fp16, bf16: of the convolutions; code search stays float32
    seed: int = 0  # of the random views
    damaged_images: str = "refuse"  # refuse names the first and ends; skip looks for them first

    def __post_init__(self):
        if self.damaged_images not in DAMAGED:
            choices = ", ".join(DAMAGED)
            raise ValueError(
                f"damaged_images is {self.damaged_images!r}; it must be one of {choices}."
            )
        check_settings(self, "image_size", "views", "shard_size", "batch_size")


def encode(recipe: EncodeRecipe, vq_model: VQModel, out: str | Path) -> None:
    """Tokenize the training and validation images of a source into out/train and out/validation.

    Finished shards of an interrupted run with the same recipe are kept. preview.png shows a few
    images decoded from their codes, under their labels' order in codes.json, to check by eye.
    """
    for split in ("train", "validation"):
        source = recipe.data, split, recipe.image_size, recipe.classes, recipe.crop
        images = load_images(*source, damaged=recipe.damaged_images)
        _encode_split(recipe, vq_model, images, split, Path(out) / split)


def _encode_split(
    recipe: EncodeRecipe, vq_model: VQModel, images: LabeledImages, split: str, folder: Path
) -> None:
    # The header is known before any work: an interrupted run is told by it.
    folder.mkdir(parents=True, exist_ok=True)
    views = recipe.views if split == "train" else 1
    starts = range(0, len(images), recipe.shard_size)
    header = {
        "split": split,
        "images": len(images),
        "views": views,
        "grid_size": recipe.image_size // vq_model.downsample,
        "codebook_size": vq_model.codebook_size,
        "detail_codebook_size": vq_model.detail_codebook_size,
        "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
        "class_names": images.class_names,
        "recipe": asdict(recipe),
        "shards": [f"codes-{i:05d}.safetensors" for i in range(len(starts))],
    }
    begun = folder / "codes.partial.json"
    keep = begun.is_file() and json.loads(begun.read_text()) == header
    write_json(begun, header)

    # Shards appear whole, so one that is there with the same header is finished.
    largest = max(vq_model.codebook_size, vq_model.detail_codebook_size or 0)
    dtype = torch.uint16 if largest <= 2**16 else torch.int32
    with tqdm(total=len(images), desc=f"encode {split}", unit="image") as bar:
        for start, name in zip(starts, header["shards"], strict=True):
            indices = range(start, min(start + recipe.shard_size, len(images)))
            if not (keep and (folder / name).is_file()):
                ids = _encode_shard(recipe, vq_model, images, indices, header, bar).to(dtype)
                with new_file(folder / name) as partial:
                    save_file({"ids": ids, "labels": images.labels[list(indices)].int()}, partial)
            bar.n = indices.stop
            bar.refresh()

    # The header under its final name says that all shards are there.
    begun.replace(folder / HEADER)
    _save_preview(vq_model, Codes(folder), folder / "preview.png")


def _encode_shard(
    recipe: EncodeRecipe, vq_model: VQModel, images: LabeledImages, indices: range, header: dict,
    bar: tqdm,
) -> Tensor:  # fmt: skip
    """Ids (n, V, T) or (n, V, T, 2) of the images at `indices`."""
    views, rows = header["views"], []
    group = max(1, recipe.batch_size // views)  # images whose views make about one pass
    for start in range(indices.start, indices.stop, group):
        batch = range(start, min(start + group, indices.stop))
        pixels = []
        for index in batch:
            # A view's seed depends on the image and the recipe alone, not on shards or batches.
            first = (recipe.seed * len(images) + index) * views
            seeds = range(first, first + views) if header["split"] == "train" else [None]
            pixels.append(images.views(index, seeds))
        parts = torch.cat(pixels).split(recipe.batch_size)
        rows += [_ids(vq_model, part, recipe.mixed_precision) for part in parts]
        bar.update(len(batch))
    return torch.cat(rows).unflatten(0, (-1, views))


@torch.no_grad()
def _ids(vq_model: VQModel, images: Tensor, precision: str) -> Tensor:
    """Ids (B, T) or (B, T, 2) of uint8 images (B, 3, S, S), in one forward pass."""
    device, dtype = vq_model.device, PRECISIONS[precision]
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        ids = vq_model.encode(to_pixels(images.to(device)).to(vq_model.dtype)).ids
    return ids.flatten(1, 2).cpu()


@torch.no_grad()
def _save_preview(vq_model: VQModel, codes: Codes, path: Path, count: int = 8) -> None:
    chosen = range(0, len(codes), max(1, len(codes) // count))
    ids = torch.stack([codes[i, None][0] for i in chosen])[:count]
    with new_file(path) as partial:
        image_grid([vq_model.decode(ids.to(vq_model.device))]).save(partial)
