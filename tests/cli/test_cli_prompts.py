"""`codeclade generate` of captions: a tiny T5, saved features, and what does not go together."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from builders import build_t5, build_text_pipeline, build_tokenizer
from codeclade import bundled
from codeclade.cli import main

TEXTS = ("a red dog", "the blue house")


@pytest.fixture
def captioned(tmp_path):
    """A pipeline of captions on disk, with its text encoder."""
    build_text_pipeline().save_pretrained(tmp_path / "captioned")
    return str(tmp_path / "captioned")


@pytest.fixture
def features(tmp_path):
    """Code shards of two images with features of their captions, as encode-text writes them."""
    embeds, mask = build_text_pipeline().encode_prompt(list(TEXTS))
    rows = [row[kept.bool()].half() for row, kept in zip(embeds, mask, strict=True)]
    folder = tmp_path / "codes" / "validation"
    folder.mkdir(parents=True)
    ids = torch.zeros(2, 1, 16, dtype=torch.int32)
    save_file({"ids": ids, "labels": torch.zeros(2)}, folder / "codes-0.safetensors")
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    save_file({"features": torch.cat(rows), "lengths": lengths}, folder / "text-0.safetensors")
    files = {
        "codes.json": {"shards": ["codes-0.safetensors"], "captions": ["captions-0.json"]},
        "captions-0.json": TEXTS,
        "text.json": {
            "shards": ["text-0.safetensors"],
            "prefix_length": mask.shape[1],
            "text_dim": embeds.shape[2],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return str(tmp_path / "codes")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_prompts_are_drawn_as_the_pipeline_draws_them(captioned, tmp_path):
    out = tmp_path / "dog.png"
    command = ["generate", "--pipeline", captioned, "--prompt", TEXTS[0], "--out", str(out)]
    assert main([*command, "--seed", "3"]) == 0
    drawn = torch.Generator().manual_seed(3)
    expected = build_text_pipeline()(TEXTS[0], generator=drawn).images[0]
    assert np.array_equal(pixels(out), np.asarray(expected))
    # Several captions make a sheet, a row each.
    assert main([*command, "--prompt", TEXTS[1], "--images", "2", "--scale", "4"]) == 0
    sheet = Image.open(out)
    assert sheet.width > 2 * 64 and 2 * 64 < sheet.height < 3 * 64


def test_a_pipeline_without_encoder_takes_one_or_saved_features(tmp_path, features, capsys):
    build_text_pipeline(encoder=False).save_pretrained(tmp_path / "bare")
    command = ["generate", "--pipeline", str(tmp_path / "bare"), "--prompt", TEXTS[0], "--out"]
    named, saved = tmp_path / "a.png", tmp_path / "b.png"
    assert main([*command, str(named)]) == 2
    assert "holds no text encoder; name one, as in --text-encoder" in capsys.readouterr().err
    build_t5().save_pretrained(tmp_path / "t5")
    build_tokenizer().save_pretrained(tmp_path / "t5")
    cool = ["--temperature", "0"]  # arg-max: features of 16 bits give the same image
    assert main([*command, str(named), "--text-encoder", str(tmp_path / "t5"), *cool]) == 0
    assert main([*command, str(saved), "--features", features, *cool]) == 0
    assert np.array_equal(pixels(named), pixels(saved))
    # Without a prompt the captions that there are; another caption has no features.
    assert main([*command[:3], "--features", features, "--out", str(saved)]) == 0
    assert Image.open(saved).height > 2 * 32
    other = [*command[:3], "--features", features, "--prompt", "a boat", "--out", str(saved)]
    assert main(other) == 2
    assert "'a boat' is no caption of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--prompt TEXT is needed"),
        (["dog"], "takes captions, not classes; give --prompt 'dog'"),
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a", "--text-encoder", "x", "--features", "y"], "give either"),
        (["--features", "no/codes/here"], "there is no folder no/codes/here"),
        (["--list"], "takes captions, so there are no classes to list"),
    ],
)
def test_a_pipeline_of_captions_says_what_it_needs(captioned, tmp_path, capsys, flags, words):
    out = ["--out", str(tmp_path / "x.png")]
    assert main(["generate", "--pipeline", captioned, *flags, *out]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "x.png").exists()


def test_a_pipeline_of_classes_takes_no_prompt(tmp_path, capsys):
    out = ["--out", str(tmp_path / "x.png")]
    for source in ([], ["--pipeline", str(bundled())]):
        assert main(["generate", *source, "--prompt", "a dog", *out]) == 2
        assert "--prompt does not go with" in capsys.readouterr().err
