"""Tokenize a data set that is read as it arrives into code shards (`encode streaming=true`).

How many images there are is known at the end, and which process has which follows from the shards
of the source, so every process writes shards of its own numbers; the header joins them. The views
of an image depend on the image and the recipe alone.
"""

import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..components.vq_model import VQModel
from ..data.atomic import new_file, write_json
from ..data.codes import HEADER, Codes
from ..data.images import view
from ..data.streaming import ImageStream, Row, seed_of
from .code_shards import id_type, save_preview, tokenized
from .processes import all_processes

PARTIAL = "codes.partial.json"
OURS = ("codes-????-?????.safetensors", "captions-????-?????.json")  # process, shard


def encode_stream(
    recipe, vq_model: VQModel, stream: ImageStream, header: dict[str, Any], folder: Path
) -> None:
    """Write the code shards of one split; finished shards of an interrupted run are kept.

    Args:
        recipe: an `EncodeRecipe`.
        header: of `split_header`.

    Raises:
        ValueError: a split of which no image can be read.
    """
    # An interrupted run is told by its header, with which the shards of as many processes agree.
    processes = all_processes()
    rank, world_size = processes.process_index, processes.num_processes
    folder.mkdir(parents=True, exist_ok=True)
    begun, made_by = folder / PARTIAL, header | {"processes": world_size}
    keep = begun.is_file() and json.loads(begun.read_text()) == made_by
    processes.wait_for_everyone()
    if processes.is_main_process:
        for path in [] if keep else [path for name in OURS for path in folder.glob(name)]:
            path.unlink()
        write_json(begun, made_by)
    processes.wait_for_everyone()

    # Shards of so many rows each; the last one has fewer, and ends the stream.
    rows = stream.rows(rank, world_size)
    with tqdm(desc=f"encode {header['split']}", unit="image", disable=rank != 0) as bar:
        for number in count():
            share = islice(rows, recipe.shard_size)
            place = folder / f"codes-{rank:04d}-{number:05d}.safetensors"
            if keep and place.is_file():
                read = sum(1 for _ in share)
                bar.update(read)
            else:
                read = _encode_shard(recipe, vq_model, stream, share, header, place, bar)
            if read < recipe.shard_size:
                break

    # The header under its final name says that all shards are there.
    processes.wait_for_everyone()
    if processes.is_main_process:
        write_json(folder / HEADER, header | _found(folder))
        begun.unlink()
        save_preview(vq_model, Codes(folder), folder / "preview.png")
    processes.wait_for_everyone()


def _found(folder: Path) -> dict[str, Any]:
    """The fields of codes.json that follow from the shards."""
    shards, images = sorted(folder.glob(OURS[0])), 0
    if not shards:
        raise ValueError(f"there is no image that can be read for {folder}.")
    for path in shards:
        with safe_open(path, framework="pt") as file:
            images += file.get_slice("labels").get_shape()[0]
    found = {"images": images, "shards": [path.name for path in shards]}
    captions = sorted(path.name for path in folder.glob(OURS[1]))
    return found | ({"captions": captions} if captions else {})


def _encode_shard(
    recipe, vq_model: VQModel, stream: ImageStream, share: Iterator[tuple[Row, int]],
    header: dict[str, Any], place: Path, bar: tqdm,
) -> int:  # fmt: skip
    """Encode the images of `share` into the file `place`; how many rows were read."""
    views, random = header["views"], header["split"] == "train"
    ids: list[Tensor] = []
    labels, captions, read = [], [], 0
    # So many images at a time as fill one batch with their views.
    while some := list(islice(share, max(1, recipe.batch_size // views))):
        read += len(some)
        pixels = []
        for row, label in some:
            image = stream.photograph(row)
            # A damaged photograph, where the recipe lets it be left out.
            if image is None:
                continue
            first = seed_of(row, recipe.seed)
            seeds = range(first, first + views) if random else [None]
            pixels += [view(image, seed, recipe.image_size, recipe.crop) for seed in seeds]
            labels.append(label)
            captions += stream.captions([row])
        if pixels:
            parts = torch.stack(pixels).split(recipe.batch_size)
            ids += [tokenized(vq_model, part, recipe.mixed_precision) for part in parts]
        bar.update(len(some))
    if not labels:
        return read

    # Captions first: the shard itself says that all of it is there.
    if captions:
        name = place.name.replace("codes-", "captions-").replace(".safetensors", ".json")
        write_json(place.with_name(name), captions, indent=None)
    content = {"ids": torch.cat(ids).unflatten(0, (-1, views)).to(id_type(vq_model))}
    with new_file(place) as partial:
        save_file(content | {"labels": torch.tensor(labels, dtype=torch.int32)}, partial)
    return read
