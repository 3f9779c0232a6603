"""Tokenize a dataset once into code shards (the format is in data/codes.py)."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..components.cluster_map import codebook_sketch
from ..components.vq_model import VQModel
from ..components.weight_files import read_json, shortened
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

    Finished shards of an interrupted run with the same recipe are kept, and so are finished codes.
    preview.png shows a few images decoded from their codes, under their labels' order in
    codes.json, to check by eye.

    Raises:
        ValueError: images that the tokenizer cannot cut into tokens, or a folder with the codes of
            another recipe, tokenizer or data set.
    """
    size, factor, own = recipe.image_size, vq_model.downsample, vq_model.config["sample_size"]
    if size % factor:
        raise ValueError(
            f"image_size is {size}; this tokenizer needs a multiple of {factor}, as its own {own}."
        )
    # Published models do this on purpose (LlamaGen at 384), everybody else by mistake.
    if size != own:
        print(
            f"note: this tokenizer was trained on {own}x{own} pixels; images of {size}x{size} give "
            f"{size // factor}x{size // factor} tokens, not {own // factor}x{own // factor}",
            file=sys.stderr,
        )
    # Both splits are looked at before the first one is written.
    todo = []
    for split in ("train", "validation"):
        source = recipe.data, split, recipe.image_size, recipe.classes, recipe.crop
        images = load_images(*source, damaged=recipe.damaged_images)
        header, folder = _header(recipe, vq_model, images, split), Path(out) / split
        if not _is_done(folder, header):
            todo.append((images, header, folder))
    if not todo:
        print(f"{out} already holds these codes", file=sys.stderr)
    for images, header, folder in todo:
        _encode_split(recipe, vq_model, images, header, folder)


def _header(
    recipe: EncodeRecipe, vq_model: VQModel, images: LabeledImages, split: str
) -> dict[str, Any]:
    """The content of a split's codes.json."""
    return {
        "split": split,
        "images": len(images),
        "views": recipe.views if split == "train" else 1,
        "grid_size": recipe.image_size // vq_model.downsample,
        "codebook_size": vq_model.codebook_size,
        "detail_codebook_size": vq_model.detail_codebook_size,
        "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
        "class_names": images.class_names,
        "recipe": asdict(recipe),
        "shards": [
            f"codes-{i:05d}.safetensors" for i in range(-(-len(images) // recipe.shard_size))
        ],
    }


def _is_done(folder: Path, header: dict[str, Any]) -> bool:
    """Whether a folder holds the codes of a header already.

    Raises:
        ValueError: it holds finished codes of another header.
    """
    if not (folder / HEADER).is_file():
        return False
    before = read_json(folder / HEADER)
    # Of the recipe only what changes codes, and nothing that older versions did not write.
    recipe, now = before.get("recipe") or {}, header["recipe"]
    differ = [key for key in now if key in recipe and recipe[key] != now[key]]
    differ = [key for key in differ if key != "batch_size"]
    differ += [name for name in header if name != "recipe" and before.get(name) != header[name]]
    if differ:
        # A sketch is a fingerprint of the codebook; in words it is the tokenizer.
        said = dict.fromkeys("tokenizer" if n == "codebook_sketch" else n for n in differ)
        raise ValueError(
            f"{folder} holds other codes ({shortened(', '.join(said))} differ); give another "
            "--out, or delete them first."
        )
    return True


def _encode_split(
    recipe: EncodeRecipe,
    vq_model: VQModel,
    images: LabeledImages,
    header: dict[str, Any],
    folder: Path,
) -> None:
    # The header is written before any work: an interrupted run is told by it.
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(images), recipe.shard_size)
    begun = folder / "codes.partial.json"
    keep = begun.is_file() and json.loads(begun.read_text()) == header
    write_json(begun, header)

    # Shards appear whole, so one that is there with the same header is finished.
    largest = max(vq_model.codebook_size, vq_model.detail_codebook_size or 0)
    dtype = torch.uint16 if largest <= 2**16 else torch.int32
    with tqdm(total=len(images), desc=f"encode {header['split']}", unit="image") as bar:
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
