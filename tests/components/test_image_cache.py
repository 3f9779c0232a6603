"""The cache of sampling against a full forward pass, and what each step of it computes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from builders import build_scheme, build_transformer
from codeclade import CodecladeConfig, CodecladeTransformer
from codeclade.components import blocks, generation
from codeclade.components.blocks import plain_is_faster
from codeclade.components.generation import SamplingSettings, draw_uniforms, sample_tokens
from codeclade.components.generation import make_cache as cache_for
from codeclade.components.guidance import Schedule
from codeclade.components.image_cache import ImageCache, compiled

CLASSES = torch.tensor([3, 0, 5])
GIVEN = {"class_labels": CLASSES}


def tokens(length: int = 16) -> torch.Tensor:
    return torch.randint(32, (3, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("sizes", [[1] * 16, [4, 1, 6, 5], [16]])
def test_steps_of_any_size_equal_the_full_forward(sizes, implementation):
    model = build_transformer()
    model.set_attn_implementation(implementation)
    cache = ImageCache(model.config)
    steps = [model(class_labels=CLASSES, past_key_values=cache).logits]
    for part in tokens().split(sizes, dim=1):
        steps.append(model(part, past_key_values=cache).logits)
    full = model(tokens(), CLASSES).logits
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=0, atol=2e-5)


@torch.no_grad()
def test_positions_that_are_forgotten_leave_no_trace():
    model, cache = build_transformer(), ImageCache(build_transformer().config)
    model(tokens(5), CLASSES, past_key_values=cache)
    expected = model(tokens()[:, 5:7], past_key_values=cache).logits
    cache.keep_positions(6)
    model((tokens()[:, 5:9] + 1) % 32, past_key_values=cache)
    cache.keep_positions(6)
    assert torch.equal(model(tokens()[:, 5:7], past_key_values=cache).logits, expected)


@torch.no_grad()
def test_padding_stays_hidden():
    model = build_transformer(text_dim=6, prefix_length=4, num_classes=0)
    text = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[1, :2] = 0
    cache = ImageCache(model.config, attention_mask=mask)
    steps = [model(text_embeds=text, past_key_values=cache, attention_mask=mask).logits]
    for part in tokens().split([1, 1, 5, 9], dim=1):
        steps.append(model(part, past_key_values=cache).logits)
    full = model(tokens(), text_embeds=text, attention_mask=mask).logits
    seen = mask.bool()
    torch.testing.assert_close(torch.cat(steps, 1)[seen], full[seen], rtol=0, atol=2e-5)


@torch.no_grad()
def test_unconditional_rows_go_when_an_interval_has_ended():
    model = build_transformer()
    rows = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    schedule = Schedule({"name": "interval", "last_step": 3})
    settings = SamplingSettings(guidance_scale=3.0, schedule=schedule)
    seeds = draw_uniforms(2, model, torch.Generator().manual_seed(0)).tokens
    labels = {"class_labels": torch.tensor([1, 2])}
    null = {"class_labels": model.null_labels(2)}
    shortened = sample_tokens(model, labels, null, seeds, settings)
    assert rows == [4] * 5 + [2] * 11  # tokens 0..4 are guided
    assert shortened.shape == (2, 16)


def test_attention_of_ones_own_gets_a_cache_that_asks_for_masks():
    ALL_ATTENTION_FUNCTIONS.register("own", sdpa_attention_forward)
    pipe = build_scheme("token")
    pipe.transformer.config._attn_implementation = "own"
    assert isinstance(cache_for(pipe.transformer, GIVEN, torch.device("cpu")), StaticCache)
    with pytest.raises(ValueError, match="parallel=4 does not go with attention 'own'"):
        pipe.check_inputs(parallel=4)


def test_compiled_models_get_a_cache_whose_shapes_stay():
    pipe = build_scheme("token")
    model = pipe.transformer
    assert not compiled(model)
    assert isinstance(cache_for(model, GIVEN, torch.device("cpu")), ImageCache)
    model.layers[0].compile()
    assert compiled(model)
    assert isinstance(cache_for(model, GIVEN, torch.device("cpu")), StaticCache)
    assert compiled(torch.compile(build_transformer()))
    with torch.autocast("cpu", torch.bfloat16):  # keys in another dtype than the model's
        assert type(cache_for(model, GIVEN, torch.device("cpu"))) is StaticCache
    other = build_transformer()
    other.forward = torch.compile(other.forward)
    assert compiled(other)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "static", "dynamic"])
@pytest.mark.parametrize("text", [False, True])
def test_half_precision_sees_the_same_positions_as_float32(kind, text):
    """Plain attention takes over for few queries, whatever form their mask has, or none."""
    changes = {"text_dim": 6, "prefix_length": 4, "num_classes": 0} if text else {}
    model = build_transformer(**changes)
    prefix, mask = (4, torch.ones(3, 20, dtype=torch.int64)) if text else (1, None)
    features = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    first = {"text_embeds": features} if text else {"class_labels": CLASSES}
    if text:
        mask[1, :2] = 0
        first["attention_mask"] = mask
    expected = model(tokens(), **first).logits
    model.to(torch.bfloat16)
    room = prefix + 16
    cache = {
        "image": lambda: ImageCache(model.config, attention_mask=mask),
        "static": lambda: StaticCache(model.config, room),
        "dynamic": DynamicCache,
    }[kind]()
    later = {"attention_mask": mask} if text else {}
    parts = tokens().split([5, 1, 1, 4, 5], dim=1)
    found, length = [], prefix
    for number, part in enumerate(parts):
        length += part.shape[1]
        given = {"attention_mask": mask[:, :length]} if text and kind == "dynamic" else later
        given = first | given if number == 0 else given
        found.append(model(part, past_key_values=cache, **given).logits)
    seen = torch.ones(3, room, dtype=torch.bool) if mask is None else mask.bool()
    wrong = (torch.cat(found, 1) - expected)[seen].square().mean() / expected[seen].var()
    assert wrong < 1e-3


def test_plain_attention_is_for_few_queries_in_half_precision():
    several, mask = torch.zeros(1, 2, 4, 8, dtype=torch.bfloat16), torch.zeros(4, 4)
    one = several[:, :, :1]
    assert plain_is_faster(one, None)
    assert plain_is_faster(several, mask)
    assert not plain_is_faster(several, None)
    assert not plain_is_faster(several.repeat(1, 1, 5, 1), mask)
    assert not plain_is_faster(one.float(), None)
    assert not plain_is_faster(one.to("meta"), None)
    assert plain_is_faster(several.requires_grad_(), None)
    assert not plain_is_faster(several.expand(1, 2, 4, 8).repeat(1, 1, 100, 1), None)


@pytest.mark.parametrize("text", [False, True])
def test_plain_attention_of_training_is_as_exact_as_the_fused_kernel(text, monkeypatch):
    """Gradients in bf16 against those in float32, causal and with hidden places of a caption."""
    changes = {"text_dim": 6, "prefix_length": 4, "num_classes": 0} if text else {}
    features = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 19, dtype=torch.int64)
    mask[1, :2] = 0
    given = {"text_embeds": features, "attention_mask": mask} if text else GIVEN
    calls = []

    def gradients(bf16: bool, longest: int) -> torch.Tensor:
        monkeypatch.setattr(blocks, "LONGEST_PLAIN", longest)
        model = build_transformer(**changes)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(tokens()[:, :-1], labels=tokens(), **given).loss.backward()
        return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])

    plain = blocks.eager_attention
    spy = lambda *a, **k: calls.append(1) or plain(*a, **k)  # noqa: E731
    monkeypatch.setattr(blocks, "eager_attention", spy)
    exact, fused = gradients(False, 320), gradients(True, 0)
    assert not calls
    found = gradients(True, 320)
    assert calls
    assert (found - exact).norm() < 1.1 * (fused - exact).norm() < 0.05 * exact.norm()


# The prefix, a token, and the head of every stage; to a block both of the first are one position.
GRAPHS = {"blocks": 1, "token": 3, "cluster_token": 4}


@pytest.mark.parametrize(
    ("scheme", "way"),
    [
        ("token", "blocks"),
        ("token", "whole"),
        pytest.param("semantic_detail", "blocks", marks=pytest.mark.slow),
        pytest.param("cluster_token", "whole", marks=pytest.mark.slow),
    ],
)
def test_compiled_pipelines_keep_graphs_and_cache_between_calls(scheme, way, monkeypatch):
    """However many layers there are; and with a cache that stays where it is in memory."""
    pipe, places = build_scheme(scheme), []
    if way == "blocks":
        torch.manual_seed(0)
        fields = pipe.transformer.config.to_dict() | {"num_hidden_layers": 6}
        transformer = CodecladeTransformer(CodecladeConfig(**fields)).eval()
        torch.nn.init.normal_(transformer.get_output_embeddings().weight)
        pipe.register_modules(transformer=transformer)
    transformer = pipe.transformer

    def images(seed, classes=(1, 2)):
        generator = torch.Generator().manual_seed(seed)
        return pipe(list(classes), generator=generator, guidance_scale=2, output_type="pt").images

    def kept(*given):
        cache = cache_for(*given)
        places.append([layer.keys.data_ptr() for layer in cache.layers])
        return cache

    eager = [images(seed) for seed in range(3)]
    torch._dynamo.reset()
    counter = CompileCounter()
    compile_ = transformer.compile if way == "whole" else transformer.compile_repeated_blocks
    compile_(backend=counter, fullgraph=True)
    monkeypatch.setattr(generation, "make_cache", kept)
    assert all(torch.equal(images(seed), eager[seed]) for seed in range(3))
    assert counter.frame_count == GRAPHS["blocks" if way == "blocks" else scheme]
    assert places[0] == places[1] == places[2]
    images(0, [1])  # another number of images has a cache of its own
    assert places[3] != places[0] and torch.equal(images(1), eager[1])
