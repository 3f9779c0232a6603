"""Vectors of what stands beside a code: counts, the formula, what they are for."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parametrize

from builders import SCHEMES, build_scheme
from codeclade import CodecladeTransformer
from codeclade.data.codes import Codes
from codeclade.training.context_vectors import (
    NEIGHBORS,
    WIDTH,
    context_vectors,
    mutual_information,
    neighbor_counts,
)
from codeclade.training.embedding_priors import add_embedding_priors, code_contexts
from codeclade.training.generator import GeneratorTraining
from generator_runs import RECIPE, write_codes


def random_grids(codes: int, images: int, side: int = 5, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(codes, (images, side, side), generator=draw)


def test_counts_are_those_of_every_pair_both_ways():
    grids, contexts = random_grids(7, 4), torch.tensor([0, 0, 1, 1, 2, 2, 2])
    expected = torch.zeros(7, 3)
    for grid in grids.tolist():
        for y in range(5):
            for x in range(5):
                for down, right, weight in NEIGHBORS:
                    if y + down < 5 and 0 <= x + right < 5:
                        one, other = grid[y][x], grid[y + down][x + right]
                        expected[one, contexts[other]] += weight
                        expected[other, contexts[one]] += weight
    found = neighbor_counts(grids.split(3), contexts)
    assert torch.equal(found, expected)


def test_information_is_positive_and_smoothed():
    counts = torch.tensor([[4.0, 1.0], [0.0, 5.0]])
    shares = torch.tensor([4.0, 6.0]) ** 0.75
    shares = shares / shares.sum()
    expected = [[math.log(4 / 5 / shares[0]), 0.0], [0.0, math.log(1 / shares[1])]]
    torch.testing.assert_close(mutual_information(counts), torch.tensor(expected))


def test_codes_that_are_used_alike_get_like_vectors():
    """An even code and the odd one after it replace each other at random; others differ."""
    draw = torch.Generator().manual_seed(1)
    # Rows of an image go up by one kind from place to place, from a kind of its own on.
    kinds = (torch.randint(20, (400, 1, 1), generator=draw) + torch.arange(6).view(1, 1, -1)) % 20
    kinds = kinds.expand(-1, 6, -1)
    grids = 2 * kinds + torch.randint(2, kinds.shape, generator=draw)
    vectors = torch.nn.functional.normalize(context_vectors([grids], torch.arange(40)), dim=1)
    alike = vectors @ vectors.mT
    twins = alike[torch.arange(0, 40, 2), torch.arange(1, 40, 2)]
    others = alike[torch.arange(0, 40, 2), torch.arange(0, 40, 2).roll(10)]
    assert twins.min() > 0.9 and others.max() < 0.2


def test_vectors_have_one_length_and_codes_without_use_none():
    vectors = context_vectors([random_grids(99, 50)], torch.arange(100))
    assert vectors.shape == (100, WIDTH) and vectors[99].abs().max() == 0
    torch.testing.assert_close(vectors[:99].norm(dim=1), torch.full((99,), WIDTH**0.5))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_table_has_vectors_of_its_own_tokens(tmp_path, scheme):
    pipe, pairs = build_scheme(scheme), scheme == "semantic_detail"
    codes = Codes(write_codes(tmp_path, pipe.vq_model, pairs=pairs) / "train")
    found = code_contexts(scheme, codes, pipe.vq_model, pipe.cluster_map)
    assert set(found) == set(pipe.transformer.scheme.tables)

    # The same of all tokens at once.
    ids = torch.cat([one for one, _ in codes.first_views(1000)])
    of_tokens = {"ids": ids[..., 0] if pairs else ids, "details": ids[..., -1]}
    if pipe.cluster_map is not None:
        of_tokens["clusters"] = pipe.cluster_map.mapping[of_tokens["ids"]]
    for what, vectors in found.items():
        grid = of_tokens[what].unflatten(1, (codes.header["grid_size"],) * 2)
        expected = context_vectors([grid], torch.arange(len(vectors)))
        torch.testing.assert_close(vectors.abs(), expected.abs(), rtol=0, atol=1e-4)


def test_a_prior_of_contexts_reads_the_training_codes(tmp_path):
    pipe = build_scheme("token")
    codes = write_codes(tmp_path, pipe.vq_model)
    recipe = replace(RECIPE, embedding_prior="context")
    model = GeneratorTraining(recipe, codes, pipe.vq_model, None).objective().model
    kept = model.head.parametrizations.weight[0].vectors
    contexts = code_contexts("token", Codes(codes / "train"), pipe.vq_model, None)["ids"]
    assert torch.equal(kept[:, -contexts.shape[1] :], contexts)
    # A run that goes on elsewhere must find the very same ones.
    assert any(name.endswith("vectors") for name in model.state_dict())


def test_the_control_shuffles_contexts_alone(tmp_path):
    pipe = build_scheme("token")
    codes = write_codes(tmp_path, pipe.vq_model)
    kept = {}
    for prior in ("context", "random_context"):
        recipe = replace(RECIPE, embedding_prior=prior)
        model = GeneratorTraining(recipe, codes, pipe.vq_model, None).objective().model
        kept[prior] = model.head.parametrizations.weight[0].vectors
    true, random, width = *kept.values(), pipe.vq_model.codebook.shape[1]
    assert torch.equal(true[:, :width], random[:, :width])
    assert not torch.equal(true, random)
    assert torch.equal(true[:, width:].sum(1).sort().values, random[:, width:].sum(1).sort().values)


def test_contexts_are_needed():
    pipe = build_scheme("token")
    model = CodecladeTransformer(pipe.transformer.config)
    with pytest.raises(ValueError, match="'context', which needs the codes of training images"):
        add_embedding_priors(model, "context", pipe.vq_model, None)
    assert not any(parametrize.is_parametrized(part) for part in model.modules())
