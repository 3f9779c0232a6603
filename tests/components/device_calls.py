"""Calls of pipelines of every kind, and the ways to put a pipeline onto a device."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from builders import (
    REFINERS,
    SCHEMES,
    build_parts,
    build_refiner,
    build_scheme,
    build_t5,
    build_tokenizer,
)
from codeclade import CodecladeTextPipeline

KINDS = (*SCHEMES, "CTF", "MASC", "text", "text_pairs")
GRID = 2  # four tokens: every operation is followed, which takes its time


def build(kind: str):
    """A pipeline of a scheme, of a refiner's method, or for captions."""
    if kind.startswith("text"):
        scheme = "semantic_detail" if kind == "text_pairs" else "token"
        parts = build_parts(scheme, grid_size=GRID, text=True)
        pipe = CodecladeTextPipeline(**parts, tokenizer=build_tokenizer(), text_encoder=build_t5())
        pipe.set_progress_bar_config(disable=True)
        return pipe
    if kind in REFINERS:
        refiner = build_refiner(**REFINERS[kind], grid_size=GRID)
        return build_scheme("cluster", grid_size=GRID, refiner=refiner)
    return build_scheme(kind, grid_size=GRID)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def condition(kind: str) -> dict:
    if kind.startswith("text"):
        return {"prompt": ["a red dog", "a blue house on the beach"]}
    return {"class_labels": [1, 2]}


def generate(pipe, kind):
    """Guided by the attention, with a picture of every second step."""
    shown = []

    def show(pipe, step, timestep, given):
        if step % 2:
            shown.extend(pipe.preview(given["tokens"], step + 1, generator=seeded()))

    images = pipe(
        **condition(kind),
        guidance_scale=3.0,
        guidance_schedule="attention",
        generator=seeded(),
        callback_on_step_end=show,
    ).images
    return torch.from_numpy(np.stack([np.asarray(image) for image in [*images, *shown]]))


def edit(pipe, kind):
    mask = torch.zeros(8, 8)
    mask[4:] = 1
    return pipe(
        **condition(kind),
        init_image=Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)),
        mask_image=mask,
        strength=0.9,
        generator=seeded(),
        output_type="ids",
    ).images


def redraw(pipe, kind):
    """New details of clusters, and of ids in another dtype."""
    if pipe.transformer.scheme.num_clusters(pipe.cluster_map) is None:
        pytest.skip("without clusters there is nothing to redraw")
    more = condition(kind) | {"generator": seeded()}
    clusters = torch.tensor([[[1, 2], [3, 4]]] * 2, dtype=torch.uint8)
    pairs = (2,) if pipe.vq_model.detail_codebook_size else ()
    ids = torch.randint(24, (2, GRID, GRID, *pairs), generator=seeded(), dtype=torch.int32)
    first = pipe.redraw(clusters=clusters, output_type="pt", **more).images
    second = pipe.redraw(ids=ids, output_type="ids", **more).images
    return torch.cat([first.cpu().flatten(), second.cpu().flatten()])


CALLS = {"generate": generate, "edit": edit, "redraw": redraw}


@cache
def on_the_cpu(kind: str, call: str) -> torch.Tensor:
    return CALLS[call](build(kind), kind)


def place(pipe, way: str, device: torch.device):
    """Put a pipeline onto the device, or let it go there part by part."""
    if way == "to":
        pipe.to(device)
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    if way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    if way == "group_leaf":
        pipe.enable_group_offload(device, offload_type="leaf_level")
    if way == "group_block":
        pipe.enable_group_offload(device, offload_type="block_level", num_blocks_per_group=1)


WAYS = ("to", "model", "sequential", "group_leaf", "group_block")
