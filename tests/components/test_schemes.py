"""The prediction schemes: likelihoods, sampling frequencies, pipelines, saving, errors."""

import math

import pytest
import torch
from scipy.stats import chisquare
from transformers import DynamicCache

from builders import DETAILS, SCHEMES, build_scheme
from codeclade import CodecladeConfig, CodecladePipeline, CodecladeTransformer
from codeclade.components.heads import cluster_logsumexp
from codeclade.components.sampling import guide

MAPPING = torch.tensor([0, 1, 2, 0, 3, 3, 3, 1, 0, 3])  # ten ids in clusters of 3, 2, 1 and 4
CLASSES = torch.tensor([3, 0, 5])


def tokens(batch: int = 3, length: int = 16, size: int = 10) -> torch.Tensor:
    return torch.randint(size, (batch, length), generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model(tiny_transformer):
    built = tiny_transformer(scheme="cluster_token", vocab_size=10, coarse_vocab_size=4)
    built.use_clusters(MAPPING)
    return built


@torch.no_grad()
def test_token_probabilities_are_the_product_of_both_stages(model):
    output = model(tokens(), CLASSES)
    probs = output.logits.exp()
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, 17))
    hidden = output.last_hidden_state
    clusters = output.cluster_logits.softmax(-1)
    for c in range(4):
        members = (c == MAPPING).nonzero().flatten()
        within = (hidden @ model.head.tokens.weight[members].T).softmax(-1)
        torch.testing.assert_close(probs[..., members], clusters[..., c : c + 1] * within)
    torch.testing.assert_close(
        output.cluster_logits, hidden @ model.head.clusters.weight.T, rtol=0, atol=1e-5
    )


def test_loss_is_the_joint_likelihood(model):
    labels = tokens()
    output = model(labels[:, :-1], CLASSES, labels=labels)
    expected = 0.0
    for b in range(3):
        for t in range(16):
            token = labels[b, t]
            coarse = output.cluster_logits[b, t].log_softmax(-1)[MAPPING[token]]
            members = MAPPING[token] == MAPPING
            scores = output.last_hidden_state[b, t] @ model.head.tokens.weight.T
            fine = (scores[token].exp() / scores[members].exp().sum()).log()
            expected = expected - (coarse + fine) / 48
    torch.testing.assert_close(output.loss, expected)


def test_a_fresh_model_is_uniform_over_clusters_then_members(model):
    fresh = CodecladeTransformer(model.config).eval()
    fresh.use_clusters(MAPPING)
    labels = tokens()
    sizes = MAPPING.bincount()[MAPPING[labels]].float()
    loss = fresh(labels, CLASSES, labels=labels).loss
    assert loss.item() == pytest.approx(math.log(4) + sizes.log().mean().item(), abs=1e-5)


def test_logsumexp_of_clusters_holds_at_extreme_logits():
    logits = torch.tensor([[-500.0, 300.0, -500.0, 2.0]], requires_grad=True)
    sums = cluster_logsumexp(logits, torch.tensor([0, 1, 0, 3]), 4)
    expected = torch.tensor([[-500 + math.log(2), 300.0, -math.inf, 2.0]])
    torch.testing.assert_close(sums, expected)
    sums[:, [0, 1, 3]].sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, 1.0, 0.5, 1.0]]))


@torch.no_grad()
def test_an_id_is_fed_back_as_token_plus_cluster(model):
    embedding = model.token_embedding
    expected = embedding.token.weight + embedding.cluster.weight[MAPPING]
    torch.testing.assert_close(embedding(torch.arange(10)), expected)


@torch.no_grad()
def test_stages_of_a_step_equal_the_teacher_forced_logits(model):
    known, cache = tokens(), DynamicCache()
    full = model(known, CLASSES)
    hidden, inputs = torch.zeros(3, 16, 32), {"class_labels": CLASSES}
    for step in range(16):
        output = model(**inputs, past_key_values=cache, return_logits=False)
        assert output.logits is None
        hidden[:, step] = output.last_hidden_state[:, -1]
        coarse = model.stage_logits(hidden, step)
        torch.testing.assert_close(coarse, full.cluster_logits[:, step], rtol=0, atol=1e-4)
        for cluster in range(4):
            chosen = torch.full((3,), cluster)
            fine = model.stage_logits(hidden, step, chosen).log_softmax(-1)
            joint = fine + coarse.log_softmax(-1)[:, cluster, None]
            inside = cluster == MAPPING
            torch.testing.assert_close(
                joint[:, inside], full.logits[:, step, inside], rtol=0, atol=1e-4
            )
            assert (fine[:, ~inside].exp() == 0).all()
        inputs = {"input_ids": known[:, step : step + 1]}


