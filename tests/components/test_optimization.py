"""Weights in other forms: how near their products are, and what an optimized pipeline refuses."""

import copy
import importlib.util

import pytest
import torch
from transformers.cache_utils import DynamicCache

from builders import COARSE, SCHEMES, build_parts, build_pipeline, build_scheme, build_transformer
from codeclade import CodecladePipeline, VQModel
from codeclade.components.image_cache import ImageCache
from codeclade.components.optimization import (
    FORMS,
    PLAIN,
    has_bfloat16_products,
    optimize,
    optimize_decoder,
)
from codeclade.components.optimized_steps import FEW_ROWS, PairStep, StackStep, StepBlock
from codeclade.components.parallel import WINDOW, choose_window
from codeclade.metrics.image_quality import psnr

needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16_products(), reason="this processor has no products of bfloat16"
)


def logits(pipe, scheme: str) -> torch.Tensor:
    """Teacher-forced logits of a fixed image."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 16, 2) if scheme == "semantic_detail" else (2, 16)
    tokens = torch.randint(12, shape, generator=generator)
    with torch.no_grad():
        output = pipe.transformer(tokens, torch.tensor([1, 3]))
    return output.semantic_logits if scheme == "semantic_detail" else output.logits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("packed", torch.float32),
        pytest.param("packed", torch.bfloat16, marks=needs_bfloat16),
        ("single", torch.float32),
        pytest.param("single", torch.bfloat16, marks=needs_bfloat16),
        ("int8", torch.bfloat16),
        ("int4", torch.bfloat16),
    ],
)
def test_products_of_optimized_weights_are_near(scheme, weights, dtype):
    pipe = build_scheme(scheme)
    exact = logits(pipe, scheme)
    pipe.transformer.to(dtype)
    plain = logits(pipe, scheme)
    found = logits(pipe.optimize(weights), scheme)
    scale = exact.std()
    if dtype == torch.float32:
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * scale.item())
    else:  # rounding to 8 bits may cost about as much again as bfloat16, to 4 bits 16 times
        allowed = {"packed": 1.2, "single": 1.2, "int8": 2.5, "int4": 25}[weights]
        assert (found - exact).square().mean() < (allowed * (plain - exact)).square().mean()


@pytest.mark.parametrize("weights", FORMS)
def test_an_optimized_pipeline_makes_images(weights):
    pipe = build_scheme("token")
    pipe.transformer.to(torch.float32 if weights in PLAIN else torch.bfloat16)
    settings = {"guidance_scale": 2.0, "temperature": 0, "output_type": "ids"}
    before = pipe([1, 2], **settings).images
    after = pipe.optimize(weights)([1, 2], **settings).images
    if weights != "int4":  # greedy choices of a random model are narrow
        assert (before == after).float().mean() > 0.3
    assert pipe([1, 2], output_type="pt").images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("weights, levels, group", [("int8", 255, 64), ("int4", 16, 32)])
def test_rounded_weights_are_the_nearest_of_their_steps(weights, levels, group):
    """Half a step of error in every weight (0.6 with a rounded scale) bounds that of a product."""
    layer = torch.nn.Linear(64, 32, bias=True).to(torch.bfloat16)
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight, bias = layer.weight.detach().float(), layer.bias.detach().float()
    groups = weight.unflatten(1, (-1, group))  # that share a scale
    least = -groups.abs().amax(-1) if weights == "int8" else groups.amin(-1)
    most = groups.abs().amax(-1) if weights == "int8" else groups.amax(-1)
    step = (most - least) / (levels - 1)  # (N, groups)
    half = 0.5 if weights == "int8" else 0.6
    optimize(layer, weights)
    assert len(x) > FEW_ROWS
    for rows in (x[:1], x[:3], x):  # the kernel of few rows, and the product of many
        with torch.no_grad():
            found = layer(rows).float()
        exact = rows.float() @ weight.T + bias
        sizes = rows.float().abs().unflatten(1, (-1, group)).sum(-1)  # (M, groups)
        bound = half * sizes @ step.T + 0.02 * exact.abs() + 0.02
        assert ((found - exact).abs() < bound).all()


def counted_steps(monkeypatch) -> list:
    """A list that grows by every step in compiled code: of a block, all blocks, or the head."""
    calls = []

    def count(kind, name, plain):
        def step(self, *given):
            calls.append(kind)
            return plain(self, *given)

        monkeypatch.setattr(kind, name, step)

    count(StepBlock, "step", StepBlock.step)
    count(StackStep, "__call__", StackStep.__call__)
    count(PairStep, "__call__", PairStep.__call__)
    return calls


@torch.no_grad()
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]
)
def test_compiled_steps_compute_what_the_layers_say(text, dtype, monkeypatch):
    """One position or several, after some were forgotten, with padding, and without a half."""
    changes = {"text_dim": 6, "prefix_length": 4, "num_classes": 0} if text else {}
    model = build_transformer(**changes)
    prefix, mask = (4, torch.ones(4, 20, dtype=torch.int64)) if text else (1, None)
    features = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(1))
    first = {"text_embeds": features} if text else {"class_labels": torch.tensor([3, 0, 5, 1])}
    if text:
        mask[1, :2] = 0
        first["attention_mask"] = mask
    tokens = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    expected = model(tokens, **first).logits
    optimize(model.to(dtype))
    calls = counted_steps(monkeypatch)
    cache = ImageCache(model.config, attention_mask=mask)
    model(**first, past_key_values=cache)
    assert not calls
    found = [model(tokens[:, :1], past_key_values=cache).logits]
    model((tokens[:, 1:6] + 1) % 32, past_key_values=cache)  # guesses that turn out wrong
    cache.keep_positions(prefix + 1)
    found += [model(part, past_key_values=cache).logits for part in tokens[:, 1:9].split(3, dim=1)]
    cache.keep_rows(2)
    found = [torch.cat(found, 1)[:2], model(tokens[:2, 9:], past_key_values=cache).logits]
    assert calls == [StepBlock] * (6 * model.config.num_hidden_layers)
    wrong = torch.cat(found, 1) - expected[:2, prefix:]
    allowed = 1e-5 if dtype == torch.float32 else 0.05
    assert wrong.square().mean().sqrt() < allowed * expected.std()


@torch.no_grad()
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("single", torch.float32),
        pytest.param("single", torch.bfloat16, marks=needs_bfloat16),
        ("int8", torch.bfloat16),
    ],
)
def test_few_rows_go_through_all_blocks_in_one_call(weights, dtype, monkeypatch):
    """Four rows, two, one; one position, two, three; some hidden; threads that share unevenly."""
    model = build_transformer().to(dtype)
    tokens = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    labels, mask = torch.tensor([3, 0, 5, 1]), torch.ones(4, 17, dtype=torch.int64)
    mask[0, 3:5] = 0
    optimize(model, weights)
    expected = model(tokens, labels, attention_mask=mask).logits[:, 1:]
    calls, cache = counted_steps(monkeypatch), ImageCache(model.config, attention_mask=mask)
    model(class_labels=labels, past_key_values=cache)
    found, step = [], 0
    for rows, count, threads in [(4, 1, 2), (4, 1, 1), (2, 2, 2), (2, 1, 3), (1, 3, 2), (1, 1, 2)]:
        cache.keep_rows(rows)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        places = slice(rows), slice(step, step + count)
        logits = model(tokens[places], past_key_values=cache).logits
        found.append(logits - expected[places])
        step += count
    assert calls == [StackStep] * 6
    wrong = torch.cat([part.flatten() for part in found])
    allowed = 1e-5 if dtype == torch.float32 else 0.05
    assert wrong.square().mean().sqrt() < allowed * expected.std()


def test_steps_that_return_more_go_the_long_way(monkeypatch):
    """States of every layer, and the condition's share of the attention."""
    pipe = build_pipeline()
    pipe.optimize("single")
    calls = counted_steps(monkeypatch)
    pipe(1, guidance_scale=2.0, guidance_schedule="attention", output_type="ids")
    assert StackStep not in calls
    cache = ImageCache(pipe.transformer.config)
    pipe.transformer(class_labels=torch.tensor([1]), past_key_values=cache)
    given = {"past_key_values": cache, "output_hidden_states": True}
    output = pipe.transformer(torch.tensor([[1]]), **given)
    assert len(output.hidden_states) == pipe.transformer.config.num_hidden_layers + 1
    assert StackStep not in calls


