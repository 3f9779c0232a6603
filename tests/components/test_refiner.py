"""Refiner: DCPE's refine net against a naive one, member masks, sampling, training."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare

from builders import REFINERS, build_refiner
from codeclade import CodecladePipeline
from codeclade.checkpoints.dcpe import FAMILY as DCPE
from codeclade.checkpoints.dcpe import cluster_map_from_index
from codeclade.components.cluster_map import codebook_sketch
from codeclade.components.refiner import Refiner, RefinerConfig, generator_states
from codeclade.training.refiner import RefinerRecipe, train_refiner

CODES, CLUSTERS, CLASSES, TOKENS = 32, 12, 5, 16
CTF, MASC = REFINERS["CTF"], REFINERS["MASC"]


def random_clusters(batch: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CLUSTERS, (batch, TOKENS), generator=generator)


def dcpe_weights(layers: int = 1, width: int = 32, ffn: int = 48) -> dict[str, torch.Tensor]:
    """A refine net as DCPE names it."""
    shapes = {
        "cls_embedding.embedding_table.weight": (CLASSES, width),
        "tok_embeddings.weight": (CLUSTERS, width),
        "norm.weight": (width,),
        "output.weight": (CODES, width),
    }
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * width, width),
            f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.feed_forward.w1.weight": (ffn, width),
            f"layers.{i}.feed_forward.w3.weight": (ffn, width),
            f"layers.{i}.feed_forward.w2.weight": (width, ffn),
            f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.ffn_norm.weight": (width,),
        }
    generator = torch.Generator().manual_seed(1)
    return {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def naive_refine_net(weights, clusters, label, heads: int = 2, grid: int = 4) -> torch.Tensor:
    """Logits (T, N) of one image, straight from the description of the method, in float64."""
    w = {key: value.double() for key, value in weights.items()}

    def rms(x, gain):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    x = torch.cat(
        [
            w["cls_embedding.embedding_table.weight"][label][None],
            w["tok_embeddings.weight"][clusters],
        ]
    )
    length, width = x.shape
    size = width // heads
    turn = torch.zeros(length, size // 2, dtype=torch.complex128)  # the class row stays zero
    for position in range(1, length):
        row, column = divmod(position - 1, grid)
        theta = 10000.0 ** (-torch.arange(size // 4).double() / (size // 4))
        turn[position] = torch.polar(
            torch.ones(size // 2).double(), torch.cat([row * theta, column * theta])
        )

    def rotated(vectors):
        pairs = torch.view_as_complex(vectors.reshape(length, size // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).reshape(length, size)

    for i in range(sum("wqkv" in key for key in weights)):
        inner = rms(x, w[f"layers.{i}.attention_norm.weight"])
        query, key, value = (inner @ w[f"layers.{i}.attention.wqkv.weight"].T).chunk(3, -1)
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = rotated(query[:, part]) @ rotated(key[:, part]).T / size**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            mixed.append(scores.softmax(-1) @ value[:, part])
        x = x + torch.cat(mixed, -1) @ w[f"layers.{i}.attention.wo.weight"].T
        inner = rms(x, w[f"layers.{i}.ffn_norm.weight"])
        gate = F.silu(inner @ w[f"layers.{i}.feed_forward.w1.weight"].T)
        inner = gate * (inner @ w[f"layers.{i}.feed_forward.w3.weight"].T)
        x = x + inner @ w[f"layers.{i}.feed_forward.w2.weight"].T
    return (rms(x, w["norm.weight"]) @ w["output.weight"].T)[1:]


@pytest.mark.parametrize("layers", [1, 2])
def test_dcpe_refine_net_equals_the_naive_one(layers):
    weights, clusters = dcpe_weights(layers), random_clusters()
    labels = torch.tensor([0, 3, 4])
    refiner = DCPE.refiner.build(weights, grid_size=4, num_attention_heads=2)
    expected = torch.stack(
        [naive_refine_net(weights, row, label) for row, label in zip(clusters, labels, strict=True)]
    )
    logits = refiner(clusters, labels).logits
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)
    assert torch.equal(refiner.refine(clusters, labels), expected.argmax(-1))


def test_dcpe_round_trip_keeps_every_byte():
    weights = dcpe_weights()
    back = DCPE.refiner.published_weights(
        DCPE.refiner.build(weights, grid_size=4, num_attention_heads=2)
    )
    assert sorted(back) == sorted(weights)
    assert all(torch.equal(back[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "missing norm.weight"),
        ({"layers.0.extra.weight": torch.ones(1)}, "unexpected layers.0.extra.weight"),
        ({"norm.weight": torch.ones(7)}, r"norm.weight has shape \(7,\)"),
        ({"output.weight": torch.ones(CLUSTERS, 32)}, "as a generator"),
    ],
)
def test_dcpe_refuses_other_weights(change, message):
    weights = {key: value for key, value in (dcpe_weights() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        DCPE.refiner.build(weights, grid_size=4, num_attention_heads=2)


def test_dcpe_index_may_be_a_view_with_storage_offset(tiny_vq, tmp_path):
    codebook = tiny_vq().codebook
    index = torch.arange(CODES) % CLUSTERS
    torch.save(torch.cat([torch.zeros(CODES, dtype=torch.int64), index])[CODES:], tmp_path / "i.pt")
    loaded = torch.load(tmp_path / "i.pt", weights_only=True)
    assert loaded.storage_offset() == CODES
    assert torch.equal(cluster_map_from_index(loaded, codebook).mapping, index)
    with pytest.raises(ValueError, match=r"integers of shape \(N,\), this one \(2, 16\)"):
        cluster_map_from_index(index.view(2, 16), codebook)


def test_default_config_is_dcpes_refine_net():
    with torch.device("meta"):
        refiner = Refiner(RefinerConfig())
    assert sum(p.numel() for p in refiner.parameters()) == 26_722_560  # about 26.7M


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cluster_reaches_earlier_positions_only_when_bidirectional(causal, attention):
    refiner = build_refiner(causal=causal)
    refiner.set_attn_implementation(attention)
    clusters, labels = random_clusters(1), torch.tensor([1])
    changed = clusters.clone()
    changed[0, 9] = (changed[0, 9] + 1) % CLUSTERS
    before, after = (refiner(c, labels).logits[0] for c in (clusters, changed))
    moved = (before - after).abs().amax(-1) > 1e-6
    assert moved[9:].all()
    assert moved[:9].any() != causal


def test_attention_implementations_agree():
    refiner, clusters, labels = build_refiner(**CTF), random_clusters(), torch.tensor([0, 1, 2])
    mapping = torch.arange(CODES) % CLUSTERS
    results = []
    for name in ("sdpa", "eager"):
        refiner.set_attn_implementation(name)
        results.append(refiner(clusters, labels, mapping=mapping).logits)
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 5},
        {"guidance_scale": 4.0},
    ],
)
def test_masked_ids_lie_in_their_cluster(settings, tiny_vq, tiny_map):
    cluster_map = tiny_map(tiny_vq().codebook, CLUSTERS)
    refiner, clusters = build_refiner(**CTF), random_clusters(8)
    labels = torch.arange(8) % CLASSES
    for uniforms in (None, torch.zeros(8, TOKENS), torch.full((8, TOKENS), 1 - 2**-24)):
        ids = refiner.refine(clusters, labels, cluster_map, uniforms=uniforms, **settings)
        assert torch.equal(cluster_map.to_clusters(ids), clusters)


def test_without_mask_ids_may_leave_their_cluster(tiny_vq, tiny_map):
    cluster_map = tiny_map(tiny_vq().codebook, CLUSTERS)
    clusters, labels = random_clusters(8), torch.arange(8) % CLASSES
    ids = build_refiner().refine(clusters, labels)
    assert not torch.equal(cluster_map.to_clusters(ids), clusters)


def test_sampling_follows_the_masked_softmax(tiny_vq, tiny_map):
    cluster_map = tiny_map(tiny_vq().codebook, 6)
    refiner = build_refiner(**CTF, num_clusters=6)
    largest = cluster_map.sizes.argmax()
    clusters, labels = largest.repeat(1, TOKENS), torch.tensor([2])
    logits = refiner(clusters, labels, mapping=cluster_map.mapping).logits[0]
    count = 4000
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(count, TOKENS, generator=generator)
    many = refiner.refine(
        clusters.expand(count, -1), labels.expand(count), cluster_map, uniforms=uniforms
    )
    members = cluster_map.members(int(largest))
    for position in (0, 7):
        observed = many[:, position].bincount(minlength=CODES)[members]
        expected = logits[position, members].detach().softmax(-1).double() * count
        enough = expected >= 5
        seen, wanted = observed[enough].double(), expected[enough]
        assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_an_untrained_masked_refiner_is_the_uniform_member_draw(tiny_vq, tiny_map):
    cluster_map = tiny_map(tiny_vq().codebook, CLUSTERS)
    refiner = Refiner(build_refiner(**CTF).config).eval()
    ids = torch.arange(CODES).view(2, TOKENS)
    clusters = cluster_map.to_clusters(ids)
    loss = refiner(clusters, torch.tensor([0, 1]), mapping=cluster_map.mapping, labels=ids).loss
    expected = cluster_map.sizes[clusters].double().log().mean()
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=0)


def test_guidance_moves_away_from_the_null_class():
    refiner, clusters = build_refiner(null_class=True), random_clusters()
    labels, null = torch.tensor([0, 1, 2]), torch.full((3,), CLASSES)
    conditional, unconditional = (refiner(clusters, c).logits for c in (labels, null))
    guided = unconditional + 3 * (conditional - unconditional)
    assert not torch.equal(guided.argmax(-1), conditional.argmax(-1))
    assert torch.equal(refiner.refine(clusters, labels, guidance_scale=3.0), guided.argmax(-1))
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 needs a refiner with a null class"):
        build_refiner().refine(clusters, labels, guidance_scale=2.0)


def test_hidden_states_are_what_the_generators_head_reads(tiny_transformer):
    transformer = tiny_transformer(vocab_size=CLUSTERS, scheme="cluster")
    clusters, labels = random_clusters(), torch.tensor([0, 1, 2])
    states = generator_states(transformer, clusters, class_labels=labels)
    assert states.shape == (3, TOKENS, 32)
    logits = transformer(clusters, labels).logits[:, :TOKENS]
    torch.testing.assert_close(transformer.head(states), logits, atol=1e-5, rtol=1e-5)


def test_context_enters_and_is_asked_for(tiny_vq, tiny_map):
    cluster_map = tiny_map(tiny_vq().codebook, CLUSTERS)
    refiner = build_refiner(context_dim=24, num_classes=0, mask_to_members=True, causal=False)
    clusters = random_clusters()
    context = torch.randn(3, TOKENS, 24, generator=torch.Generator().manual_seed(0))
    mapping = cluster_map.mapping
    with torch.no_grad():
        one, two = (
            refiner(clusters, context=c, mapping=mapping).logits for c in (context, -context)
        )
    assert not torch.allclose(one, two)
    ids = refiner.refine(clusters, cluster_map=cluster_map, context=context)
    assert torch.equal(cluster_map.to_clusters(ids), clusters)
    with pytest.raises(ValueError, match="needs context"):
        refiner.refine(clusters, cluster_map=cluster_map)
    with pytest.raises(ValueError, match="needs mapping"):
        refiner.refine(clusters, context=context)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="needs class_labels"):
        build_refiner().refine(random_clusters())
    with pytest.raises(ValueError, match=r"T up to 16, got \(1, 17\)"):
        build_refiner().refine(torch.zeros(1, 17, dtype=torch.int64), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"class_dropout=0\.1 needs null_class=True"):
        RefinerConfig(class_dropout=0.1)
    with pytest.raises(ValueError, match="hidden_size=30"):
        RefinerConfig(hidden_size=30)


def test_save_and_load_keep_logits_and_settings(tmp_path):
    refiner = build_refiner(**CTF)
    refiner.save_pretrained(tmp_path)
    loaded = Refiner.from_pretrained(tmp_path)
    clusters, labels = random_clusters(), torch.tensor([0, 1, 2])
    mapping = torch.arange(CODES) % CLUSTERS
    expected = refiner(clusters, labels, mapping=mapping).logits
    assert torch.equal(loaded(clusters, labels, mapping=mapping).logits, expected)
    assert not any(layer.attention.is_causal for layer in loaded.layers)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("norm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: norm\.weight"):
        Refiner.from_pretrained(tmp_path)


def test_gradient_checkpointing_changes_no_gradient():
    clusters, labels = random_clusters(), torch.tensor([0, 1, 2])
    gradients = []
    for checkpointing in (False, True):
        refiner = build_refiner(residual_dropout=0.0, feed_forward_dropout=0.0).train()
        if checkpointing:
            refiner.gradient_checkpointing_enable()
        refiner(clusters, labels, labels=clusters).loss.backward()
        gradients.append(refiner.layers[0].attention.qkv.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


@pytest.fixture
def refining_pipeline(tiny_pipeline):
    """Build a pipeline over clusters with a refiner of some kind."""

    def build(**changes) -> CodecladePipeline:
        pipe = tiny_pipeline()
        parts = {key: value for key, value in pipe.components.items() if key != "refiner"}
        pipe = CodecladePipeline(**parts, refiner=build_refiner(**changes))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", [CTF, {}, MASC], ids=["CTF", "DCPE", "MASC"])
def test_the_pipeline_uses_its_refiner_unless_told_otherwise(kind, refining_pipeline, tmp_path):
    pipe = refining_pipeline(**kind)
    labels = [0, 3]
    ids, same, member = (
        pipe(labels, refine=way, output_type="latent", generator=seeded()).images
        for way in (None, "refiner", "member")
    )
    assert torch.equal(ids, same) and not torch.equal(ids, member)
    clusters = pipe(labels, output_type="cluster", generator=seeded()).images
    assert torch.equal(pipe.cluster_map.to_clusters(member), clusters)
    if pipe.refiner.config.mask_to_members:
        assert torch.equal(pipe.cluster_map.to_clusters(ids), clusters)
    given = {"class_labels": torch.tensor(labels)} if pipe.refiner.config.num_classes else {}
    if pipe.refiner.config.context_dim:
        states = generator_states(
            pipe.transformer, clusters.flatten(1), class_labels=torch.tensor(labels)
        )
        given["context"] = states
    greedy = pipe.refiner(clusters.flatten(1), mapping=pipe.cluster_map.mapping, **given)
    if pipe.refiner.config.sampling_temperature == 0:
        assert torch.equal(ids.flatten(1), greedy.logits.argmax(-1))
    pipe.save_pretrained(tmp_path)
    loaded = CodecladePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    again = loaded(labels, output_type="latent", generator=seeded()).images
    assert torch.equal(again, ids)


@pytest.mark.parametrize("kind", [CTF, {}, MASC], ids=["CTF", "DCPE", "MASC"])
def test_redraw_asks_the_refiner(kind, refining_pipeline):
    pipe = refining_pipeline(**kind)
    clusters = pipe([0, 3], output_type="cluster", generator=seeded()).images
    settings = {"refine": "refiner", "output_type": "latent", "generator": seeded()}
    two = {"class_labels": [0, 3], "num_images_per_prompt": 2}
    ids = pipe.redraw(clusters=clusters, **two, **settings).images
    assert ids.shape == (4, 4, 4)
    if pipe.refiner.config.mask_to_members:
        expected = clusters.repeat_interleave(2, dim=0)
        assert torch.equal(pipe.cluster_map.to_clusters(ids), expected)
        assert not torch.equal(ids[0], ids[1])
    else:  # arg-max
        from_start = pipe([0, 3], output_type="latent", generator=seeded()).images
        assert torch.equal(ids, from_start.repeat_interleave(2, dim=0))
    with pytest.raises(ValueError, match="class_labels"):
        pipe.redraw(clusters=clusters, **settings)
    members = pipe.redraw(clusters=clusters, output_type="ids").images
    assert torch.equal(pipe.cluster_map.to_clusters(members), clusters)


def test_refiners_of_a_pipeline_are_checked(refining_pipeline, tiny_pipeline):
    with pytest.raises(ValueError, match="refiner turns 12 clusters into 33 ids"):
        refining_pipeline(codebook_size=33)
    with pytest.raises(ValueError, match=r"refine='refiner' must be .* none is loaded"):
        tiny_pipeline()(0, refine="refiner")
    with pytest.raises(ValueError, match=r"refine='always' must be .* one is loaded"):
        refining_pipeline()(0, refine="always")


def test_a_call_gives_the_refiner_its_settings(refining_pipeline):
    pipe = refining_pipeline(**CTF)
    clusters = pipe([0, 3], output_type="clusters", generator=seeded()).images
    given = {"refiner_settings": {"temperature": 0}, "output_type": "ids"}
    greedy = pipe([0, 3], generator=seeded(), **given).images
    logits = pipe.refiner(
        clusters.flatten(1), torch.tensor([0, 3]), mapping=pipe.cluster_map.mapping
    ).logits
    assert torch.equal(greedy.flatten(1), logits.argmax(-1))
    assert not torch.equal(greedy, pipe([0, 3], output_type="ids", generator=seeded()).images)
    redrawn = pipe.redraw(clusters=clusters, class_labels=[0, 3], refine="refiner", **given)
    assert torch.equal(redrawn.images, greedy)
    # One candidate is the arg-max at any temperature.
    given["refiner_settings"] = {"temperature": 3.0, "top_k": 1}
    assert torch.equal(pipe([0, 3], generator=seeded(), **given).images, greedy)


def test_a_call_guides_the_refiner(refining_pipeline):
    pipe = refining_pipeline(null_class=True, sampling_temperature=0.0)
    labels = torch.tensor([0, 3])
    clusters = pipe([0, 3], output_type="clusters", generator=seeded()).images
    settings = {"guidance_scale": 4.0}
    ids = pipe([0, 3], output_type="ids", generator=seeded(), refiner_settings=settings).images
    expected = pipe.refiner.refine(clusters.flatten(1), labels, guidance_scale=4.0)
    assert torch.equal(ids.flatten(1), expected)
    assert not torch.equal(expected, pipe.refiner.refine(clusters.flatten(1), labels))


@pytest.mark.parametrize(
    ("settings", "refine", "words"),
    [
        ({"heat": 1}, None, "refiner_settings has no 'heat'; it has 'temperature', 'top_k'"),
        ({"temperature": -1}, None, "temperature=-1 must be a number, 0 or more"),
        ({"temperature": float("nan")}, None, "temperature=nan must be a number, 0 or more"),
        ({"top_k": 2.5}, None, r"top_k=2.5 must be a whole number, 0 or more"),
        ({"guidance_scale": 2.0}, None, "guidance_scale=2.0 needs a refiner with a null class"),
        ({"temperature": 1.0}, "member", "are of a refiner, and none is asked here"),
    ],
)
def test_settings_that_a_refiner_cannot_have_are_refused(
    refining_pipeline, settings, refine, words
):
    with pytest.raises(ValueError, match=words):
        refining_pipeline()(0, refine=refine, refiner_settings=settings)


def write_codes(folder, vq_model, cluster_map) -> None:
    """Shards whose ids follow from cluster and class, so that a refiner can learn them."""
    generator = torch.Generator().manual_seed(0)
    order, first, sizes = cluster_map._member_table()
    for split, count in (("train", 40), ("validation", 10)):
        clusters = torch.randint(CLUSTERS, (count, 1, TOKENS), generator=generator)
        labels = torch.arange(count) % CLASSES
        ids = order[first[clusters] + labels[:, None, None] % sizes[clusters]]
        (folder / split).mkdir(parents=True)
        shard = {"ids": ids.to(torch.uint16), "labels": labels.int()}
        save_file(shard, folder / split / "codes-00000.safetensors")
        header = {
            "grid_size": 4,
            "codebook_size": CODES,
            "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
            "class_names": list("abcde"),
            "shards": ["codes-00000.safetensors"],
        }
        (folder / split / "codes.json").write_text(json.dumps(header))


def tiny_recipe(**changes) -> RefinerRecipe:
    fields = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "causal": False,
        "mask_to_members": True,
        "dropout": 0.0,
        "steps": 60,
        "batch_size": 20,
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-3,
        "ema_decay": 0.8,
        "mixed_precision": "no",
        "save_every": 30,
        "evaluate_every": 60,
    }
    return RefinerRecipe(**(fields | changes))


def test_training_beats_the_member_draw_and_resumes_bit_equal(tiny_vq, tiny_map, tmp_path):
    vq_model = tiny_vq()
    cluster_map = tiny_map(vq_model.codebook, CLUSTERS)
    write_codes(tmp_path / "codes", vq_model, cluster_map)
    out = tmp_path / "run"
    arguments = (tiny_recipe(), tmp_path / "codes", vq_model, cluster_map, out)
    trained = train_refiner(*arguments)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    baseline = log[0]["member_draw_baseline"]
    assert log[-1]["validation_loss"] < 0.5 * baseline
    assert log[-1]["validation_accuracy"] > 0.8
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    shutil.rmtree(out / "checkpoints" / "step-00000060")
    again = train_refiner(*arguments)
    assert all(torch.equal(before[key], value) for key, value in again.state_dict().items())
    saved = Refiner.from_pretrained(out / "refiner")
    assert torch.equal(saved.head.weight, trained.head.weight)


def test_training_with_the_generators_states(tiny_vq, tiny_map, tiny_transformer, tmp_path):
    vq_model = tiny_vq()
    cluster_map = tiny_map(vq_model.codebook, CLUSTERS)
    write_codes(tmp_path / "codes", vq_model, cluster_map)
    transformer = tiny_transformer(vocab_size=CLUSTERS, scheme="cluster")
    before = transformer.head.weight.clone()
    refiner = train_refiner(
        tiny_recipe(class_prefix=False, steps=2, gradient_checkpointing=True, use_best=True),
        tmp_path / "codes",
        vq_model,
        cluster_map,
        tmp_path / "run",
        transformer,
    )
    assert refiner.config.context_dim == 32 and refiner.config.num_classes == 0
    assert torch.equal(transformer.head.weight, before)
    with pytest.raises(ValueError, match="the generator predicts 7 tokens, but there are 12"):
        train_refiner(
            tiny_recipe(),
            tmp_path / "codes",
            vq_model,
            cluster_map,
            tmp_path / "other",
            tiny_transformer(vocab_size=7, scheme="cluster"),
        )


@pytest.mark.slow
def test_compiled_blocks_have_the_same_losses(tiny_vq, tiny_map, tmp_path):
    vq_model = tiny_vq()
    cluster_map = tiny_map(vq_model.codebook, CLUSTERS)
    write_codes(tmp_path / "codes", vq_model, cluster_map)
    losses = []
    for compiled in (False, True):
        recipe, out = tiny_recipe(steps=2, compile=compiled), tmp_path / str(compiled)
        train_refiner(recipe, tmp_path / "codes", vq_model, cluster_map, out)
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses.append(log[-1]["validation_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
