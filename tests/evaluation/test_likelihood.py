"""Likelihood: every scheme on one axis, by the definition."""

import warnings

import pytest
import torch

from builders import REFINERS, SCHEMES, build_refiner, build_scheme
from codeclade.components.refiner import generator_states
from codeclade.evaluation.likelihood import likelihood, log_probabilities, tree_partitions


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nats_are_those_of_the_definition(scheme, tmp_path, write_codes):
    pipe = build_scheme(scheme)
    model, cluster_map = pipe.transformer, pipe.cluster_map
    codes = write_codes(tmp_path / "codes", pipe.vq_model, scheme == "semantic_detail")
    cuts = {} if cluster_map is None else tree_partitions(cluster_map)
    found = likelihood(model, codes, cluster_map, cuts, batch_size=3)
    assert found.images == 7

    ids, labels = next(codes.first_views(7))
    if scheme == "semantic_detail":
        output = model(ids[:, :-1], labels, labels=ids)
        assert found.nats["pairs"] == pytest.approx(output.loss.item(), abs=1e-5)
        parts = found.nats["semantic"] + found.nats["detail"]
        assert found.nats["pairs"] == pytest.approx(parts, abs=1e-6)
        return
    # Token by token: the mean of -log p, and of the sum of p over the members of a cut's cluster.
    p = log_probabilities(model, ids, labels, cluster_map).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(7, 16))
    own = p.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    assert found.nats["ids"] == pytest.approx(-own.log().mean().item(), abs=1e-5)
    for name, cluster_of in cuts.items():
        inside = (p * (cluster_of == cluster_of[ids].unsqueeze(-1))).sum(-1)
        assert found.nats[name] == pytest.approx(-inside.log().mean().item(), abs=1e-5)
    values = [found.nats[name] for name in ("ids", *cuts)]
    assert values == sorted(values, reverse=True)  # a coarser question is easier
    spread = own.log().mean(1).std().item() / 7**0.5
    assert found.standard_errors["ids"] == pytest.approx(spread, rel=1e-4)


def test_a_member_draw_costs_the_log_of_the_cluster_size(tmp_path, write_codes):
    pipe = build_scheme("cluster")
    codes = write_codes(tmp_path / "codes", pipe.vq_model, False)
    cuts = {"own": pipe.cluster_map.mapping}
    found = likelihood(pipe.transformer, codes, pipe.cluster_map, cuts)
    ids, labels = next(codes.first_views(7))
    tokens = pipe.cluster_map.mapping[ids]
    loss = pipe.transformer(tokens[:, :-1], labels, labels=tokens).loss.item()
    draw = pipe.cluster_map.sizes[tokens].double().log().mean().item()
    assert found.nats["own"] == pytest.approx(loss, abs=1e-5)
    assert found.nats["ids"] == pytest.approx(loss + draw, abs=1e-5)


@pytest.mark.parametrize("kind", REFINERS)
def test_a_refiner_takes_the_place_of_the_member_draw(kind, tmp_path, write_codes):
    pipe, refiner = build_scheme("cluster"), build_refiner(**REFINERS[kind]).eval()
    codes = write_codes(tmp_path / "codes", pipe.vq_model, False)
    parts = pipe.transformer, codes, pipe.cluster_map
    found = likelihood(*parts, batch_size=3, refiner=refiner)
    ids, labels = next(codes.first_views(7))
    tokens = pipe.cluster_map.mapping[ids]
    loss = pipe.transformer(tokens[:, :-1], labels, labels=tokens).loss
    states = generator_states(pipe.transformer, tokens, class_labels=labels)
    given = {"mapping": pipe.cluster_map.mapping, "context": states, "class_labels": labels}
    loss = loss + refiner(tokens, labels=ids, **given).loss
    assert found.nats["refined"] == pytest.approx(loss.item(), abs=1e-5)
    assert found.nats["ids"] == likelihood(*parts, batch_size=3).nats["ids"]


def test_a_limit_takes_the_first_images(tmp_path, write_codes):
    pipe = build_scheme("token")
    codes = write_codes(tmp_path / "codes", pipe.vq_model, False)
    assert likelihood(pipe.transformer, codes, batch_size=2, limit=3).images == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = likelihood(pipe.transformer, codes, limit=1)  # of which no spread is known
    assert alone.images == 1 and not alone.standard_errors
    with pytest.raises(ValueError, match="at least one image"):
        likelihood(pipe.transformer, codes, limit=0)
