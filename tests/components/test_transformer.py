"""CodecladeTransformer: shapes, caches, rotary positions, training behavior, saving, errors.

Its published numbers are checked in test_convert.py.
"""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, StaticCache

from codeclade import CodecladeConfig, CodecladeTransformer
from codeclade.components import blocks, transformer
from codeclade.components.blocks import rotation

CLASSES = torch.tensor([3, 0, 5])  # 5 is the null class


def tokens(batch: int = 3, length: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(32, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(tiny_transformer):
    return tiny_transformer()


def text_model(tiny_transformer, **changes) -> CodecladeTransformer:
    return tiny_transformer(text_dim=6, prefix_length=4, num_classes=0, **changes)


@torch.no_grad()
def test_logits_cover_prefix_and_tokens(model):
    assert model(class_labels=CLASSES).logits.shape == (3, 1, 32)
    logits = model(tokens(), CLASSES).logits
    assert logits.shape == (3, 17, 32)
    torch.testing.assert_close(model(class_labels=CLASSES).logits, logits[:, :1])


@torch.no_grad()
def test_text_prefix_has_its_own_positions(tiny_transformer):
    model = text_model(tiny_transformer)
    text = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    logits = model(tokens(), text_embeds=text).logits
    assert logits.shape == (3, 20, 32)
    assert not torch.allclose(logits[:, -1], model(tokens(), text_embeds=2 * text).logits[:, -1])


@torch.no_grad()
def test_no_position_sees_later_tokens(model):
    changed = tokens().clone()
    changed[:, 7] = (changed[:, 7] + 1) % 32
    before, after = model(tokens(), CLASSES).logits, model(changed, CLASSES).logits
    assert torch.equal(before[:, :8], after[:, :8])  # position 8 is the first to read token 7
    assert not torch.allclose(before[:, 8], after[:, 8])


def test_a_fresh_model_has_loss_ln_v(model):
    fresh = CodecladeTransformer(model.config).eval()
    output = fresh(tokens(), CLASSES, labels=tokens())
    assert output.loss.item() == pytest.approx(math.log(32), abs=1e-6)
    assert model(tokens(), CLASSES, labels=tokens()).loss > math.log(32)


def test_loss_is_the_cross_entropy_of_the_next_token(model):
    labels = tokens()
    output = model(labels, CLASSES, labels=labels)
    log_probs = output.logits[:, :-1].log_softmax(-1)
    expected = -log_probs.gather(-1, labels.unsqueeze(-1)).mean()
    torch.testing.assert_close(output.loss, expected)
    shorter = model(labels[:, :-1], CLASSES, labels=labels)
    assert shorter.logits.shape == (3, 16, 32)
    torch.testing.assert_close(shorter.loss, expected)


def test_loss_of_a_text_model_starts_at_the_last_prefix_position(tiny_transformer):
    labels, text = tokens(), torch.randn(3, 4, 6)
    output = text_model(tiny_transformer)(labels[:, :-1], text_embeds=text, labels=labels)
    log_probs = output.logits[:, 3:].log_softmax(-1)
    torch.testing.assert_close(output.loss, -log_probs.gather(-1, labels[..., None]).mean())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_cached_steps_equal_the_full_forward(model, kind, implementation):
    model.set_attn_implementation(implementation)
    cache = StaticCache(model.config, max_cache_len=17) if kind == "static" else DynamicCache()
    steps = [model(class_labels=CLASSES, past_key_values=cache).logits]
    for token in tokens().split(1, dim=1):
        output = model(token, past_key_values=cache)
        assert output.past_key_values is cache
        steps.append(output.logits)
    full = model(tokens(), CLASSES).logits
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=0, atol=2e-5)


@torch.no_grad()
def test_cached_steps_of_a_masked_caption_equal_the_full_forward(tiny_transformer):
    model = text_model(tiny_transformer)
    text = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[1, :2] = 0
    cache = StaticCache(model.config, max_cache_len=20)
    steps = [model(text_embeds=text, past_key_values=cache, attention_mask=mask).logits]
    for token in tokens().split(1, dim=1):
        steps.append(model(token, past_key_values=cache, attention_mask=mask).logits)
    full = model(tokens(), text_embeds=text, attention_mask=mask).logits
    seen = mask.bool()
    torch.testing.assert_close(torch.cat(steps, 1)[seen], full[seen], rtol=0, atol=2e-5)
    text[1, :2] += 1  # hidden, so nothing visible may change
    moved = model(tokens(), text_embeds=text, attention_mask=mask).logits
    torch.testing.assert_close(moved[seen], full[seen])


@torch.no_grad()
def test_sdpa_equals_eager(model):
    logits = {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        logits[implementation] = model(tokens(), CLASSES).logits
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=0, atol=2e-5)


def test_rotation_turns_by_row_then_column():
    cos, sin = rotation(torch.arange(11), grid_size=3, head_dim=12, theta=100.0, prefix_length=2)
    assert cos.shape == sin.shape == (11, 12)  # three pairs by row, three by column
    assert not cos[:2].any()
    assert not sin[:2].any()
    for row in range(3):
        for column in range(3):
            angles = [at * 100.0 ** (-j / 3) for at in (row, column) for j in range(3)]
            position = 2 + 3 * row + column
            for entry, sign in ((0, -1), (1, 1)):  # of a pair
                cosines = torch.tensor([math.cos(a) for a in angles])
                sines = torch.tensor([sign * math.sin(a) for a in angles])
                torch.testing.assert_close(cos[position, entry::2], cosines)
                torch.testing.assert_close(sin[position, entry::2], sines)


def test_positions_do_not_depend_on_the_dtype_of_the_weights(model):
    found = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: found.append(inputs[2:4]))
    model(tokens(), CLASSES)
    model.to(torch.bfloat16)(tokens(), CLASSES)
    exact, rounded = found
    assert all(part.dtype == torch.float32 for part in rounded)
    assert all(map(torch.equal, exact, rounded))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_gives_equal_gradients(model):
    model.train()
    calls, gradients = [], []
    model.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        calls.clear()
        torch.manual_seed(0)  # the same dropout
        model(tokens()[:, :-1], CLASSES, labels=tokens()).loss.backward()
        assert len(calls) == 1 + checkpointing  # the backward pass computes the block again
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
def test_conditions_are_dropped_in_training_only(tiny_transformer):
    quiet = {"token_dropout": 0.0, "residual_dropout": 0.0, "feed_forward_dropout": 0.0}
    labels = torch.zeros(400, dtype=torch.int64)
    for share in (0.0, 0.25, 1.0):
        model = tiny_transformer(class_dropout=share, **quiet)
        null = model(class_labels=model.null_labels(1)).logits
        kept = model(class_labels=labels).logits
        assert not (kept == null).all(-1).any()
        torch.manual_seed(0)
        dropped = model.train()(class_labels=labels).logits.isclose(null, atol=1e-5).all(-1)
        assert dropped.float().mean().item() == pytest.approx(share, abs=0.06)


