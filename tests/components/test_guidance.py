"""Guidance schedules: their formulas, the published greedy ids, and every scheme under each."""

import math

import pytest
import torch
from transformers import DynamicCache, StaticCache

from builders import SCHEMES, build_scheme
from codeclade import CodecladePipeline
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN
from codeclade.components import blocks
from codeclade.components.guidance import (
    SCHEDULES,
    Schedule,
    attention,
    constant,
    cosine_power,
    interval,
    linear,
)
from golden_weights import golden_case


def ids_of(pipe, **settings) -> torch.Tensor:
    settings = {"guidance_scale": 3.0, "output_type": "latent"} | settings
    return pipe([1, 2, 3, 0], generator=torch.Generator().manual_seed(1), **settings).images


def test_constant_and_linear():
    assert [constant(2.5, n, 5, None) for n in range(5)] == [2.5] * 5
    assert [linear(3.0, n, 5, None) for n in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert linear(3.0, 4, 5, None, start=5.0) == 3.0
    assert linear(3.0, 0, 1, None) == 2.0  # one token alone is half way


def test_interval_ends_after_its_decoding_step():
    scales = [interval(3.0, n, 16, None, last_step=7) for n in range(16)]
    assert scales == [3.0] * 9 + [1.0] * 7
    assert interval(3.0, 15, 16, None, last_step=-1) == 3.0


def test_cosine_power_rises_from_one():
    scales = [cosine_power(5.0, n, 256, None, power=2.5) for n in range(256)]
    assert scales[0] == 1.0
    assert scales == sorted(scales)
    half = 1 + 4 * (1 - math.cos(math.pi * 0.5**2.5)) / 2
    assert scales[128] == pytest.approx(half)
    assert cosine_power(5.0, 128, 256, None, power=1.0) == pytest.approx(3.0)


def test_attention_grows_with_the_step_and_with_the_attention():
    seen = torch.tensor([1.0, 0.2])
    first = attention(3.0, 0, 576, seen, start=1.75, weight=0.05)
    torch.testing.assert_close(first, 1.75 + torch.tensor([[0.05], [0.01]]) * 1.25)
    last = attention(3.0, 575, 576, seen, start=1.75, weight=0.05)
    torch.testing.assert_close(last, 3.0 + torch.tensor([[0.05], [0.01]]) * 1.25)  # not clamped


@torch.no_grad()
def test_pipeline_has_llamagens_greedy_ids_with_an_interval(tiny_vq):
    _, weights, golden = golden_case("llamagen_gpt_c2i")
    model = LLAMAGEN.generator.build(weights, grid_size=4, num_attention_heads=4)
    pipe = CodecladePipeline(tiny_vq(codebook_size=192), model)
    pipe.set_progress_bar_config(disable=True)
    for name, schedule in (
        ("greedy_cfg3", None),
        ("greedy_cfg3_interval7", {"name": "interval", "last_step": 7}),
    ):
        ids = pipe(
            golden["cond"].tolist(),
            guidance_scale=3.0,
            temperature=0,
            guidance_schedule=schedule,
            output_type="latent",
        ).images
        assert torch.equal(ids.flatten(1), golden[name])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schedules_that_are_the_same_scale_give_the_same_ids(scheme):
    pipe = build_scheme(scheme)
    same = ids_of(pipe)
    for schedule in (
        "constant",
        {"name": "linear", "start": 3.0},
        {"name": "interval", "last_step": 14},
        {"name": "attention", "start": 3.0, "weight": 0.3},
    ):
        assert torch.equal(ids_of(pipe, guidance_schedule=schedule), same), schedule
    rising = ids_of(pipe, guidance_schedule={"name": "linear", "start": 1.5})
    steady = {"name": "attention", "start": 1.5, "weight": 0.0}
    assert torch.equal(ids_of(pipe, guidance_schedule=steady), rising)
    looking = {"name": "attention", "start": 1.5, "weight": 8.0}
    changed = [rising, ids_of(pipe, guidance_schedule=looking)]
    changed += [ids_of(pipe, guidance_schedule="cosine_power"), same]
    for i, one in enumerate(changed):
        assert not any(torch.equal(one, other) for other in changed[:i])


def test_an_interval_that_ends_leaves_the_condition_alone():
    pipe = build_scheme("token")
    pipe.set_progress_bar_config(disable=True)
    ids = ids_of(pipe, guidance_schedule={"name": "interval", "last_step": 5}).flatten(1)
    guided = ids_of(pipe).flatten(1)
    assert torch.equal(ids[:, :7], guided[:, :7])
    mask = torch.arange(16).view(4, 4) >= 7
    known = {"latents": ids.view(-1, 4, 4), "mask_image": mask}
    plain = ids_of(pipe, guidance_scale=1.0, **known)
    assert torch.equal(ids, plain.flatten(1))


def test_pairs_give_every_stage_its_scale():
    pipe = build_scheme("semantic_detail")
    assert torch.equal(ids_of(pipe, guidance_scale=(3.0, 3.0)), ids_of(pipe))
    differing = ids_of(pipe, guidance_scale=(3.0, 1.0))
    assert not torch.equal(differing, ids_of(pipe))
    assert torch.equal(differing[:, 0, 0, 0], ids_of(pipe)[:, 0, 0, 0])  # the first semantic code
    schedule = {"name": "linear", "start": (3.0, 1.5)}
    scale = Schedule(schedule).scale_at((3.0, 2.0), 2, 5, 1, None)
    assert scale == 1.75
    assert Schedule(schedule).scale_at(3.0, 2, 5, 0, None) == 3.0
    with pytest.raises(
        ValueError, match=r"guidance_scale=\(3.0, 1.0\) must be 0 or more and finite\."
    ):
        ids_of(build_scheme("token"), guidance_scale=(3.0, 1.0))
    with pytest.raises(ValueError, match="or a pair of such numbers"):
        ids_of(pipe, guidance_scale=(3.0, -1.0))


def test_a_callback_still_changes_the_scale():
    pipe = build_scheme("token")

    def stop(pipe, step, token, kwargs):
        pipe._guidance_scale = 1.0 if step == 5 else pipe._guidance_scale
        return {}

    ids = ids_of(pipe, guidance_schedule="constant", callback_on_step_end=stop)
    expected = ids_of(pipe, guidance_schedule={"name": "interval", "last_step": 4})
    assert torch.equal(ids, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_condition_attention_is_that_of_the_last_layer(tiny_transformer, monkeypatch, kind):
    model = tiny_transformer(text_dim=6, prefix_length=4, num_classes=0)
    text = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1, :3] = 0
    shares, reference, captured = [], [], []
    plain = blocks.eager_attention

    def spy(*args, **kwargs):
        mixed, weights = plain(*args, **kwargs)
        captured.append(weights)
        return mixed, weights

    monkeypatch.setattr(blocks, "eager_attention", spy)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        cache = StaticCache(model.config, 20) if kind == "static" else DynamicCache()
        inputs = {"text_embeds": text}
        for step in range(4):
            seen = mask if kind == "static" else mask[:, : 4 + step]
            share = model(
                **inputs,
                past_key_values=cache,
                attention_mask=seen,
                output_condition_attention=True,
            ).condition_attention
            if implementation == "sdpa":
                shares.append(share)
            else:
                last = captured[-1][:, :, -1]  # (B, H, keys)
                reference.append(last[..., :4].sum(-1).mean(1))
                torch.testing.assert_close(share, reference[-1], rtol=0, atol=1e-6)
            inputs = {"input_ids": torch.tensor([[step], [step + 1]])}
    assert len(captured) == 8  # two layers, four steps: the fused runs never came by here
    torch.testing.assert_close(torch.stack(shares), torch.stack(reference), rtol=0, atol=1e-6)
    assert shares[0].tolist() == pytest.approx([1, 1])
    assert 0 < shares[3].min() < 0.99


@torch.no_grad()
def test_condition_attention_is_the_same_in_one_call_and_in_steps(tiny_transformer):
    model, known = tiny_transformer(), torch.tensor([[3, 4, 5]])
    shares = []
    for kind in ("static", "dynamic"):
        for calls in ([known], known.split(1, dim=1)):
            cache = StaticCache(model.config, 17) if kind == "static" else DynamicCache()
            first = {"class_labels": torch.tensor([1])}
            for part in calls:
                output = model(
                    part, past_key_values=cache, output_condition_attention=True, **first
                )
                first = {}
            shares.append(output.condition_attention)
    torch.testing.assert_close(torch.stack(shares), shares[0].expand(4, -1), rtol=0, atol=1e-6)
    assert shares[0].item() < 0.9


@torch.no_grad()
def test_looking_at_the_attention_changes_nothing(tiny_transformer):
    model, logits = tiny_transformer(), []
    for look in (False, True):
        cache = DynamicCache()
        model(class_labels=torch.tensor([1]), past_key_values=cache)
        output = model(
            torch.tensor([[3, 4]]), past_key_values=cache, output_condition_attention=look
        )
        logits.append(output.logits)
        assert (output.condition_attention is not None) == look
    assert torch.equal(*logits)


def test_default_schedule_is_saved_with_the_pipeline(tmp_path):
    schedule = {"name": "linear", "start": 1.5}
    pipe = build_scheme("token", guidance_schedule=schedule)
    pipe.save_pretrained(tmp_path)
    loaded = CodecladePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    expected = ids_of(build_scheme("token"), guidance_schedule=schedule)
    assert torch.equal(ids_of(loaded), expected)
    assert not torch.equal(ids_of(loaded, guidance_schedule="constant"), expected)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosine", "'cosine' is unknown; use one of constant, interval, linear, cosine_power, att"),
        ({"start": 1.0}, "guidance_schedule None is unknown"),
        ({"name": "linear", "power": 2}, "'linear' has no parameter 'power'; it has start"),
        ({"name": "constant", "power": 2}, "'constant' has no parameter 'power'; it has none"),
        ("interval", "'interval' needs a number 'last_step'"),
        ({"name": "linear", "start": "low"}, "start='low' must be a number or two"),
        ({"name": "linear", "start": (1, 2, 3)}, r"start=\(1, 2, 3\) must be a number or two"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        Schedule(schedule)
    with pytest.raises(ValueError, match=message):
        ids_of(build_scheme("token"), guidance_schedule=schedule)


def test_every_schedule_can_be_named():
    for name in SCHEDULES:
        assert Schedule({"name": name, **({"last_step": 3} if name == "interval" else {})})
