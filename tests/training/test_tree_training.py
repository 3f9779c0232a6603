"""Embedding priors, tree loss, context noise: sums fold, formulas hold, draws are as promised."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet
from scipy.spatial.distance import squareform
from torch.nn.utils import parametrize

from builders import SCHEMES, build_scheme
from codeclade.clustering import average_linkage, cut
from codeclade.training.context_noise import ContextNoise, noise_rate
from codeclade.training.embedding_priors import (
    PRIORS,
    add_embedding_priors,
    code_vectors,
    folded,
    tree_cuts,
    unit_vectors,
)
from codeclade.training.losses import alignment_loss, cluster_loss, tree_loss, tree_loss_weights

REAL = [kind for kind in PRIORS if kind != "none"]


def parts(scheme: str):
    pipe = build_scheme(scheme)
    return pipe.transformer, pipe.vq_model, pipe.cluster_map


def random_contexts(model, vq_model, cluster_map) -> dict[str, torch.Tensor]:
    vectors = code_vectors(vq_model, cluster_map)
    return {what: torch.randn(len(vectors[what]), 6) for what in model.scheme.tables}


def tokens_for(scheme: str, seed: int = 0) -> torch.Tensor:
    shape = (3, 16, 2) if scheme == "semantic_detail" else (3, 16)
    return torch.from_numpy(np.random.default_rng(seed).integers(12, size=shape))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", REAL)
def test_a_folded_model_is_the_same_function_in_ordinary_tables(scheme, kind):
    model, vq_model, cluster_map = parts(scheme)
    plain = set(model.state_dict())
    contexts = random_contexts(model, vq_model, cluster_map)
    add_embedding_priors(model, kind, vq_model, cluster_map, contexts=contexts)
    for module in model.modules():  # as after some training: every summand counts
        if parametrize.is_parametrized(module, "weight"):
            for parameter in module.parametrizations.weight.parameters():
                parameter.data += torch.randn_like(parameter) * 0.1
    tokens, labels = tokens_for(scheme), torch.tensor([0, 1, 2])
    before = model(tokens[:, :-1], labels, labels=tokens)
    folded(model)
    after = model(tokens[:, :-1], labels, labels=tokens)
    assert set(model.state_dict()) == plain
    torch.testing.assert_close(after.loss, before.loss, rtol=0, atol=1e-5)
    if before.logits is not None:
        torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_similar_codes_learn_together(scheme):
    """The gradient of one code moves its whole cluster, unless there is no prior."""
    moved = {}
    for kind in ("none", "tree"):
        model, vq_model, cluster_map = parts(scheme)
        add_embedding_priors(model, kind, vq_model, cluster_map)
        name = {"token": "token_embedding", "cluster": "token_embedding"}.get(scheme)
        name = name or {"cluster_token": "token_embedding.token"}.get(scheme)
        table = model.get_submodule(name or "token_embedding.detail")
        before = table.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        table.weight[0].sum().backward()
        optimizer.step()
        moved[kind] = set((table.weight - before).abs().sum(1).nonzero().flatten().tolist())
    assert moved["none"] == {0} and {0} < moved["tree"]


def test_cuts_are_those_of_the_tree_and_nest():
    rows = np.random.default_rng(0).normal(size=(256, 4))
    cuts = tree_cuts(rows)
    assert [int(row.max()) + 1 for row in cuts] == [128, 32, 8]
    tree = average_linkage(rows)
    for row, count in zip(cuts, (128, 32, 8), strict=True):
        assert np.array_equal(row.numpy(), cut(tree, count))
    for fine, coarse in pairwise(cuts):
        assert len({*zip(fine.tolist(), coarse.tolist(), strict=True)}) == int(fine.max()) + 1
    torch.testing.assert_close(unit_vectors(rows).norm(dim=1), torch.full((256,), 2.0))


def test_controls_keep_sizes_and_lose_the_tree():
    model, vq_model, _ = parts("token")
    add_embedding_priors(model, "tree", vq_model, None)
    true = model.head.parametrizations.weight[0].cuts
    model, _, _ = parts("token")
    add_embedding_priors(model, "random_tree", vq_model, None)
    random = model.head.parametrizations.weight[0].cuts
    assert not torch.equal(true, random)
    for a, b in zip(true, random, strict=True):
        assert torch.equal(a.bincount().sort().values, b.bincount().sort().values)


def test_an_unknown_prior_is_refused():
    model, vq_model, _ = parts("token")
    with pytest.raises(ValueError, match="embedding_prior is 'tre'; it must be one of none, tree"):
        add_embedding_priors(model, "tre", vq_model, None)


def test_tree_loss_is_the_formula():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 64, generator=draw)
    tokens = torch.randint(64, (5, 7), generator=draw)
    rows = np.random.default_rng(0).normal(size=(64, 4))
    tree = average_linkage(rows)
    counts = [32, 8]
    cuts = torch.stack([torch.from_numpy(cut(tree, count)) for count in counts])
    weights = tree_loss_weights(torch.from_numpy(tree[:, 2]), counts)
    probabilities = logits.softmax(-1)
    expected = 0.0
    for cluster_of, weight in zip(cuts, weights, strict=True):
        inside = cluster_of == cluster_of[tokens].unsqueeze(-1)
        expected -= weight * (probabilities * inside).sum(-1).log().mean()
    torch.testing.assert_close(tree_loss(logits, tokens, cuts, weights), expected.float())
    one = tree_loss(logits, tokens, cuts[1:], torch.ones(1))
    torch.testing.assert_close(one, cluster_loss(logits, tokens, cuts[1]))  # IAR is one cut


def test_tree_loss_weights_are_shares_of_the_height():
    heights = torch.tensor([1.0, 2.0, 4.0, 8.0])  # five codes
    # Four clusters are left after the merge at 1, two after the one at 4.
    assert tree_loss_weights(heights, [4, 2]).tolist() == [(4 - 1) / 8, (8 - 4) / 8]
    assert tree_loss_weights(heights, [5, 3]).tolist() == [2 / 8, (8 - 2) / 8]


def test_all_cuts_together_are_the_expected_height_of_the_error():
    """With 1 - P instead of -log P: the mean height at which drawn and right token meet."""
    rows = np.random.default_rng(0).normal(size=(20, 3))
    tree = average_linkage(rows)
    counts = list(range(20, 1, -1))
    weights = tree_loss_weights(torch.from_numpy(tree[:, 2]), counts)
    cuts = [cut(tree, count) for count in counts]
    probabilities = np.random.default_rng(1).dirichlet(np.ones(20))
    wrong = sum(
        float(weight) * (1 - probabilities[clusters == clusters[3]].sum())
        for weight, clusters in zip(weights, cuts, strict=True)
    )
    meeting = squareform(cophenet(tree))[3] / tree[-1, 2]
    assert wrong == pytest.approx(probabilities @ meeting, abs=1e-6)


def test_alignment_is_the_mean_cosine():
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    vectors = torch.tensor([[[3.0, 0.0], [0.0, -1.0], [1.0, 1.0]]])
    torch.testing.assert_close(alignment_loss(states, vectors), torch.tensor(-(1 - 1 + 1) / 3))
    weights = torch.tensor([[1.0, 0.0, 1.0]])
    torch.testing.assert_close(alignment_loss(states, vectors, weights), torch.tensor(-2 / 3))


def test_noise_stays_in_the_cluster_and_falls_to_zero():
    torch.manual_seed(0)
    clusters = torch.arange(32) // 4
    tokens = torch.randint(32, (400, 16))
    noisy, replaced = ContextNoise(32, clusters)(tokens, 1.0)
    assert torch.equal(clusters[noisy], clusters[tokens])
    assert torch.equal(noisy[~replaced], tokens[~replaced])
    rates = replaced.float().mean(1)  # uniform in 0..1 over images
    assert 0.45 < rates.mean() < 0.55 and rates.std() > 0.25
    changed = noisy[replaced] != tokens[replaced]
    assert 0.70 < changed.float().mean() < 0.80  # a member of four is itself in a quarter
    spread, _ = ContextNoise(32)(torch.zeros(400, 16, dtype=torch.int64), 1.0)
    assert set(spread.unique().tolist()) == set(range(32))
    assert not ContextNoise(32)(tokens, 0.0)[1].any()
    assert [noise_rate(done, 100) for done in (0, 75, 100)] == [1.0, 0.0, 0.0]
    assert noise_rate(30, 100) == pytest.approx(0.6)