@torch.no_grad()
def test_captions_are_dropped_in_training_only(tiny_transformer):
    model = text_model(tiny_transformer, class_dropout=1.0, token_dropout=0.0)
    text = torch.randn(3, 4, 6)
    prefix, null = model.prefix(text), model.prefix(model.prefix.null.expand(3, -1, -1))
    assert not torch.allclose(prefix, null)
    torch.testing.assert_close(model.prefix.train()(text), null)


@torch.no_grad()
def test_dropout_acts_in_training_only(model):
    assert torch.equal(model(tokens(), CLASSES).logits, model(tokens(), CLASSES).logits)
    model.train()
    assert not torch.equal(model(tokens(), CLASSES).logits, model(tokens(), CLASSES).logits)


@torch.no_grad()
@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_model_is_the_same(model, tmp_path, dtype, max_shard_size):
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    loaded = CodecladeTransformer.from_pretrained(tmp_path, dtype=dtype)
    assert not loaded.training
    assert loaded.dtype == dtype
    logits = loaded(tokens(), CLASSES).logits
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model(tokens(), CLASSES).logits)


def test_loading_leaves_nothing_on_the_meta_device_or_uninitialized(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = CodecladeTransformer.from_pretrained(tmp_path)
    tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert tensors.keys() == model.state_dict().keys()  # no buffer that a load could forget
    assert all(tensor.device.type == "cpu" for tensor in tensors.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("norm.weight"), "missing keys: norm.weight"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "unexpected keys: extra"),
    ],
)
def test_missing_and_unexpected_weights_are_errors(model, tmp_path, change, message):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        CodecladeTransformer.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_an_error(model, tmp_path):
    model.save_pretrained(tmp_path)
    CodecladeConfig(**(model.config.to_dict() | {"vocab_size": 31})).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match="mismatch"):
        CodecladeTransformer.from_pretrained(tmp_path)


def test_too_many_tokens_are_refused(model):
    with pytest.raises(ValueError, match="18 positions do not fit: grid_size=4 has room for 17"):
        model(tokens(length=17), CLASSES)
    cache = DynamicCache()
    model(tokens(), CLASSES, past_key_values=cache)
    with pytest.raises(ValueError, match="18 positions do not fit"):
        model(tokens(length=1), past_key_values=cache)


def test_a_call_without_tokens_or_condition_is_refused(model):
    with pytest.raises(ValueError, match="give input_ids, or a condition"):
        model()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "pixel"}, "scheme 'pixel' is unknown; use one of token, cluster"),
        ({"hidden_size": 36, "num_attention_heads": 2}, "hidden_size=36 must be a multiple of"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CodecladeConfig(**changes)


def test_names_that_moved_can_still_be_imported():
    for name in ("Attention", "FeedForward", "eager_attention", "rotate"):
        with pytest.warns(DeprecationWarning, match=rf"{name} is now in .*blocks"):
            assert getattr(transformer, name) is getattr(blocks, name)
    for name in ("Block", "rotation"):
        assert getattr(transformer, name) is getattr(blocks, name)
    with pytest.raises(AttributeError, match="has no attribute 'Blocks'"):
        _ = transformer.Blocks


def test_config_survives_json(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    loaded = CodecladeConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == model.config.to_dict() | {"_name_or_path": loaded._name_or_path}
    assert loaded.num_tokens == 16
    assert loaded.head_dim == 16
