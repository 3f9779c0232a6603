"""Every loss and prior of a generator, turned on in a run and driven to a likelihood near one."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from builders import DETAILS, SCHEMES, build_map, build_scheme, build_transformer, build_vq
from codeclade import CodecladeConfig, CodecladePipeline, CodecladeTransformer
from codeclade.checkpoints.llamagen import LlamaGenGenerator
from codeclade.training.context_noise import noise_rate
from codeclade.training.drop_path import add_drop_path
from codeclade.training.embedding_priors import (
    add_embedding_priors,
    code_vectors,
    folded,
    token_vectors,
)
from codeclade.training.generator import train_generator
from codeclade.training.objective import GeneratorObjective, TokenNoise
from codeclade.training.sparse_head import SparseClusterToken
from generator_runs import RECIPE, write_codes

LOSSES = {
    "plain": {},
    "tree prior": {"embedding_prior": "tree"},
    "codebook prior": {"embedding_prior": "codebook"},
    "both priors": {"embedding_prior": "both"},
    "contexts": {"embedding_prior": "context"},
    "random tree": {"embedding_prior": "random_tree"},
    "random codebook": {"embedding_prior": "random_codebook"},
    "random contexts": {"embedding_prior": "random_context"},
    "tree loss": {"tree_loss_weight": 0.5},
    "alignment": {"alignment_weight": 0.1},
    "uniform noise": {"context_noise": "uniform"},
    "cluster noise": {"context_noise": "cluster", "context_noise_clusters": 8},
    "drop-path": {"drop_path": 0.1},
}
SINGLE = {  # settings of one scheme
    ("token", "cluster loss"): {"cluster_loss_weight": 0.5},
    ("cluster_token", "sparse head"): {"sparse_head": True},
}
CASES = [
    *((scheme, name, settings) for name, settings in LOSSES.items() for scheme in SCHEMES),
    *((scheme, name, settings) for (scheme, name), settings in SINGLE.items()),
]
IDS = [f"{scheme}-{name}" for scheme, name, _ in CASES]


@pytest.fixture(scope="module")
def narrow():
    """reAR's networks, 2,048 wide, are most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codeclade.training.objective.ALIGNMENT_WIDTH", 64)
        yield


def parts(scheme: str, settings: dict):
    pairs = scheme == "semantic_detail"
    vq_model = build_vq(detail_codebook_size=DETAILS if pairs else None)
    clustered = scheme.startswith("cluster") or "cluster_loss_weight" in settings
    return vq_model, build_map(vq_model.codebook) if clustered else None


