"""Tokenize a dataset once into code shards (the format is in data/codes.py)."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..components.vq_model import VQModel
from ..data.atomic import new_file, write_json
from ..data.codes import HEADER, Codes
from ..data.columns import Columns
from ..data.images import LabeledImages
from ..data.messages import say
from .batches import reading_processes
from .code_shards import id_type, is_done, save_preview, split_header, tokenized
from .encode_stream import encode_stream
from .photographs import Photographs
from .processes import all_processes
from .recipe import check_settings


@dataclass(kw_only=True)
class EncodeRecipe(Photographs):
    """Settings of `codeclade encode`.

    Raises:
        ValueError: a count below 1, or an unknown precision.
    """

    caption_column: str = ""  # texts that are kept beside the codes; empty: none
    views: int = 2  # random crops and flips of every training image; validation has one, centered
    crop: float = 1.1  # largest resize factor before the random crop
    shard_size: int = 10_000  # images a shard
    batch_size: int = 32  # views that go through the tokenizer at once: bounds the memory
    mixed_precision: str = "no"  # no, fp16, bf16: of the convolutions; code search stays float32
    workers: int = 0  # processes that decode images, an encoding process; 0 = it decodes itself
    seed: int = 0  # of the random views

    @property
    def columns(self) -> Columns:
        """As those of photographs, with captions."""
        return Columns(self.image_column, self.label_column, self.caption_column)

    def __post_init__(self):
        self.check_photographs()
        check_settings(self, "image_size", "views", "shard_size", "batch_size")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be 0 or more.")
        if self.streaming and self.workers:
            raise ValueError(
                f"workers is {self.workers}; with streaming every encoding process reads itself, "
                "so it must be 0."
            )


def encode(recipe: EncodeRecipe, vq_model: VQModel, out: str | Path) -> None:
    """Tokenize the training and validation images of a source into out/train and out/validation.

    Several processes share the shards, whose codes are the same on any number of them.
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
        say(
            f"note: this tokenizer was trained on {own}x{own} pixels; images of {size}x{size} give "
            f"{size // factor}x{size // factor} tokens, not {own // factor}x{own // factor}",
            sys.stderr,
        )
    # Both splits are looked at before the first one is written.
    processes, todo = all_processes(), []
    for split in ("train", "validation"):
        if recipe.streaming:
            stream = recipe.open(split)
            folder = Path(out) / split
            header = split_header(recipe, vq_model, stream.class_names, split)
            if not is_done(folder, header):
                todo.append((stream, header, folder))
            continue
        with processes.main_process_first():  # the others find its cache
            images = recipe.open(split)
        header, folder = _header(recipe, vq_model, images, split), Path(out) / split
        if not is_done(folder, header):
            todo.append((images, header, folder))
    if not todo:
        say(f"{out} already holds these codes", sys.stderr)
    for images, header, folder in todo:
        if recipe.streaming:
            encode_stream(recipe, vq_model, images, header, folder)
        else:
            _encode_split(recipe, vq_model, images, header, folder, processes)


def _header(
    recipe: EncodeRecipe, vq_model: VQModel, images: LabeledImages, split: str
) -> dict[str, Any]:
    """The content of a split's codes.json."""
    shards = range(-(-len(images) // recipe.shard_size))
    header = split_header(recipe, vq_model, images.class_names, split) | {
        "images": len(images),
        "shards": [f"codes-{i:05d}.safetensors" for i in shards],
    }
    if recipe.caption_column:
        header["captions"] = [f"captions-{i:05d}.json" for i in shards]
    return header


def _encode_split(
    recipe: EncodeRecipe,
    vq_model: VQModel,
    images: LabeledImages,
    header: dict[str, Any],
    folder: Path,
    processes: PartialState,
) -> None:
    # The header is written before any work: an interrupted run is told by it.
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(images), recipe.shard_size)
    begun = folder / "codes.partial.json"
    keep = begun.is_file() and json.loads(begun.read_text()) == header
    processes.wait_for_everyone()  # all have read what an interrupted run wrote
    if processes.is_main_process:
        write_json(begun, header)
    processes.wait_for_everyone()

    # Shards appear whole, so one that is there with the same header is finished.
    dtype = id_type(vq_model)
    mine = slice(processes.process_index, None, processes.num_processes)
    desc, hidden = f"encode {header['split']}", not processes.is_main_process
    with tqdm(total=len(images), desc=desc, unit="image", disable=hidden) as bar:
        for number, start in list(enumerate(starts))[mine]:
            name = header["shards"][number]
            indices = range(start, min(start + recipe.shard_size, len(images)))
            if not (keep and (folder / name).is_file()):
                captions = images.captions(indices)
                if captions is not None:
                    write_json(folder / header["captions"][number], captions, indent=None)
                ids = _encode_shard(recipe, vq_model, images, indices, header, bar).to(dtype)
                with new_file(folder / name) as partial:
                    save_file({"ids": ids, "labels": images.labels[list(indices)].int()}, partial)
            bar.n = indices.stop
            bar.refresh()

    # The header under its final name says that all shards are there.
    processes.wait_for_everyone()
    if processes.is_main_process:
        begun.replace(folder / HEADER)
        save_preview(vq_model, Codes(folder), folder / "preview.png")
    processes.wait_for_everyone()


def _encode_shard(
    recipe: EncodeRecipe, vq_model: VQModel, images: LabeledImages, indices: range, header: dict,
    bar: tqdm,
) -> Tensor:  # fmt: skip
    """Ids (n, V, T) or (n, V, T, 2) of the images at `indices`."""
    views, rows = header["views"], []
    groups = _Groups(recipe, images, indices, views, header["split"] == "train")
    workers = reading_processes(recipe.workers)
    for pixels in DataLoader(groups, batch_size=None, num_workers=workers):
        parts = pixels.split(recipe.batch_size)
        rows += [tokenized(vq_model, part, recipe.mixed_precision) for part in parts]
        bar.update(len(pixels) // views)
    return torch.cat(rows).unflatten(0, (-1, views))


class _Groups(Dataset):
    """Views (n V, 3, S, S) uint8 of n images at a time, about one pass through the tokenizer."""

    def __init__(
        self, recipe: EncodeRecipe, images: LabeledImages, indices: range, views: int, random: bool
    ):
        self.recipe, self.images, self.views, self.random = recipe, images, views, random
        group = max(1, recipe.batch_size // views)
        self.groups = [indices[start : start + group] for start in range(0, len(indices), group)]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, group: int) -> Tensor:
        pixels = []
        for index in self.groups[group]:
            # A view's seed depends on the image and the recipe alone, not on shards or batches.
            first = (self.recipe.seed * len(self.images) + index) * self.views
            seeds = range(first, first + self.views) if self.random else [None]
            pixels.append(self.images.views(index, seeds))
        return torch.cat(pixels)
