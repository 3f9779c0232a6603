"""Conversion of published checkpoints: golden numbers of the generators, byte-equal round trips.

The golden numbers of the tokenizers are checked in test_vq_model.py.
"""

import argparse
import pickle

import pytest
import torch
from safetensors.torch import save_file

from codeclade import CodecladePipeline, CodecladeTextPipeline
from codeclade.checkpoints.containers import load_checkpoint
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN
from codeclade.components.generation import SamplingSettings, sample_tokens
from golden_weights import golden_case

CLOSE = {"rtol": 0, "atol": 1e-4}


def byte_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype
        and a[key].shape == b[key].shape
        and a[key].contiguous().numpy().tobytes() == b[key].contiguous().numpy().tobytes()
        for key in a
    )


@pytest.fixture(scope="module")
def class_case():
    _, weights, golden = golden_case("llamagen_gpt_c2i")
    return LLAMAGEN.generator.build(weights, grid_size=4, num_attention_heads=4), golden


@pytest.fixture(scope="module")
def text_case():
    _, weights, golden = golden_case("llamagen_gpt_t2i")
    return LLAMAGEN.generator.build(weights, grid_size=4, num_attention_heads=4), golden


@pytest.fixture
def around(tiny_vq):
    """A pipeline around a converted generator of 192 ids."""

    def build(transformer):
        kind = CodecladeTextPipeline if transformer.config.text_dim else CodecladePipeline
        pipe = kind(tiny_vq(codebook_size=192), transformer)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@torch.no_grad()
def test_class_generator_has_the_published_logits(class_case):
    model, golden = class_case
    logits = model(golden["idx"], golden["cond"]).logits
    torch.testing.assert_close(logits, golden["eval_logits"], **CLOSE)


def test_class_generator_has_the_published_training_loss(class_case):
    model, golden = class_case
    loss = model(golden["idx"][:, :-1], golden["cond"], labels=golden["idx"]).loss
    torch.testing.assert_close(loss, golden["train_loss"][0], **CLOSE)


def drop_guidance_after_7(pipe, step, token, kwargs):
    if step > 7:
        pipe._guidance_scale = 1.0
    return kwargs


@pytest.mark.parametrize(
    ("name", "scale", "callback"),
    [
        ("greedy", 1.0, None),
        ("greedy_cfg3", 3.0, None),
        ("greedy_cfg3_interval7", 3.0, drop_guidance_after_7),
    ],
)
def test_class_generator_has_the_published_greedy_ids(class_case, around, name, scale, callback):
    model, golden = class_case
    ids = around(model)(
        golden["cond"].tolist(),
        guidance_scale=scale,
        temperature=0,
        output_type="latent",
        callback_on_step_end=callback,
    ).images
    assert torch.equal(ids.flatten(1), golden[name])


@torch.no_grad()
@pytest.mark.parametrize(("name", "scale"), [("greedy", 1.0), ("greedy_cfg4", 4.0)])
def test_text_generator_has_the_published_greedy_ids(text_case, name, scale):
    model, golden = text_case
    batch, prefix = golden["mask"].shape
    tokens = torch.ones(batch, model.config.num_tokens, dtype=torch.int64)
    mask = torch.cat([golden["mask"], tokens], dim=1)
    assert golden["mask"].min() == 0  # the case does hold padding
    assert model.config.prefix_length == prefix
    ids = sample_tokens(
        model,
        condition={"text_embeds": golden["caption"], "attention_mask": mask},
        null_condition={
            "text_embeds": model.prefix.null.expand(batch, -1, -1),
            "attention_mask": mask,
        },
        seeds=torch.zeros(batch, 1, model.config.num_tokens, dtype=torch.int64),
        settings=SamplingSettings(temperature=0, guidance_scale=scale),
    )
    assert torch.equal(ids, golden[name])


@pytest.mark.slow
@torch.no_grad()
def test_generator_b_has_the_published_numbers():
    _, weights, golden = golden_case("llamagen_gpt_B_256")
    model = LLAMAGEN.generator.build(weights, grid_size=16)
    assert model.config.num_attention_heads == 12  # known from the width
    logits = model(golden["idx"], golden["cond"]).logits
    assert torch.equal(logits.argmax(-1), golden["argmax"])
    torch.testing.assert_close(logits.logsumexp(-1), golden["logsumexp"], **CLOSE)
    torch.testing.assert_close(logits[:, ::32, ::64], golden["logits_every_32"], **CLOSE)