@pytest.mark.parametrize(("scheme", "name", "settings"), CASES, ids=IDS)
def test_every_setting_trains_a_pipeline(tmp_path, narrow, scheme, name, settings):
    vq_model, cluster_map = parts(scheme, settings)
    codes = write_codes(tmp_path / "codes", vq_model, pairs=scheme == "semantic_detail")
    recipe = replace(RECIPE, scheme=scheme, **settings)
    pipeline = train_generator(recipe, codes, vq_model, cluster_map, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first = next(line for line in log if "loss" in line)
    for extra in ("tree_loss", "cluster_loss", "alignment"):
        wanted = f"{extra}_weight" in settings
        assert any(key.startswith(extra) for key in first) == wanted
    assert 0 <= first["accuracy"] <= 1
    loaded = CodecladeTransformer.from_pretrained(tmp_path / "run" / "pipeline" / "transformer")
    assert set(loaded.state_dict()) == set(CodecladeTransformer(loaded.config).state_dict())
    for key, value in pipeline.transformer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


QUICK = {("token", "plain"), ("semantic_detail", "plain")}  # a second or more each
BY_HEART = [
    pytest.param(*case, marks=() if case[:2] in QUICK else pytest.mark.slow, id=name)
    for case, name in zip(CASES, IDS, strict=True)
]


@pytest.mark.parametrize(("scheme", "name", "settings"), BY_HEART)
def test_thirty_two_images_are_learned_by_heart(narrow, scheme, name, settings):
    """Every scheme and loss ends below 0.1 nats a token, without what training adds."""
    torch.manual_seed(0)
    pipe = build_scheme(scheme)
    cluster_map = pipe.cluster_map
    no_drop = ("token_dropout", "residual_dropout", "feed_forward_dropout", "class_dropout")
    model = CodecladeTransformer(
        CodecladeConfig(
            **pipe.transformer.config.to_diff_dict()
            | dict.fromkeys(no_drop, 0.0)
            | {"num_classes": 32, "hidden_size": 64, "num_attention_heads": 4, "head_layers": 1}
        )
    )
    if scheme == "cluster_token":
        model.use_clusters(cluster_map.mapping)
    kept = dict(settings)
    prior, given = kept.pop("embedding_prior", "none"), (pipe.vq_model, cluster_map)
    vectors = code_vectors(*given)
    contexts = {what: torch.randn(len(vectors[what]), 6) for what in model.scheme.tables}
    add_embedding_priors(model, prior, *given, contexts=contexts)
    add_drop_path(model, kept.pop("drop_path", 0.0))
    vectors = token_vectors(scheme, pipe.vq_model, cluster_map)
    kind, clusters = kept.pop("context_noise", "none"), kept.pop("context_noise_clusters", 8)
    noise = TokenNoise(kind, vectors, clusters) if kind != "none" else None
    objective = GeneratorObjective(model, pipe.vq_model, cluster_map, **kept).train()
    sizes = torch.tensor([len(rows) for rows in vectors])
    tokens = (torch.rand(32, 16, len(sizes)) * sizes).long().squeeze(-1)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3, weight_decay=0.0)
    steps = 120
    for step in range(steps):
        given = noise(tokens, noise_rate(step, steps)) if noise else ()
        objective(tokens, torch.arange(32), *given)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
    model = folded(model).eval()
    with torch.no_grad():
        loss = model(tokens[:, :-1], torch.arange(32), labels=tokens).loss.item()
    assert loss < 0.1


def test_a_folded_model_becomes_a_llamagen_checkpoint_and_comes_back():
    vq_model, model = build_vq(), build_transformer()
    add_embedding_priors(model, "both", vq_model, None)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    ids, labels = torch.randint(32, (2, 15)), torch.tensor([0, 3])
    before = model(ids, labels).logits
    adapter = LlamaGenGenerator()
    published = adapter.to_published(folded(model).state_dict())
    assert set(published) >= {"tok_embeddings.weight", "output.weight"}
    again = CodecladeTransformer(model.config).eval()
    again.load_state_dict(adapter.from_published(published))
    torch.testing.assert_close(again(ids, labels).logits, before, rtol=0, atol=1e-5)


