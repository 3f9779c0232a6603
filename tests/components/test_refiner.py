"""Refiner: DCPE's refine net against a naive one, member masks, sampling."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare

from builders import REFINERS, build_refiner
from codeclade.checkpoints.dcpe import FAMILY as DCPE
from codeclade.checkpoints.dcpe import cluster_map_from_index
from codeclade.components.refiner import Refiner, RefinerConfig, generator_states

CODES, CLUSTERS, CLASSES, TOKENS = 32, 12, 5, 16
CTF = REFINERS["CTF"]


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