@pytest.mark.parametrize(("weights", "window"), [("single", 1), ("packed", WINDOW)])
def test_one_position_at_a_time_where_it_is_one_call(weights, window):
    """Decoding in parallel pays where a step is dozens of calls."""
    pipe = build_pipeline()
    given = 1, torch.device("cpu"), pipe.transformer
    assert choose_window(None, *given) == WINDOW
    pipe.optimize(weights)
    assert choose_window(None, *given) == window
    assert choose_window(8, *given) == 8


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"head_mlp": False, "head_layers": 1}, {"head_window": 1, "head_layers": 2}]
)
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("single", torch.float32),
        pytest.param("single", torch.bfloat16, marks=needs_bfloat16),
        ("int8", torch.bfloat16),
    ],
)
def test_few_rows_go_through_a_head_of_pairs_in_one_call(weights, dtype, changes, monkeypatch):
    """Both stages, one cell or several, the first cell too, which has none around it."""
    parts = build_parts("semantic_detail", **changes)
    model = parts["transformer"]
    generator = torch.Generator().manual_seed(0)
    for part in model.head.modules():  # outputs and biases of a new model are zero
        if isinstance(part, torch.nn.Linear):
            for values in part.parameters():
                torch.nn.init.normal_(values, std=0.2, generator=generator)
    model.to(dtype)
    hidden = torch.randn(3, 16, model.config.hidden_size, generator=generator).to(dtype)
    chosen = torch.randint(COARSE["semantic_detail"], (3, 16), generator=generator)
    optimize(model, weights)
    calls = counted_steps(monkeypatch)

    def both_stages() -> torch.Tensor:
        found = []
        for at in (0, 1, 6, 15, slice(0, 3), slice(9, 14)):
            cache = DynamicCache()
            for given in (None, chosen[:, at]):
                found.append(model.stage_logits(hidden, at, given, cache).flatten())
        return torch.cat(found)

    found = both_stages()
    assert calls == [PairStep] * 12
    model.head.step = None
    expected = both_stages()
    assert calls == [PairStep] * 12
    allowed = 1e-5 if dtype == torch.float32 else 0.05
    assert (found - expected).square().mean().sqrt() < allowed * expected.std()