@torch.no_grad()
def test_the_only_stage_of_a_one_stage_model_is_its_next_token(tiny_transformer):
    model = tiny_transformer(vocab_size=10)
    output = model(tokens(), CLASSES)
    for step in (0, 7, 16, -1):
        logits = model.stage_logits(output.last_hidden_state, step)
        torch.testing.assert_close(logits, output.logits[:, step], rtol=0, atol=1e-5)
        assert logits.dtype == torch.float32
    with pytest.raises(ValueError, match="has one stage, so nothing is chosen before it"):
        model.stage_logits(output.last_hidden_state, 0, tokens()[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sampling_frequencies_are_the_probabilities(scale):
    """One token an image: counts of ids against the exact (guided) distribution."""
    pipe, count = build_scheme("cluster_token", grid_size=1), 6000
    settings = {"guidance_scale": scale, "num_images_per_prompt": count, "output_type": "latent"}
    ids = pipe(2, generator=seeded(), **settings).images.flatten()
    model = pipe.transformer
    both = model(class_labels=torch.tensor([2, 5]))
    expected = both.logits[0, 0].exp()
    if scale > 1:
        coarse = guide(*both.cluster_logits[:, 0], scale).softmax(-1)
        fine = guide(*(both.last_hidden_state[:, 0] @ model.head.tokens.weight.T), scale)
        cluster_of = model.token_embedding.cluster_of
        sums = cluster_logsumexp(fine, cluster_of, 12)
        expected = coarse[cluster_of] * (fine - sums[cluster_of]).exp()
    counts, wanted = ids.bincount(minlength=32), expected.double() * count
    large = wanted > 5
    rest = [count - counts[large].sum()], [count - wanted[large].sum()]
    result = chisquare([*counts[large], *rest[0]], [*wanted[large], *rest[1]])
    assert result.pvalue > 1e-3
    assert large.sum() > 8


@torch.no_grad()
def test_semantic_and_detail_frequencies_are_the_probabilities():
    pipe, count = build_scheme("semantic_detail", grid_size=1), 6000
    settings = {"guidance_scale": 1, "num_images_per_prompt": count, "output_type": "latent"}
    ids = pipe(2, generator=seeded(), **settings).images.flatten(0, 2)
    every = torch.cartesian_prod(torch.arange(32), torch.arange(DETAILS)).unsqueeze(1)
    output = pipe.transformer(every, torch.full((len(every),), 2))
    semantic, detail = output.semantic_logits[:, 0], output.detail_logits[:, 0]
    joint = semantic.softmax(-1).gather(1, every[:, 0, :1]) * detail.softmax(-1).gather(
        1, every[:, 0, 1:]
    )
    assert joint.sum().item() == pytest.approx(1, abs=1e-4)
    counts = (ids[:, 0] * DETAILS + ids[:, 1]).bincount(minlength=len(every))
    wanted = joint.flatten().double() * count
    large = wanted > 8
    rest = [count - counts[large].sum()], [count - wanted[large].sum()]
    assert chisquare([*counts[large], *rest[0]], [*wanted[large], *rest[1]]).pvalue > 1e-3
    assert large.sum() > 50


@pytest.mark.parametrize("scheme", ["cluster_token", "semantic_detail"])
def test_two_stage_models_learn(scheme):
    torch.manual_seed(0)
    model = build_scheme(scheme).transformer.train()
    model = CodecladeTransformer(model.config)
    if scheme == "cluster_token":
        model.use_clusters(torch.arange(32) % 12)
    known = tokens(4, 16, 24)
    if scheme == "semantic_detail":
        known = torch.stack([known, (known + 1) % DETAILS], dim=-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(known[:, :-1], torch.arange(4), labels=known).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("scheme", ["cluster_token", "semantic_detail"])
def test_every_weight_has_a_gradient_also_in_mixed_precision(scheme):
    model = build_scheme(scheme).transformer
    known = tokens(2, 16, 24)
    known = torch.stack([known, known], dim=-1) if scheme == "semantic_detail" else known
    exact = model(known[:, :-1], CLASSES[:2], labels=known).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(known[:, :-1], CLASSES[:2], labels=known).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_of_the_head_gives_equal_gradients():
    model = build_scheme("semantic_detail").transformer.train()
    known = torch.stack([tokens(2), tokens(2)], dim=-1)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)  # the same dropout
        model(known[:, :-1], CLASSES[:2], labels=known).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_image_does_not_depend_on_its_batch(scheme):
    pipe = build_scheme(scheme)
    together = pipe([1, 2], output_type="latent", generator=[seeded(4), seeded(5)]).images
    alone = pipe(2, output_type="latent", generator=seeded(5)).images
    assert torch.equal(together[1], alone[0])
    again = pipe(2, output_type="latent", generator=seeded(5)).images
    other = pipe(2, output_type="latent", generator=seeded(6)).images
    assert torch.equal(alone, again)
    assert not torch.equal(alone, other)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_clusters_are_those_of_the_ids(scheme):
    pipe = build_scheme(scheme)
    ids, clusters = (
        pipe([1, 2], output_type=kind, generator=seeded()).images for kind in ("latent", "cluster")
    )
    assert clusters.shape == (2, 4, 4)
    expected = ids[..., 0] if scheme == "semantic_detail" else pipe.cluster_map.to_clusters(ids)
    assert torch.equal(clusters, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pipelines_of_every_scheme_save_and_load(scheme, tmp_path):
    pipe = build_scheme(scheme)
    pipe.save_pretrained(tmp_path)
    loaded = CodecladePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    runs = [one(1, generator=seeded(), output_type="pt").images for one in (pipe, loaded)]
    assert torch.equal(*runs)
    half = CodecladePipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half(1, generator=seeded(), output_type="pt").images.isfinite().all()
    if scheme == "cluster_token":
        stored = half.transformer.token_embedding.cluster_of
        assert torch.equal(stored, pipe.cluster_map.mapping)


def test_cluster_token_needs_no_cluster_map():
    pipe = build_scheme("cluster_token")
    bare = CodecladePipeline(pipe.vq_model, pipe.transformer)
    bare.set_progress_bar_config(disable=True)
    runs = [
        one(1, generator=seeded(), output_type=kind).images
        for kind in ("latent", "cluster")
        for one in (pipe, bare)
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[2], runs[3])


def test_temperature_and_filters_act_on_both_stages():
    pipe = build_scheme("semantic_detail")
    greedy = pipe(1, temperature=0, output_type="latent").images
    settings = {"generator": seeded(), "output_type": "latent"}
    assert torch.equal(pipe(1, top_k=1, **settings).images, greedy)
    assert torch.equal(pipe(1, top_p=1e-6, **settings).images, greedy)
    assert not torch.equal(pipe(1, **settings).images, greedy)


def test_callback_changes_pairs():
    pipe, seen = build_scheme("semantic_detail"), []

    def zero(_, step, token, kwargs):
        seen.append(kwargs["tokens"].clone())
        return {"latents": torch.zeros_like(kwargs["latents"])}

    ids = pipe(1, output_type="latent", generator=seeded(), callback_on_step_end=zero).images
    assert len(seen) == 16
    assert seen[0].shape == (1, 16, 2)
    assert not ids.any()


def test_mapping_that_does_not_fit_is_refused(model, tiny_transformer):
    with pytest.raises(ValueError, match=r"shape \(9,\), but there are 10 ids"):
        model.use_clusters(MAPPING[:9])
    with pytest.raises(ValueError, match=r"every cluster 0\.\.3"):
        model.use_clusters(torch.zeros(10, dtype=torch.int64))
    with pytest.raises(ValueError, match="scheme 'token' has no clusters"):
        tiny_transformer().use_clusters(MAPPING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "cluster_token"}, "coarse_vocab_size=None does not fit scheme 'cluster_token'"),
        ({"coarse_vocab_size": 8}, "coarse_vocab_size=8 does not fit scheme 'token'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CodecladeConfig(**changes)


def test_components_that_do_not_fit_are_refused(tiny_vq, tiny_map, tiny_transformer):
    pairs = {"scheme": "semantic_detail", "coarse_vocab_size": 32, "vocab_size": DETAILS}
    with pytest.raises(ValueError, match="does not fit a vq_model with detail_codebook_size=None"):
        CodecladePipeline(tiny_vq(), tiny_transformer(**pairs))
    with pytest.raises(ValueError, match=r"'token' does not fit .*detail_codebook_size=24"):
        CodecladePipeline(tiny_vq(detail_codebook_size=DETAILS), tiny_transformer())
    with pytest.raises(ValueError, match="predicts 24 detail codes, but there are 25"):
        CodecladePipeline(tiny_vq(detail_codebook_size=25), tiny_transformer(**pairs))
    with pytest.raises(ValueError, match="predicts 31 semantic codes, but there are 32"):
        transformer = tiny_transformer(**pairs | {"coarse_vocab_size": 31})
        CodecladePipeline(tiny_vq(detail_codebook_size=DETAILS), transformer)
    both = tiny_transformer(scheme="cluster_token", coarse_vocab_size=12)
    with pytest.raises(ValueError, match="has no clusters yet; give it some by use_clusters"):
        CodecladePipeline(tiny_vq(), both)
    both.use_clusters(torch.arange(32) % 12)
    with pytest.raises(ValueError, match="cluster_map has other clusters than transformer"):
        CodecladePipeline(tiny_vq(), both, tiny_map(tiny_vq().codebook))
