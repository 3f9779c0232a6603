"""IAR and IAR2: published numbers, train-time against step-wise logits, conversion both ways."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, StaticCache

from builders import DETAILS, build_scheme
from codeclade import CodecladeConfig, CodecladePipeline, CodecladeTransformer
from codeclade.checkpoints.containers import load_checkpoint, load_mapping
from codeclade.checkpoints.iar2 import FAMILY as IAR2
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN
from codeclade.components.blocks import rotation
from codeclade.components.heads import neighbors
from codeclade.training.losses import cluster_loss
from golden_weights import golden_case

CLOSE = {"rtol": 0, "atol": 1e-4}
PUBLISHED = {
    "guidance_scale": 3.0,
    "guidance_schedule": {"name": "attention", "start": 1.75, "weight": 0.05},
    "temperature": 0,
}


def pairs(batch: int, count: int, seed: int = 0, sizes=(32, DETAILS)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    both = [torch.randint(size, (batch, count), generator=generator) for size in sizes]
    return torch.stack(both, dim=-1)


@pytest.fixture(scope="module")
def published():
    _, weights, golden = golden_case("iar2_gpt_c2i")
    model = IAR2.generator.build(weights, grid_size=4, num_attention_heads=4)
    return model, weights, golden


@torch.no_grad()
def test_iar_has_the_published_logits_and_losses():
    _, weights, golden = golden_case("iar_gpt_c2i")
    model = LLAMAGEN.generator.build(weights, grid_size=4, num_attention_heads=4)
    output = model(golden["idx"][:, :-1], golden["cond"], labels=golden["idx"])
    torch.testing.assert_close(output.logits, golden["train_logits"], **CLOSE)
    torch.testing.assert_close(output.loss, golden["token_loss"][0], **CLOSE)
    blocks = torch.arange(192) // 16
    for clusters in (16, blocks):
        loss = cluster_loss(output.logits, golden["idx"], clusters)
        torch.testing.assert_close(loss, golden["cluster_loss"][0], **CLOSE)


def test_cluster_loss_is_the_summed_probability_of_the_cluster():
    generator = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(3, 5, 11, generator=generator)
    tokens = torch.randint(11, (3, 5), generator=generator)
    clusters = torch.tensor([0, 2, 1, 1, 0, 2, 2, 2, 3, 2, 2])  # sizes 2, 2, 6, 1
    summed = torch.stack([logits.softmax(-1)[..., clusters == c].sum(-1) for c in range(4)], -1)
    expected = -summed.gather(-1, clusters[tokens].unsqueeze(-1)).log().mean()
    torch.testing.assert_close(cluster_loss(logits, tokens, clusters), expected)
    fair = cluster_loss(torch.zeros(3, 5, 11), tokens, clusters, beta=1.0)
    assert fair.item() == pytest.approx(torch.tensor(4.0).log().item())


def test_cluster_loss_has_the_gradient_of_the_paper():
    logits = torch.randn(1, 7, requires_grad=True, generator=torch.Generator().manual_seed(1))
    clusters = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    cluster_loss(logits, torch.tensor([3]), clusters).backward()
    p, inside = logits.detach().softmax(-1), clusters == 1
    expected = p - inside * p / p[:, inside].sum()
    torch.testing.assert_close(logits.grad, expected)


def test_cluster_loss_refuses_clusters_that_do_not_fit():
    with pytest.raises(ValueError, match="clusters of 3 tokens do not divide 8 tokens"):
        cluster_loss(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"shape \(7,\), but there are 8 tokens"):
        cluster_loss(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), torch.arange(7))


@torch.no_grad()
def test_generator_has_the_published_logits_and_losses(published):
    model, _, golden = published
    known = torch.stack([golden["semantic"], golden["detail"]], dim=-1)
    output = model(known[:, :-1], golden["cond"], labels=known)
    semantic, detail = golden["train_semantic_logits"], golden["train_detail_logits"]
    torch.testing.assert_close(output.semantic_logits, semantic, **CLOSE)
    torch.testing.assert_close(output.detail_logits, detail, **CLOSE)
    losses = golden["semantic_loss"][0], golden["detail_loss"][0]
    torch.testing.assert_close(output.loss, sum(losses), **CLOSE)
    model.config.semantic_loss_weight = 2.0
    weighted = model(known, golden["cond"], labels=known).loss
    model.config.semantic_loss_weight = 1.0
    torch.testing.assert_close(weighted, 2 * losses[0] + losses[1], **CLOSE)


def test_pipeline_has_the_published_greedy_codes_and_attention(published, tiny_vq):
    model, _, golden = published
    pipe = CodecladePipeline(tiny_vq(detail_codebook_size=64), model)
    pipe.set_progress_bar_config(disable=True)
    shares = []
    hook = model.register_forward_hook(lambda *call: shares.append(call[2].condition_attention))
    ids = pipe(golden["cond"].tolist(), output_type="latent", **PUBLISHED).images.flatten(1, 2)
    hook.remove()
    # Calls that turn states into logits have no attention.
    shares = [share for share in shares if share is not None]
    assert torch.equal(ids[..., 0], golden["greedy_semantic"])
    assert torch.equal(ids[..., 1], golden["greedy_detail"])
    torch.testing.assert_close(torch.stack(shares)[:, :2], golden["attn_to_condition"], **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_tokenizer_has_the_published_ids_and_images():
    _, weights, golden = golden_case("iar2_vq")
    model = IAR2.tokenizer.build(weights)
    assert (model.codebook_size, model.detail_codebook_size) == (256, 4096)
    ids = model.encode(golden["pixels"]).ids
    assert torch.equal(ids[..., 0], golden["semantic"])
    assert torch.equal(ids[..., 1], golden["detail"])
    torch.testing.assert_close(model.quantize.lookup(ids), golden["quantized"], **CLOSE)
    torch.testing.assert_close(model.decode(ids), golden["reconstruction"], **CLOSE)
    torch.testing.assert_close(model.decode(ids.flatten(1, 2)), golden["reconstruction"], **CLOSE)
    back = IAR2.tokenizer.published_weights(model)
    assert back.keys() == {key for key in weights if "codebook_used" not in key}
    assert all(torch.equal(value, weights[key]) for key, value in back.items())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("grid_size", [3, 5])
def test_step_wise_logits_equal_the_training_logits(tiny_transformer, grid_size, kind):
    model = tiny_transformer(
        scheme="semantic_detail", coarse_vocab_size=7, vocab_size=DETAILS, grid_size=grid_size
    )
    count = grid_size**2
    known, labels = pairs(2, count, sizes=(7, DETAILS)), torch.tensor([3, 5])
    full = model(known[:, :-1], labels, labels=known)
    cache = StaticCache(model.config, count + 1) if kind == "static" else DynamicCache()
    hidden, inputs = torch.zeros(2, count, 32), {"class_labels": labels}
    for step in range(count):
        output = model(**inputs, past_key_values=cache, return_logits=False)
        hidden[:, step], head_cache = output.last_hidden_state[:, -1], DynamicCache()
        semantic = model.stage_logits(hidden, step, None, head_cache)
        detail = model.stage_logits(hidden, step, known[:, step, 0], head_cache)
        torch.testing.assert_close(semantic, full.semantic_logits[:, step], **CLOSE)
        torch.testing.assert_close(detail, full.detail_logits[:, step], **CLOSE)
        inputs = {"input_ids": known[:, step : step + 1]}
    assert full.semantic_logits.std() > 0.1  # the comparison is of something


def test_window_holds_the_cells_before_in_raster_order():
    window = neighbors(torch.tensor([30, 100, 0, 47]), 24, 2)
    assert window[0].tolist() == [-1] * 5 + [4, 5, 6, 7, 8, 28, 29]
    assert window[1].tolist() == [*range(50, 55), *range(74, 79), 98, 99]
    assert window[2].tolist() == [-1] * 12
    right_edge = [-1] * 5 + [21, 22, 23, -1, -1, 45, 46]
    assert window[3].tolist() == right_edge
    assert neighbors(torch.tensor([4]), 3, 1).tolist() == [[0, 1, 2, 3]]


@torch.no_grad()
def test_predictions_see_their_semantic_code_and_nothing_later(tiny_transformer):
    model = tiny_transformer(scheme="semantic_detail", coarse_vocab_size=32, vocab_size=DETAILS)
    known, labels = pairs(1, 16), torch.tensor([2])
    before = model(known, labels)
    known[0, 9, 0] = (known[0, 9, 0] + 1) % 32
    after = model(known, labels)
    moved = (before.semantic_logits != after.semantic_logits).any(-1)[0]
    assert not moved[:10].any()
    assert moved[10]
    moved = (before.detail_logits != after.detail_logits).any(-1)[0]
    assert not moved[:9].any()
    assert moved[9]


def test_two_positions_share_a_cell_in_the_published_weights(published):
    config = published[0].config
    assert config.positions_per_cell == 2
    plain = {"grid_size": config.grid_size, "head_dim": config.head_dim}
    cos, sin = rotation(torch.arange(17), **plain, positions_per_cell=2)
    assert not cos[0].any()
    for p in range(2, 17):
        assert torch.equal(sin[p], sin[p - 1]) == (p % 2 == 0)
    assert torch.equal(rotation(torch.tensor([4]), **plain)[1][0], sin[7])


def test_generator_converts_there_and_back_byte_by_byte(published, tmp_path):
    model, weights, _ = published
    back = IAR2.generator.published_weights(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    torch.save({"model": weights, "steps": 7}, tmp_path / "IAR2-tiny.pt")
    again = IAR2.generator.build(
        load_checkpoint(tmp_path / "IAR2-tiny.pt"), grid_size=4, num_attention_heads=4
    )
    assert again.config.to_dict() == model.config.to_dict()


def test_generator_saves_and_loads(published, tmp_path):
    model, _, golden = published
    model.save_pretrained(tmp_path)
    loaded = CodecladeTransformer.from_pretrained(tmp_path)
    known = torch.stack([golden["semantic"], golden["detail"]], dim=-1)
    with torch.no_grad():
        found = loaded(known, golden["cond"]).detail_logits
        assert torch.equal(found, model(known, golden["cond"]).detail_logits)


def test_checkpoints_that_do_not_fit_are_refused(published):
    _, weights, _ = published
    heads = {"grid_size": 4, "num_attention_heads": 4}
    broken = {key: value for key, value in weights.items() if key != "mlp2.2.weight"}
    with pytest.raises(ValueError, match=r"no IAR2 generator checkpoint: missing mlp2\.2"):
        IAR2.generator.build(broken, **heads)
    with pytest.raises(ValueError, match=r"unexpected what\.weight"):
        IAR2.generator.build(weights | {"what.weight": torch.zeros(1)}, **heads)
    with pytest.raises(ValueError, match=r"missing tok_embeddings1\.weight"):
        IAR2.generator.build(golden_case("llamagen_gpt_c2i")[1], **heads)
    with pytest.raises(ValueError, match="width 96 is no published size"):
        IAR2.generator.build(weights, grid_size=4)


def test_parameter_count_of_iar2_b():
    config = CodecladeConfig(
        scheme="semantic_detail", coarse_vocab_size=256, vocab_size=4096, grid_size=24
    )
    with torch.device("meta"):
        model = CodecladeTransformer(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(143.1, abs=0.05)
    assert len(IAR2.generator.published_weights(model)) == 139


def test_detail_quantizer_is_the_brute_force_search(tiny_vq):
    vq = tiny_vq(detail_codebook_size=DETAILS)
    with torch.no_grad():
        vq.quantize.detail.mul_(torch.linspace(0.2, 1.5, DETAILS)[:, None])  # not normalized on use
    latents = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    ids = vq.quantize.search(latents)
    assert ids.shape == (2, 3, 3, 2)
    unit = F.normalize(latents, dim=1).movedim(1, -1)
    rest = unit - F.normalize(vq.codebook, dim=-1)[ids[..., 0]]
    nearest = torch.cdist(rest.reshape(-1, 4), vq.quantize.detail).argmin(-1)
    assert torch.equal(ids[..., 1].flatten(), nearest)
    codes = vq.quantize.lookup(ids).movedim(1, -1)
    assert (codes - unit).norm(dim=-1).mean() < (codes - unit - rest).norm(dim=-1).mean()
    with pytest.raises(ValueError, match=r"must have shape \(B, rows, columns, 2\)"):
        vq.decode(ids[..., 0])


def test_first_stage_tokenizer_is_one_codebook(tiny_vq):
    vq = tiny_vq(block_out_channels=(32, 32, 32), norm_num_groups=32)
    model = IAR2.tokenizer.build(IAR2.tokenizer.published_weights(vq))
    assert model.detail_codebook_size is None
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model.encode(pixels).ids, vq.encode(pixels).ids)


def test_pipeline_saves_loads_and_makes_images(tmp_path):
    pipe = build_scheme("semantic_detail", **PUBLISHED | {"temperature": 0.9})
    pipe.save_pretrained(tmp_path)
    again = CodecladePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    runs = [
        one([1, 2], generator=torch.Generator().manual_seed(3), output_type=kind).images
        for one in (pipe, again)
        for kind in ("latent", "pt")
    ]
    assert runs[0].shape == (2, 4, 4, 2)
    assert torch.equal(runs[0], runs[2])
    assert runs[1].shape == (2, 3, 16, 16)
    assert torch.equal(runs[1], runs[3])


def test_mapping_file_may_be_a_view_into_a_larger_storage(tmp_path):
    stored = torch.arange(64)
    torch.save(stored[32:].flip(0) - 32, tmp_path / "mapping.pt")
    assert load_mapping(tmp_path / "mapping.pt").tolist() == list(range(31, -1, -1))
    torch.save(stored[32:], tmp_path / "view.pt")
    mapping = load_mapping(tmp_path / "view.pt")
    assert mapping.tolist() == list(range(32, 64))
    assert mapping.untyped_storage().nbytes() == 32 * 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), r"holds \(3,\), not one row of integers"),
        (torch.zeros(3, 2, dtype=torch.int64), r"holds \(3, 2\), not one row of integers"),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "holds dict, not one row"),
        (torch.tensor([0, -1]), "no ids, or negative ones"),
    ],
)
def test_files_that_are_no_mapping_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "mapping.pt")
    with pytest.raises(ValueError, match=message):
        load_mapping(tmp_path / "mapping.pt")