def test_the_sparse_head_has_the_loss_and_gradients_of_the_dense_one(monkeypatch):
    monkeypatch.setattr("codeclade.training.sparse_head.CHUNK", 2000)  # several chunks
    pipe = build_scheme("cluster_token")
    model = pipe.transformer
    tokens, labels = torch.randint(32, (6, 16)), torch.tensor([0, 1, 2, 3, 4, 0])
    found = []
    for sparse in (False, True):
        objective = GeneratorObjective(model, pipe.vq_model, pipe.cluster_map, sparse_head=sparse)
        loss = objective.eval()(tokens, labels)["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-5)


def test_the_sparse_head_keeps_the_right_clusters_numbers_alone(monkeypatch):
    """Numbers kept for the backward pass, a position: K and D, where the dense head keeps N."""
    monkeypatch.setattr("codeclade.training.sparse_head.CHUNK", 2**18)
    torch.manual_seed(0)
    ids, clusters, width, positions = 4096, 64, 8, 512
    mapping = torch.randperm(ids) % clusters
    config = CodecladeConfig(
        ids, "cluster_token", clusters, hidden_size=width, num_attention_heads=2
    )
    from codeclade.components.heads import ClusterTokenHead

    head, kept = ClusterTokenHead(config), []
    hidden = torch.randn(1, positions, width, requires_grad=True)
    tokens = torch.randint(ids, (1, positions))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        SparseClusterToken(mapping, clusters)(head, hidden, tokens)[0].backward()
    assert sum(kept) < positions * 8 * (clusters + width) + 20 * ids * width < positions * ids


def test_drop_path_keeps_the_mean_and_acts_in_training_alone():
    model = build_transformer(hidden_size=32, num_hidden_layers=3)
    ids, labels = torch.randint(32, (64, 8)), torch.zeros(64, dtype=torch.int64)
    plain = model(ids, labels).logits
    add_drop_path(model, 0.5)
    assert torch.equal(model(ids, labels).logits, plain)
    branch = model.layers[2].attention.train()
    hook = next(iter(branch._forward_hooks.values()))
    torch.manual_seed(0)
    dropped = hook(branch, (), torch.ones(4000, 1, 1)).flatten()
    assert set(dropped.tolist()) == {0.0, 2.0} and dropped.mean() == pytest.approx(1, abs=0.05)
    assert not model.layers[0].attention._forward_hooks  # the first block's rate is zero


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"embedding_prior": "trees"}, "embedding_prior is 'trees'; it must be one of none, tree"),
        ({"context_noise": "some"}, "context_noise is 'some'; it must be one of none, uniform"),
        ({"tree_loss_weight": -1.0}, "tree_loss_weight is -1.0; it must be 0 or more"),
        ({"drop_path": 1.0}, "drop_path is 1.0; it must be 0 or more and below 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        replace(RECIPE, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparse_head": True}, "sparse_head is of scheme 'cluster_token', not 'token'"),
        (
            {"context_noise": "cluster"},
            "context_noise_clusters is 1024; with 32 codes it must be from 1 to 32",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(tmp_path, settings, words):
    vq_model = build_vq()
    codes = write_codes(tmp_path / "codes", vq_model)
    with pytest.raises(ValueError, match=words):
        train_generator(replace(RECIPE, **settings), codes, vq_model, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_separate_dropouts_reach_the_model(tmp_path):
    vq_model = build_vq()
    codes = write_codes(tmp_path / "codes", vq_model)
    recipe = replace(RECIPE, dropout=0.2, token_dropout=0.0, feed_forward_dropout=0.3)
    pipe: CodecladePipeline = train_generator(recipe, codes, vq_model, None, tmp_path / "run")
    config = pipe.transformer.config
    found = config.token_dropout, config.residual_dropout, config.feed_forward_dropout
    assert found == (0.0, 0.2, 0.3)
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[1])
    assert first["loss"] == pytest.approx(math.log(32), abs=1e-5)


@pytest.mark.parametrize("scheme", ["token", "semantic_detail"])
def test_a_stopped_run_with_every_setting_ends_with_the_same_weights(tmp_path, narrow, scheme):
    """Noise, dropped branches and alignment draw what they would have drawn in one go."""
    vq_model, _ = parts(scheme, {})
    codes = write_codes(tmp_path / "codes", vq_model, pairs=scheme == "semantic_detail")
    recipe = replace(
        RECIPE,
        steps=4,
        save_every=2,
        embedding_prior="both",
        tree_loss_weight=0.5,
        alignment_weight=0.1,
        context_noise="cluster",
        context_noise_clusters=8,
        drop_path=0.2,
    )
    whole = train_generator(recipe, codes, vq_model, None, tmp_path / "whole")
    train_generator(recipe, codes, vq_model, None, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000004")
    again = train_generator(recipe, codes, vq_model, None, tmp_path / "parts")
    lines = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"loss"' in line] == [1, 2, 3, 4]
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(value, again.transformer.state_dict()[name]), name