@pytest.mark.parametrize("scheme", ["token", "semantic_detail"])
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("single", torch.float32),
        pytest.param("single", torch.bfloat16, marks=needs_bfloat16),
        ("int8", torch.bfloat16),
    ],
)
def test_an_image_is_the_same_alone_in_a_batch_and_in_parallel(weights, dtype, scheme):
    """Sums of a row have one order, however many rows and positions a call has."""
    pipe = build_scheme(scheme)
    pipe.transformer.to(dtype)
    pipe.optimize(weights)
    settings = {"guidance_scale": 2.0, "output_type": "ids"}

    def ids(labels, **more):
        generators = [torch.Generator().manual_seed(label) for label in labels]
        return pipe(labels, generator=generators, **settings, **more).images

    batch = ids([1, 2, 3])
    for row, label in enumerate([1, 2, 3]):
        assert torch.equal(ids([label])[0], batch[row])
        assert torch.equal(ids([label], parallel=5)[0], batch[row])
        assert torch.equal(ids([label], parallel=3)[0], batch[row])


def test_without_numba_the_layers_do_all_of_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    calls, pipe = counted_steps(monkeypatch), build_pipeline()
    pipe.optimize()
    assert pipe(1, output_type="ids").images.shape == (1, 4, 4)
    assert not calls


def test_bad_requests_are_refused_before_anything_changes(tmp_path):
    pipe = build_pipeline()
    with pytest.raises(ValueError, match=r"weights='int2' must be one of"):
        pipe.optimize("int2")
    with pytest.raises(ValueError, match=r"'int8' is for torch\.bfloat16 on a CPU; this model is"):
        pipe.optimize("int8")
    pipe.save_pretrained(tmp_path)  # nothing has happened yet
    pipe.optimize()
    with pytest.raises(ValueError, match="optimized already"):
        pipe.optimize()
    with pytest.raises(ValueError, match="cannot be saved; save it before"):
        pipe.save_pretrained(tmp_path / "again")
    pipe.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"was optimized for torch\.float32 on a CPU"):
        pipe(1)


def test_a_processor_without_bfloat16_products_is_told_what_to_do(monkeypatch):
    name = "codeclade.components.optimization.has_bfloat16_products"
    monkeypatch.setattr(name, lambda: False)
    pipe = build_pipeline()
    pipe.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"load the pipeline with dtype=torch\.float32"):
        pipe.optimize()
    pipe.transformer.to(torch.float32)
    pipe.optimize()


def test_partial_pipelines_are_optimized_as_far_as_they_go(tmp_path):
    build_pipeline("token").save_pretrained(tmp_path)
    first = CodecladePipeline.from_pretrained(tmp_path, vq_model=None).optimize()
    assert first(1, output_type="ids").images.shape == (1, 4, 4)
    second = CodecladePipeline.from_pretrained(tmp_path, transformer=None)
    with pytest.raises(ValueError, match="without transformer, so it cannot be optimized"):
        second.optimize()


def test_channels_last_changes_no_number():
    pipe = build_pipeline("token")
    given = {"output_type": "pt", "temperature": 0}
    before = pipe(1, **given).images
    torch.testing.assert_close(pipe.optimize()(1, **given).images, before, rtol=0, atol=1e-5)
    assert pipe.vq_model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_half_precision_decodes_nearer_to_float32():
    torch.manual_seed(0)
    plain = VQModel((32, 32, 64), 1, 64, 64, norm_num_groups=16, sample_size=64).eval()
    ids = torch.randint(64, (4, 16, 16))
    exact = plain.decode(ids)
    half = copy.deepcopy(plain).bfloat16()
    before = psnr(half.decode(ids).float(), exact).mean()
    optimize_decoder(half)
    decoder = half.decoder
    assert decoder.mid_block.resnets[0].conv1.weight.dtype == torch.float32
    assert decoder.up_blocks[1].resnets[0].conv1.weight.dtype == torch.bfloat16
    images = half.decode(ids)
    assert images.dtype == half.dtype == torch.bfloat16
    assert psnr(images.float(), exact).mean() > before + 1
    # A second pipeline with the same tokenizer changes nothing.
    optimize_decoder(half)
    assert torch.equal(half.decode(ids), images)
