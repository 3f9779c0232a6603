"""What a callback sees and can change while the pipeline runs, and the progress bar."""

import numpy as np
import pytest
import torch

from builders import SCHEMES, build_scheme

TOKENS = 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["token", "cluster"])
def pipe(request, tiny_pipeline):
    return tiny_pipeline(request.param)


@pytest.fixture
def tokens_of(pipe):
    """Tokens (B, T) of one call, before the member draw."""
    kind = "latent" if pipe.cluster_map is None else "cluster"
    return lambda *args, **kwargs: pipe(
        *args, generator=seeded(), output_type=kind, **kwargs
    ).images.flatten(1)


def test_callback_sees_every_step_and_the_tokens_so_far(pipe, tokens_of):
    seen = []

    def record(given_pipe, step, token, kwargs):
        assert given_pipe is pipe
        assert list(kwargs) == ["tokens", "latents"]
        assert kwargs["tokens"] is kwargs["latents"]
        seen.append((step, token, kwargs["tokens"].clone()))

    tokens = tokens_of([0, 1], callback_on_step_end=record)
    assert [step for step, _, _ in seen] == list(range(TOKENS))
    assert [token for _, token, _ in seen] == list(range(TOKENS))
    assert pipe.num_timesteps == TOKENS
    for step, _, latents in seen:
        assert torch.equal(latents[:, : step + 1], tokens[:, : step + 1])
    assert torch.equal(tokens, tokens_of([0, 1]))  # looking changes nothing


@pytest.mark.parametrize("given", [["tokens"], ["latents"], ("latents", "tokens")])
@pytest.mark.parametrize("returned", ["tokens", "latents"])
@pytest.mark.parametrize("all_back", [True, False])
def test_tokens_and_latents_are_two_names_of_one_thing(pipe, tokens_of, given, returned, all_back):
    """Callbacks in diffusers' style change one entry of what they got and return all of it."""

    def force(pipe, step, token, kwargs):
        assert list(kwargs) == list(given)
        changed = kwargs[given[0]].clone()
        changed[:, step] = 3
        return {**(kwargs if all_back else {}), returned: changed}

    settings = {"callback_on_step_end": force, "callback_on_step_end_tensor_inputs": given}
    assert (tokens_of([0, 1], **settings) == 3).all()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_changed_latents_take_effect(pipe, tokens_of, scale):
    def force(pipe, step, token, kwargs):
        latents = kwargs["tokens"].clone()
        if step == 4:
            latents[:, 4] = (latents[:, 4] + 1) % 12
        return {"latents": latents}

    free = tokens_of([0, 1], scale)
    forced = tokens_of([0, 1], scale, callback_on_step_end=force)
    assert torch.equal(forced[:, :4], free[:, :4])
    assert torch.equal(forced[:, 4], (free[:, 4] + 1) % 12)
    assert not torch.equal(forced[:, 5:], free[:, 5:])
    greedy = tokens_of([0, 1], 1.0, temperature=0, callback_on_step_end=force)
    with torch.no_grad():  # the later tokens are those the changed one leads to
        logits = pipe.transformer(greedy, torch.tensor([0, 1])).logits
    assert torch.equal(logits[:, 5:-1].argmax(-1), greedy[:, 5:])


def test_latents_zeroed_at_the_last_step_are_the_output(pipe, tokens_of):
    def zero(pipe, step, token, kwargs):
        last = step == pipe.num_timesteps - 1
        return {"latents": torch.zeros_like(kwargs["latents"])} if last else {}

    assert not tokens_of([0, 1], callback_on_step_end=zero).any()
    assert tokens_of([0, 1]).any()
    images = pipe([0, 1], generator=seeded(), output_type="latent", callback_on_step_end=zero)
    allowed = [0] if pipe.cluster_map is None else pipe.cluster_map.members(0).tolist()
    assert set(images.images.unique().tolist()) <= set(allowed)


@pytest.mark.parametrize("changed", [1.0, 8.0])
def test_a_changed_guidance_scale_takes_effect(pipe, tokens_of, changed):
    def change(pipe, step, token, kwargs):
        if step == 3:
            pipe._guidance_scale = changed

    labels = [0, 1, 2, 3]
    constant = tokens_of(labels, 4.0)
    switched = tokens_of(labels, 4.0, callback_on_step_end=change)
    assert torch.equal(switched[:, :4], constant[:, :4])
    assert not torch.equal(switched[:, 4:], constant[:, 4:])
    assert pipe.guidance_scale == changed
    assert torch.equal(tokens_of(labels, 4.0), constant)  # the next call starts anew


def test_interrupt_stops_after_the_step(pipe, tokens_of):
    calls = []

    def stop(pipe, step, token, kwargs):
        calls.append(step)
        pipe._interrupt = step == 5

    tokens = tokens_of([0, 1], callback_on_step_end=stop)
    assert calls == [0, 1, 2, 3, 4, 5]
    assert pipe.interrupt
    assert not tokens[:, 6:].any()
    assert torch.equal(tokens[:, :6], tokens_of([0, 1])[:, :6])
    assert not pipe.interrupt


def test_progress_bar_counts_tokens_and_can_be_switched_off(tiny_pipeline, capsys):
    pipe = tiny_pipeline("token")
    pipe.set_progress_bar_config(disable=False)
    pipe(0)
    assert f"{TOKENS}/{TOKENS}" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_preview_shows_known_tokens_as_the_call_will_and_grey_below(scheme):
    pipe, seen = build_scheme(scheme), []

    def show(pipe, step, token, kwargs):
        after_noise = kwargs["tokens"].clone()
        after_noise[:, step + 1 :] = 1  # what is not known yet must not matter
        for latents in (kwargs["latents"], after_noise):
            seen.append(pipe.preview(latents, step + 1, torch.Generator().manual_seed(3)))
        return {}

    settings = {"num_images_per_prompt": 2, "generator": torch.Generator().manual_seed(3)}
    images = pipe("tabby", callback_on_step_end=show, **settings).images
    for known, (first, second) in enumerate(zip(seen[::2], seen[1::2], strict=True), 1):
        for one, other in zip(first, second, strict=True):
            pixels = np.asarray(one).astype(int)
            assert (pixels == np.asarray(other)).all()
            unknown = np.arange(16).reshape(4, 4).repeat(4, 0).repeat(4, 1) >= known
            assert np.abs(pixels[unknown] - 127.5).max(initial=0) < 1
    assert [np.asarray(a).tolist() for a in images] == [np.asarray(b).tolist() for b in seen[-1]]
