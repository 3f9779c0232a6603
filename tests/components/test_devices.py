"""Pipelines that keep their parts on another device than their inputs, in every way diffusers has.

The second device is simulated, see tests/simulated_device.py; each result must be the CPU's own.
"""

import itertools

import accelerate
import diffusers
import pytest
import torch
from packaging.version import Version

from builders import REFINERS, SCHEMES, build_parts, build_refiner
from components.device_calls import (
    CALLS,
    GRID,
    KINDS,
    WAYS,
    build,
    on_the_cpu,
    place,
    seeded,
)
from simulated_device import DEVICE, simulated


def in_default_run(kind: str, way: str, call: str) -> bool:
    """Every kind goes to the device; in every way, and edited, those with most parts alone."""
    if way == "to":
        return call == "generate" or kind in ("text_pairs", "cluster_token")
    return call == "generate" and kind in ("text_pairs", "MASC")


PLACED = [
    pytest.param(*case, marks=() if in_default_run(*case) else pytest.mark.slow)
    for case in itertools.product(KINDS, WAYS, CALLS)
]


@pytest.mark.parametrize(("kind", "way", "call"), PLACED)
def test_a_call_gives_what_it_gives_on_the_cpu(kind, way, call):
    if way.startswith("group") and Version(diffusers.__version__) < Version("0.42"):
        pytest.skip(
            "earlier versions of diffusers offload groups to an accelerator that torch knows"
        )
    expected = on_the_cpu(kind, call)
    with simulated():
        pipe = build(kind)
        place(pipe, way, DEVICE)
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