@pytest.mark.parametrize("name", ["llamagen_gpt_c2i", "llamagen_gpt_t2i"])
def test_generators_come_back_byte_equal(name):
    _, weights, _ = golden_case(name)
    model = LLAMAGEN.generator.build(weights, grid_size=4, num_attention_heads=4)
    assert not model.training
    assert byte_equal(LLAMAGEN.generator.published_weights(model), weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llamagen_vq16", "llamagen_vq8"])
def test_tokenizers_come_back_byte_equal(name):
    _, weights, _ = golden_case(name)
    assert byte_equal(
        LLAMAGEN.tokenizer.published_weights(LLAMAGEN.tokenizer.build(weights)), weights
    )


def test_models_of_ours_survive_the_way_out_and_back(tiny_vq, tiny_transformer):
    vq_model, transformer = tiny_vq(), tiny_transformer()
    theirs = LLAMAGEN.tokenizer.published_weights(vq_model)
    assert theirs["encoder.mid.1.q.weight"].shape == (16, 16, 1, 1)
    # The two things a LlamaGen file does not say come from elsewhere.
    again = LLAMAGEN.generator.build(
        LLAMAGEN.generator.published_weights(transformer), grid_size=4, num_attention_heads=2
    )
    assert byte_equal(again.state_dict(), transformer.state_dict())
    assert again.config.num_classes == 5
    assert again.config.intermediate_size == 48


def test_converted_models_can_be_saved_and_loaded(class_case, tmp_path):
    model, golden = class_case
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = type(model).from_pretrained(tmp_path)
        logits = loaded(golden["idx"], golden["cond"]).logits
    torch.testing.assert_close(logits, golden["eval_logits"], **CLOSE)


@pytest.mark.parametrize("container", ["model", "ema", "module", "state_dict", None])
def test_checkpoints_are_unwrapped_and_cleaned(tmp_path, container):
    weights = {"_orig_mod.module.norm.weight": torch.arange(3.0), "freqs_cis": torch.zeros(2)}
    weights["layers.0.attention.kv_cache.k_cache"] = torch.zeros(1)
    content = {container: weights, "steps": 5, "args": argparse.Namespace(a=1)}
    torch.save(content if container else weights, tmp_path / "some.pt")
    loaded = load_checkpoint(tmp_path / "some.pt")
    assert byte_equal(loaded, {"norm.weight": torch.arange(3.0)})


def test_averaged_weights_are_preferred(tmp_path):
    content = {"model": {"norm.weight": torch.zeros(1)}, "ema": {"norm.weight": torch.ones(1)}}
    torch.save(content, tmp_path / "some.pt")
    assert load_checkpoint(tmp_path / "some.pt")["norm.weight"] == 1


def test_safetensors_checkpoints_are_read(tmp_path):
    save_file({"norm.weight": torch.ones(2)}, tmp_path / "some.safetensors")
    assert byte_equal(
        load_checkpoint(tmp_path / "some.safetensors"), {"norm.weight": torch.ones(2)}
    )


class Payload:
    """Runs code when unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_a_pickle_that_could_run_code_is_refused(tmp_path):
    torch.save({"model": {"norm.weight": torch.ones(1)}, "evil": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ValueError, match=rf"{name} holds Python objects .* refused"):
            load_checkpoint(tmp_path / name)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint file .*absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")
    torch.save({"norm.weight": torch.ones(1000)}, tmp_path / "cut.pt")
    save_file({"norm.weight": torch.ones(1000)}, tmp_path / "cut.safetensors")
    for name in ("cut.pt", "cut.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{name} is truncated or damaged"):
            load_checkpoint(tmp_path / name)


def test_files_without_weights_are_named(tmp_path):
    torch.save({"steps": 3}, tmp_path / "empty.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no weights; its keys are steps"):
        load_checkpoint(tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="holds a list, not a dict"):
        load_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.weight"), r"generator checkpoint: missing norm\.weight"),
        (lambda w: w.pop("tok_embeddings.weight"), r"missing tok_embeddings\.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "unexpected extra"),
        (
            lambda w: w.update({"layers.1.attention.wo.weight": torch.ones(96, 95)}),
            r"layers\.1\.attention\.wo\.weight has shape \(96, 95\), but .* needs \(96, 96\)",
        ),
    ],
)
def test_a_generator_that_does_not_fit_is_refused(change, message):
    _, weights, _ = golden_case("llamagen_gpt_c2i")
    change(weights)
    with pytest.raises(ValueError, match=message):
        LLAMAGEN.generator.build(weights, grid_size=4, num_attention_heads=4)


def test_heads_of_an_unpublished_width_must_be_given():
    _, weights, _ = golden_case("llamagen_gpt_c2i")
    with pytest.raises(ValueError, match="width 96 is no published size"):
        LLAMAGEN.generator.build(weights, grid_size=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("quantize.embedding.weight"), r"missing quantize\.embedding\.weight"),
        (lambda w: w.pop("encoder.conv_in.bias"), r"missing encoder\.conv_in\.bias"),
        (lambda w: w.update({"loss.logvar": torch.ones(1)}), r"unexpected loss\.logvar"),
        (lambda w: w.clear(), "no LlamaGen tokenizer checkpoint"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tiny_vq, change, message):
    weights = LLAMAGEN.tokenizer.published_weights(
        tiny_vq(block_out_channels=(32, 32), norm_num_groups=32)
    )
    change(weights)
    with pytest.raises(ValueError, match=message):
        LLAMAGEN.tokenizer.build(weights)


def test_the_usage_counter_of_a_tokenizer_is_dropped(tiny_vq):
    weights = LLAMAGEN.tokenizer.published_weights(
        tiny_vq(block_out_channels=(32, 32), norm_num_groups=32)
    )
    counted = weights | {"quantize.codebook_used": torch.zeros(65536)}
    assert byte_equal(
        LLAMAGEN.tokenizer.published_weights(LLAMAGEN.tokenizer.build(counted)), weights
    )
