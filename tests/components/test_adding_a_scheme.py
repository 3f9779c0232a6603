"""The example of docs/adding_a_scheme.md runs as it stands, and does what the page says."""

import re
from pathlib import Path

import pytest
import torch

from codeclade import CodecladeTransformer
from codeclade.components.schemes import SCHEMES

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_scheme.md"


@pytest.fixture(scope="module")
def example():
    """Names of the example, which is taken out of the registry again."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    try:
        exec(compile(source, str(PAGE), "exec"), names)
        yield names
    finally:
        SCHEMES.pop("digits", None)


@pytest.fixture(scope="module")
def sampled(example):
    """Ids (2, 4, 4), the likeliest: one unlucky draw would move all that follow it."""
    generator = torch.Generator().manual_seed(0)
    return example["pipe"]([0, 1], generator=generator, top_k=1, output_type="ids").images


def test_the_example_learns_and_samples(example, sampled):
    assert example["loss"].item() < 0.5
    assert [image.size for image in example["images"]] == [(16, 16)] * 2
    assert (sampled == example["ids"].view(2, 4, 4)).float().mean() > 0.8


def test_its_edits_keep_what_they_should(example, sampled):
    pipe, lower_half = example["pipe"], torch.arange(4)[:, None].expand(4, 4) >= 2
    edited = pipe([0, 1], ids=sampled, mask_image=lower_half, output_type="ids").images
    assert torch.equal(edited[:, :2], sampled[:, :2])
    redrawn = pipe.redraw(ids=sampled, class_labels=[0, 1], output_type="ids").images
    assert torch.equal(redrawn // 8, sampled // 8)


def test_a_head_of_one_position_is_asked_for_one_at_a_time(example):
    pipe = example["pipe"]
    assert len(pipe(1, output_type="ids").images) == 1  # one image, which others decode in parallel
    with pytest.raises(ValueError, match="parallel=4 does not go with scheme 'digits'"):
        pipe(1, parallel=4)


@torch.no_grad()
def test_one_position_has_the_likelihood_of_the_teacher_forced_pass(example):
    model, ids = example["model"], example["ids"]
    output = model(ids, torch.arange(2), labels=ids)
    total = 0.0
    for step in range(16):
        coarse = model.stage_logits(output.last_hidden_state, step).log_softmax(-1)
        fine = model.stage_logits(output.last_hidden_state, step, ids[:, step] // 8).log_softmax(-1)
        both = zip((coarse, fine), (ids[:, step] // 8, ids[:, step]), strict=True)
        total -= sum(logits.gather(1, digit[:, None]).mean() for logits, digit in both)
    torch.testing.assert_close(total / 16, output.loss)


def test_its_weights_load_where_the_scheme_is_registered(example, tmp_path):
    example["model"].save_pretrained(tmp_path)
    assert CodecladeTransformer.from_pretrained(tmp_path).scheme.name == "digits"
    kind = SCHEMES.pop("digits")
    try:
        with pytest.raises(ValueError, match="scheme 'digits' is unknown; use one of token"):
            CodecladeTransformer.from_pretrained(tmp_path)
    finally:
        SCHEMES["digits"] = kind
