"""Pipelines that keep their parts on another device than their inputs, in every way diffusers has.

The second device is simulated, see tests/simulated_device.py; each result must be the CPU's own.
"""

import itertools
from functools import cache

import accelerate
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
from simulated_device import DEVICE, simulated

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


def place(pipe, way: str, device: torch.device = DEVICE):
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


def in_default_run(kind: str, way: str, call: str) -> bool:
    """Every kind goes to the device; in every way those with most parts and buffers alone."""
    most = {"text_pairs": CALLS, "MASC": ("generate",), "cluster_token": ("generate",)}
    return way == "to" or call in most.get(kind, ())


PLACED = [
    pytest.param(*case, marks=() if in_default_run(*case) else pytest.mark.slow)
    for case in itertools.product(KINDS, WAYS, CALLS)
]


@pytest.mark.parametrize(("kind", "way", "call"), PLACED)
def test_a_call_gives_what_it_gives_on_the_cpu(kind, way, call):
    expected = on_the_cpu(kind, call)
    with simulated():
        pipe = build(kind)
        place(pipe, way)
        for _ in range(1 + (call == "generate")):  # what a call leaves behind must serve the next
            torch.testing.assert_close(CALLS[call](pipe, kind).cpu(), expected)


def tokens_of(scheme: str) -> torch.Tensor:
    pairs = (2,) if scheme == "semantic_detail" else ()
    return torch.randint(12, (2, 4, *pairs), generator=seeded())


def loss_and_logits(model, tokens):
    output = model(tokens[:, :-1], torch.tensor([1, 2]), labels=tokens)
    logits = output.detail_logits if output.logits is None else output.logits
    return output.loss.cpu(), logits.cpu()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_buffers_can_be_offloaded_too(scheme):
    tokens = tokens_of(scheme)
    expected = loss_and_logits(build_parts(scheme, grid_size=GRID)["transformer"], tokens)
    with simulated(), torch.no_grad():
        model = build_parts(scheme, grid_size=GRID)["transformer"]
        accelerate.cpu_offload(model, DEVICE, offload_buffers=True)
        torch.testing.assert_close(loss_and_logits(model, tokens), expected)


@pytest.mark.parametrize("there", ["embedding", "blocks", "head"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_generator_can_be_spread_over_two_devices(scheme, there):
    parts = {
        "embedding": ("token_embedding", "prefix"),
        "blocks": ("layers.1",),
        "head": ("norm", "head"),
    }[there]
    tokens = tokens_of(scheme)
    expected = loss_and_logits(build_parts(scheme, grid_size=GRID)["transformer"], tokens)
    with simulated(), torch.no_grad():
        model = build_parts(scheme, grid_size=GRID)["transformer"]
        names = {"layers.0", "layers.1", *(n for n, _ in model.named_children() if n != "layers")}
        places = {name: DEVICE if name in parts else torch.device("cpu") for name in names}
        accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)
        torch.testing.assert_close(loss_and_logits(model, tokens), expected)


@pytest.mark.parametrize("kind", ["token", "CTF"])
def test_labels_may_lie_on_another_device_than_the_model(kind):
    with simulated(), torch.no_grad():
        if kind == "CTF":
            model, mapping = build_refiner(**REFINERS["CTF"]), torch.arange(32) % 12
            given = (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([1]), None, mapping)
            labels = torch.tensor([[0, 12, 24, 0]])
        else:
            model, labels = build_parts(kind)["transformer"], torch.tensor([[1, 2]])
            given = (labels[:, :-1], torch.tensor([1]))
        expected = model(*given, labels=labels).loss
        moved = [one if one is None else one.to(DEVICE) for one in given]
        loss = model.to(DEVICE)(*moved, labels=labels).loss
        torch.testing.assert_close(loss.cpu(), expected)


def test_a_cluster_map_answers_on_the_device_of_the_question():
    with simulated():
        cluster_map = build_parts("cluster")["cluster_map"]
        ids = torch.arange(32, dtype=torch.uint8)
        for moved in (cluster_map, cluster_map.to(DEVICE)):
            for given in (ids, ids.to(DEVICE)):
                clusters = moved.to_clusters(given)
                members = moved.draw_members(clusters, generator=seeded())
                assert clusters.device == members.device == given.device
                assert torch.equal(moved.to_clusters(members), clusters)


def test_the_simulated_device_refuses_what_a_second_device_refuses():
    with simulated():
        there = torch.ones(3, device=DEVICE)
        layer = torch.nn.Linear(3, 3).to(DEVICE)
        assert there.device == layer(there).device == DEVICE and there.cpu().device.type == "cpu"
        for mixed in (lambda: there + torch.ones(3), lambda: layer(torch.ones(3)), there.numpy):
            with pytest.raises((RuntimeError, TypeError), match=r"same device|numpy"):
                mixed()
        assert (there * torch.tensor(2.0))[torch.tensor([0])].device == DEVICE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_on_a_gpu_gives_what_it_gives_on_the_cpu(kind, way):
    expected = on_the_cpu(kind, "generate").float()
    pipe = build(kind)
    place(pipe, way, torch.device("cuda", 0))
    images = generate(pipe, kind).cpu().float()
    # Sums in another order may turn a draw, so most of the pixels are asked for and not all.
    assert ((images - expected).abs() <= 2).float().mean() > 0.9
