"""Decoding several tokens a pass gives the ids of one token a step, whatever the setting."""

import pytest
import torch

from builders import SCHEMES, build_scheme, build_text_pipeline
from codeclade.components.generation import SamplingSettings, draw_uniforms, sample_tokens
from codeclade.components.parallel import WINDOW, sample_in_parallel

CALLS = {
    "no guidance": {"guidance_scale": 1.0},
    "guidance": {"guidance_scale": 2.5},
    "greedy": {"temperature": 0},
    "filters": {"temperature": 1.3, "top_k": 9, "top_p": 0.9},
    "interval": {"guidance_schedule": {"name": "interval", "last_step": 6}},
    "linear": {"guidance_schedule": {"name": "linear", "start": 0.5}},
    "cosine": {"guidance_schedule": "cosine_power"},
}


def ids(pipe, labels, seed: int, **settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    given = {"guidance_scale": 2.0, "output_type": "ids", "generator": generator}
    return pipe(labels, **given | settings).images


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("call", CALLS)
def test_ids_do_not_depend_on_the_window(scheme, call):
    pipe = build_scheme(scheme)
    for seed in range(3):
        one_by_one = ids(pipe, 1, seed, parallel=1, **CALLS[call])
        for window in (2, 5, 16, None):
            assert torch.equal(ids(pipe, 1, seed, parallel=window, **CALLS[call]), one_by_one)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_batches_go_on_at_the_pace_of_the_slowest_image(scheme):
    pipe = build_scheme(scheme)
    one_by_one = ids(pipe, [0, 3, 4], 7, parallel=1)
    assert torch.equal(ids(pipe, [0, 3, 4], 7, parallel=6), one_by_one)
    assert torch.equal(ids(pipe, [0, 3, 4], 7), one_by_one)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_edits_keep_their_tokens(scheme):
    pipe = build_scheme(scheme)
    given = ids(pipe, 2, 1)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    mask[3, 0] = True
    edit = {"ids": given, "mask_image": mask, "parallel": 1}
    one_by_one = ids(pipe, 3, 5, **edit)
    assert torch.equal(one_by_one[:, ~mask], given[:, ~mask])
    assert not torch.equal(one_by_one, given)
    assert torch.equal(ids(pipe, 3, 5, **edit | {"parallel": 5}), one_by_one)


def test_captions_with_padding():
    pipe = build_text_pipeline()
    one_by_one = ids(pipe, ["a red dog", "the house on the beach"], 3, parallel=1)
    several = ids(pipe, ["a red dog", "the house on the beach"], 3, parallel=7)
    assert torch.equal(several, one_by_one)


def test_a_pass_makes_several_tokens_final():
    """Where tokens hardly depend on those before them, most guesses hold after one pass."""
    pipe = build_scheme("token")
    pipe.transformer.head.weight.data.mul_(0.01)  # the noise decides
    condition, null = pipe.encode_condition(1)
    seeds = draw_uniforms(1, pipe.transformer, torch.Generator().manual_seed(0)).tokens
    passes = []
    given = pipe.transformer, condition, null, seeds, SamplingSettings(guidance_scale=2.0)
    found = sample_in_parallel(*given, 16, after_pass=lambda n: passes.append(n))
    assert torch.equal(found, sample_tokens(*given))
    assert sum(passes) == 16
    assert len(passes) < 8


def test_one_image_on_a_cpu_is_decoded_in_parallel_where_nothing_forbids_it():
    pipe = build_scheme("token")
    attention = {"guidance_schedule": {"name": "attention"}, "guidance_scale": 2.0}
    assert pipe.check_inputs().parallel is None
    assert pipe.check_inputs(parallel=4).parallel == 4
    assert pipe.check_inputs(**attention).parallel == 1
    assert pipe.check_inputs(callback_on_step_end=print).parallel == 1
    assert WINDOW > 1


@pytest.mark.parametrize("parallel", [0, -1, 2.5, True, "many"])
def test_other_numbers_are_refused(parallel):
    with pytest.raises(ValueError, match=r"parallel=.* must be None \(automatic\) or 1 or more"):
        build_scheme("token")(1, parallel=parallel)


def test_what_needs_one_token_a_step_is_refused_by_name():
    pipe = build_scheme("token")
    with pytest.raises(ValueError, match="parallel=4 does not go with callback_on_step_end"):
        pipe(1, parallel=4, callback_on_step_end=lambda *_: {})
    with pytest.raises(ValueError, match="does not go with an attention-guided schedule"):
        pipe(1, parallel=4, guidance_schedule="attention", guidance_scale=2.0)
    pipe.transformer.compile()
    with pytest.raises(ValueError, match="does not go with a compiled transformer"):
        pipe(1, parallel=4)
