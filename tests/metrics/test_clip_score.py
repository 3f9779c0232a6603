"""CLIP score, with a tiny random CLIP: equal to CLIP's own similarity, caption by caption."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from builders import build_clip, build_t5, build_tokenizer
from codeclade.data.pixels import to_image, to_pixels
from codeclade.metrics.clip_score import ClipScore


def test_a_score_is_clips_own_similarity(tmp_path):
    clip = build_clip(tmp_path)
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = (pixels + torch.linspace(-1, 1, 6).view(6, 1, 1, 1)).clamp(-1, 1)
    captions = ["a red dog", "the blue house on the beach", "dog", "the", "a house", "red on blue"]
    score = ClipScore(tmp_path)
    found = score(pixels, captions)
    # transformers' own answer for one pair at a time, without padding.
    for image, caption, value in zip(pixels, captions, found, strict=True):
        tokens = build_tokenizer()(caption, return_tensors="pt")
        with torch.no_grad():
            output = clip(input_ids=tokens.input_ids, pixel_values=score.preprocess(image[None]))
        expected = 100 * output.logits_per_image / clip.logit_scale.exp()
        assert value.item() == pytest.approx(max(expected.item(), 0), abs=1e-4)
    assert len({round(value) for value in found.tolist()}) > 3
    # A caption longer than CLIP's 16 tokens is cut, the last of them its end.
    cut = score(pixels[:1], ["a dog " * 7 + "a"])
    assert torch.equal(score(pixels[:1], ["a dog " * 30]), cut)
    assert cut != score(pixels[:1], ["a dog"])
    # Images that show the opposite have no negative score.
    score.net.visual_projection.weight.data.neg_()
    assert not score(pixels, captions).any()
    assert score.name == tmp_path.name and len(score.fingerprint) == 64


def test_pixels_are_prepared_as_transformers_does(tmp_path):
    build_clip(tmp_path)
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(64, 192, (3, 40, 40), dtype=torch.uint8, generator=draw)
    small = to_image(image).resize((32, 32), Image.Resampling.BICUBIC)
    expected = torch.tensor(np.asarray(small) / 255)  # (32, 32, 3)
    expected = (expected - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    found = ClipScore(tmp_path).preprocess(to_pixels(image)[None])[0].permute(1, 2, 0)
    assert (found - expected).abs().max() < 0.03  # Pillow rounds to 8 bit along both axes


def test_another_model_is_refused(tmp_path):
    build_t5().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a t5 model, not CLIP"):
        ClipScore(tmp_path)
