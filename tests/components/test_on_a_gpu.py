"""What only a GPU can show: real offloading, half precision's range, compiled calls.

`CODECLADE_GPU=cpu python -m pytest -m gpu tests/components` tries the same code without one.
"""

import os

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from builders import REFINERS, SCHEMES, build_parts, build_refiner, build_scheme
from components.device_calls import CALLS, KINDS, WAYS, build, on_the_cpu, place, seeded

DEVICE = torch.device(os.environ.get("CODECLADE_GPU", "cuda"))
CUDA = DEVICE.type == "cuda"
HALVES = (torch.float16, torch.bfloat16)
# Accelerate's sequential offloading to a CPU loses what makes a parameter one.
POSSIBLE = [way for way in WAYS if CUDA or way != "sequential"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="needs CUDA"),
]


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether nine in ten numbers are the same: sums in another order may turn a draw."""
    difference = (found.cpu().float() - expected.float()).abs()
    return bool((difference <= (2 if expected.dtype == torch.uint8 else 0.02)).float().mean() > 0.9)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", POSSIBLE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_gives_what_it_gives_on_the_cpu(kind, way, call):
    expected = on_the_cpu(kind, call)
    pipe = build(kind)
    place(pipe, way, DEVICE)
    for _ in range(2):  # what a call leaves behind must serve the next
        assert alike(CALLS[call](pipe, kind), expected)


@pytest.mark.skipif(not CUDA, reason="counts the memory of a GPU")
@pytest.mark.parametrize("way", ["model", "sequential"])
def test_offloading_leaves_no_weights_on_the_gpu(way):
    def kept(way: str) -> int:
        before = torch.cuda.memory_allocated()
        pipe = build("token")
        place(pipe, way, DEVICE)
        pipe(1, generator=seeded(), output_type="pt")
        pipe.maybe_free_model_hooks()
        return torch.cuda.memory_allocated() - before

    kept("to")  # libraries take their workspace with the first call
    assert kept(way) < kept("to") / 2


@pytest.mark.parametrize("way", [way for way in POSSIBLE if way != "to"])
@pytest.mark.parametrize("dtype", HALVES)
def test_offloading_in_half_precision_is_finite(dtype, way):
    pipe = build("MASC").to(dtype)
    place(pipe, way, DEVICE)
    assert torch.isfinite(pipe([1, 2], generator=seeded(), output_type="pt").images).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_half_precision_keeps_ids_and_stays_finite(scheme, dtype):
    pipe = build_scheme(scheme)
    pixels = torch.rand(64, 3, 16, 16, generator=seeded()) * 2 - 1
    expected = pipe.vq_model.encode(pixels).ids
    pipe.to(DEVICE, dtype)
    # Ids depend on the nearest code, so that part of the tokenizer stays in float32.
    found = pipe.vq_model.encode(pixels.to(DEVICE)).ids.cpu()
    assert (found == expected).float().mean() > 0.98
    images = pipe([1, 2], generator=seeded(), output_type="pt", guidance_scale=3.0).images
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_in_half_precision_are_those_of_float32(scheme, dtype):
    model = build_parts(scheme)["transformer"]
    pairs = (2,) if scheme == "semantic_detail" else ()
    if pairs:  # as after the first steps of a training; heads.py says why zero is too large
        nn.init.normal_(model.head.combine[0].bias, generator=seeded())
    tokens = torch.randint(12, (2, 16, *pairs), generator=seeded())
    expected = model(tokens[:, :-1], torch.tensor([1, 2]), labels=tokens).loss
    # Tokens and labels may come from the CPU, whatever the model lies on.
    model.to(DEVICE, dtype)
    loss = model(tokens[:, :-1], torch.tensor([1, 2]), labels=tokens).loss
    assert loss.device.type == DEVICE.type and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.03)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kind", REFINERS)
@pytest.mark.parametrize("dtype", HALVES)
def test_refiners_in_half_precision_keep_to_their_clusters(kind, dtype):
    pipe = build_scheme("cluster", refiner=build_refiner(**REFINERS[kind])).to(DEVICE, dtype)
    ids = pipe([1, 2], generator=seeded(), output_type="ids").images
    clusters = pipe([1, 2], generator=seeded(), output_type="clusters").images
    assert ids.min() >= 0 and ids.max() < 32
    if pipe.refiner.config.mask_to_members:
        assert torch.equal(pipe.cluster_map.to_clusters(ids), clusters)


def test_slices_decode_to_the_same_images():
    pipe = build_scheme("token").to(DEVICE)
    ids = torch.randint(32, (5, 4, 4), generator=seeded(), device="cpu").to(DEVICE)
    whole = pipe.vq_model.decode(ids)
    pipe.vq_model.enable_slicing()
    torch.testing.assert_close(pipe.vq_model.decode(ids), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["whole", "blocks"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_calls_neither_recompile_nor_record_again(scheme, way):
    """With CUDA graphs, where calls after the second replay what is there."""
    # The prefix, a token, and the head of every stage, twice where it knows its place; or one for
    # all blocks.
    most = 6 if scheme == "semantic_detail" else 4
    pipe = build_scheme(scheme).to(DEVICE)

    def ids(seed: int) -> torch.Tensor:
        call = pipe(
            [1, 2], generator=torch.Generator().manual_seed(seed), output_type="ids", temperature=0
        )
        return call.images.cpu()

    expected = [ids(seed) for seed in range(4)]
    torch._dynamo.reset()
    counters.clear()
    transformer = pipe.transformer
    compile_ = transformer.compile if way == "whole" else transformer.compile_repeated_blocks
    how = {"mode": "reduce-overhead"} if CUDA and way == "whole" else {}
    compile_(fullgraph=True, **(how if CUDA else {"backend": "eager"}))
    found = [ids(0), ids(1)]
    graphs = dict(counters["stats"])
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += [ids(2), ids(3)]
    assert dict(counters["stats"])["unique_graphs"] == graphs["unique_graphs"] <= most
    assert not counters["graph_break"] and not counters["inductor"]["cudagraph_skips"]
    assert all(map(alike, found, expected))
