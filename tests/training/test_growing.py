"""Growing vocabulary: coarse stages are coarse models, splits change nothing, the end is plain."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from builders import build_map, build_scheme, build_vq
from codeclade import CodecladeTransformer
from codeclade.training.embedding_priors import folded, tree_cuts
from codeclade.training.generator import train_generator
from codeclade.training.growing import Growth, growth_steps
from codeclade.training.run import Run
from generator_runs import RECIPE, write_codes

GROW = {"0": 4, "2": 8, "4": "all"}


def grown(fresh: bool = False):
    pipe = build_scheme("token")
    rows = pipe.vq_model.codebook.detach().double().numpy()
    growth = Growth(GROW, pipe.transformer.config, rows)
    growth.add_to(pipe.transformer, fresh)
    return pipe.transformer, growth, rows


def test_a_stage_is_a_coarse_model_with_the_logarithm_of_the_sizes_as_bias():
    model, growth, rows = grown()
    growth.enter(model, 0)
    clusters = tree_cuts(rows, [4])[0]
    sizes = clusters.bincount()
    ids, labels = torch.randint(32, (3, 16)), torch.tensor([0, 1, 2])
    output = model(ids[:, :-1], labels, labels=ids)
    logits = output.logits[:, : ids.shape[1]]

    # The same by hand: one output row a cluster, and what is left of the likelihood is uniform.
    first = torch.tensor([(clusters == c).nonzero()[0].item() for c in range(4)])
    coarse = logits[..., first] + sizes.log()
    target = clusters[ids]
    expected = F.cross_entropy(coarse.flatten(0, 1), target.flatten()) + sizes[target].log().mean()
    torch.testing.assert_close(output.loss, expected)
    # It reads clusters too.
    swapped = first[clusters[ids]]
    assert torch.equal(model(swapped[:, :-1], labels).logits[:, : ids.shape[1]], logits)

    # All rows of a cluster get its mean gradient: the coarse row's, divided by the size.
    hidden = model(ids[:, :-1], labels, return_logits=False).last_hidden_state.detach()
    head = model.head.weight[first].detach().requires_grad_()
    logits = hidden[:, : ids.shape[1]] @ head.mT + sizes.log()
    F.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
    model.zero_grad()
    F.cross_entropy(model.head(hidden[:, : ids.shape[1]]).flatten(0, 1), ids.flatten()).backward()
    gradient = model.head.parametrizations.weight.original.grad
    torch.testing.assert_close(gradient, (head.grad / sizes[:, None])[clusters])


def test_rows_stay_equal_inside_clusters_until_they_split():
    model, growth, rows = grown(fresh=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = torch.arange(6) % 5
    for step in range(6):
        ids = torch.cat([torch.randperm(32) for _ in range(3)]).view(6, 16)
        with torch.no_grad():
            before = model(ids[:, :-1], labels, labels=ids).loss
        growth.enter(model, step)
        with torch.no_grad():  # a split changes no number
            assert torch.equal(model(ids[:, :-1], labels, labels=ids).loss, before)
        model(ids[:, :-1], labels, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        count = 4 if step < 2 else 8 if step < 4 else 32
        for table in (model.token_embedding.weight, model.head.weight):
            assert len(table.detach().unique(dim=0)) == count
            for cluster in range(count) if count < 32 else ():
                inside = table[tree_cuts(rows, [count])[0] == cluster]
                assert torch.equal(inside, inside[:1].expand_as(inside))


def test_rows_of_a_trained_model_start_as_means():
    pipe = build_scheme("token")
    before = pipe.transformer.head.weight.detach().clone()
    rows = pipe.vq_model.codebook.detach().double().numpy()
    Growth(GROW, pipe.transformer.config, rows).add_to(pipe.transformer, fresh=False)
    clusters = tree_cuts(rows, [4])[0]
    for cluster in range(4):
        mean = before[clusters == cluster].mean(0)
        torch.testing.assert_close(
            pipe.transformer.head.weight[clusters == cluster][0].detach(), mean
        )


@pytest.mark.parametrize("scheme", ["token", "cluster"])
def test_a_run_grows_and_ends_with_an_ordinary_model(tmp_path, scheme):
    vq_model = build_vq()
    cluster_map = build_map(vq_model.codebook) if scheme == "cluster" else None
    codes = write_codes(tmp_path / "codes", vq_model)
    recipe = replace(RECIPE, scheme=scheme, steps=6, grow=GROW, evaluate_every=1)
    pipe = train_generator(recipe, codes, vq_model, cluster_map, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    size = 12 if scheme == "cluster" else 32
    stages = {line["step"]: line["clusters"] for line in log if "clusters" in line}
    assert stages == {1: 4, 3: 8, 5: size}
    first = next(line["loss"] for line in log if "loss" in line)
    assert first == pytest.approx(math.log(size), abs=1e-4)  # likelihoods of entries from the start
    loaded = CodecladeTransformer.from_pretrained(tmp_path / "run" / "pipeline" / "transformer")
    assert set(loaded.state_dict()) == set(CodecladeTransformer(loaded.config).state_dict())
    assert torch.equal(loaded.head.weight, pipe.transformer.head.weight)
    assert len(loaded.head.weight.unique(dim=0)) > 8


@pytest.mark.parametrize("every", [2, 3], ids=["at a split", "inside a stage"])
def test_a_stopped_run_ends_bit_equal(tmp_path, monkeypatch, every):
    vq_model = build_vq()
    codes = write_codes(tmp_path / "codes", vq_model)
    recipe = replace(RECIPE, steps=6, grow=GROW, save_every=every)
    whole = train_generator(recipe, codes, vq_model, None, tmp_path / "whole")
    save = Run.save

    def save_then_stop(run, step):
        save(run, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_generator(recipe, codes, vq_model, None, tmp_path / "run")
    monkeypatch.setattr(Run, "save", save)
    resumed = train_generator(recipe, codes, vq_model, None, tmp_path / "run")
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(value, resumed.transformer.state_dict()[name]), name


@pytest.mark.parametrize(
    "grow", [{1: 4, 2: "all"}, {0: 8, 2: 4}, {0: 4, 0.5: 8}, {0: "all", 2: 4}, {0: "some"}, {0: 0}]
)
def test_steps_that_do_not_rise_are_refused(grow):
    with pytest.raises(ValueError, match="it must give steps from 0 on with ever more clusters"):
        replace(RECIPE, grow=grow)


def test_growth_that_does_not_fit_is_refused():
    config = build_scheme("token").transformer.config
    rows = np.zeros((32, 4))
    with pytest.raises(ValueError, match="grow has 4, 8 clusters; it must end with all 32"):
        Growth(growth_steps({0: 4, 2: 8}), config, rows)
    with pytest.raises(ValueError, match="grow has 64, 32 clusters; it must end with all 32"):
        Growth(growth_steps({0: 64, 2: "all"}), config, rows)
    config = build_scheme("cluster_token").transformer.config
    with pytest.raises(ValueError, match=r"grow is of schemes token, cluster.* not 'c"):
        Growth(growth_steps(GROW), config, rows)
    with pytest.raises(ValueError, match="grow does not go with embedding_prior=tree"):
        replace(RECIPE, grow=GROW, embedding_prior="tree")


def test_folding_leaves_the_weights_as_they_are():
    model, _, _ = grown()
    before = model.head.weight.detach().clone()
    assert torch.equal(folded(model).head.weight, before)
    assert "head.weight" in model.state_dict()
