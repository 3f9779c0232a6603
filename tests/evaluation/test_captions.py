"""`codeclade evaluate` of pipelines that take captions: prompts, CLIP score, photographs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from builders import build_clip, build_t5, build_text_pipeline, build_tokenizer
from codeclade.cli import main
from codeclade.evaluation.compare import compare_measured, read_measured
from codeclade.metrics.clip_score import ClipScore

PROMPTS = ("a red dog", "the blue house", "dog on the beach")


@pytest.fixture
def given(tmp_path):
    """A pipeline of captions, prompts and CLIP on disk, and the command that measures them."""
    build_text_pipeline().save_pretrained(tmp_path / "captioned")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "clip").mkdir()
    build_clip(tmp_path / "clip")
    return ["evaluate", str(tmp_path / "captioned"), "--prompts", str(tmp_path / "prompts.txt")]


def records(folder) -> dict[str, dict]:
    return {row["metric"]: row for row in json.loads((folder / "evaluation.json").read_text())}


def test_a_clip_score_needs_no_photographs(given, tmp_path, capsys):
    npz = tmp_path / "images.npz"
    command = [*given, "--images", "2", "--clip", str(tmp_path / "clip")]
    parquet = tmp_path / "images.parquet"
    assert main([*command, "--npz", str(npz), "--parquet", str(parquet)]) == 0
    assert pq.read_table(parquet)["prompt"].to_pylist() == [x for x in PROMPTS for _ in range(2)]
    record = records(tmp_path / "captioned")["CLIP score"]
    # By hand: every prompt twice, each image with its own seed, then CLIP.
    texts = [text for text in PROMPTS for _ in range(2)]
    own = [torch.Generator().manual_seed(i) for i in range(6)]
    images = build_text_pipeline()(texts, generator=own, output_type="pt").images
    images = (images * 255).round()
    with np.load(npz) as file:
        assert np.array_equal(file["arr_0"], images.byte().permute(0, 2, 3, 1).numpy())
    scores = ClipScore(tmp_path / "clip")(images / 127.5 - 1, texts)
    assert record["value"] == pytest.approx(scores.mean().item(), rel=1e-5)
    with np.load(tmp_path / "captioned" / "evaluation-images.npz") as file:
        means = scores.reshape(3, 2).mean(1).numpy()  # a prompt's images are alike
        assert file["CLIP score"] == pytest.approx(means, rel=1e-4)
    assert record["standard_error"] == pytest.approx(means.std(ddof=1) / 3**0.5, rel=1e-2)
    conditions = record["conditions"]
    assert conditions["prompts"] == conditions["data"] == "prompts.txt"
    assert len(conditions["prompts_fingerprint"]) == 16 and conditions["images"] == 6
    assert conditions["network"] == "clip" and "mean over prompts" in conditions["estimator"]
    assert "classes" not in conditions and "prompts of prompts.txt" in record["protocol"]
    # Other prompts are another protocol.
    first = read_measured(tmp_path / "captioned" / "evaluation.json")
    (tmp_path / "prompts.txt").write_text("dog\nhouse\nbeach\n")
    assert main([*command, "--out", str(tmp_path / "other.json")]) == 0
    with pytest.raises(ValueError, match="prompts_fingerprint is"):
        compare_measured(first, read_measured(tmp_path / "other.json"))


def test_photographs_of_any_classes_serve(given, photos, tmp_path):
    assert main([*given, "--data", str(photos), "--images", "4"]) == 0
    found = records(tmp_path / "captioned")
    assert found["FD-EfficientNet-Lite0"]["conditions"]["reference_images"] == 20
    assert found["FD-EfficientNet-Lite0"]["conditions"]["images"] == 12
    assert "PSNR of reconstructions" in found and "Inception Score-EfficientNet-Lite0" in found
    assert not {"Class accuracy-EfficientNet-Lite0", "CLIP score"} & set(found)


def test_a_text_encoder_may_be_named(given, tmp_path, capsys):
    build_text_pipeline(encoder=False).save_pretrained(tmp_path / "bare")
    build_t5().save_pretrained(tmp_path / "t5")
    build_tokenizer().save_pretrained(tmp_path / "t5")
    bare = ["evaluate", str(tmp_path / "bare"), *given[2:], "--samples-only", "--npz"]
    assert main([*bare, str(tmp_path / "a.npz")]) == 2
    assert "holds no text encoder" in capsys.readouterr().err
    assert main([*bare, str(tmp_path / "a.npz"), "--text-encoder", str(tmp_path / "t5")]) == 0
    assert main([*given, "--samples-only", "--npz", str(tmp_path / "b.npz")]) == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a["arr_0"].shape == (3, 16, 16, 3) and np.array_equal(a["arr_0"], b["arr_0"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--data is needed"),
        (["--data", "x", "--classes", "random"], "--classes does not go with"),
        (["--data", "x", "--draws", "2"], "--draws does not go with"),
        (["--clip", "x", "--search", "top_k=1,2"], "--search needs --data"),
        (["--clip", "no/model/there"], "--clip no/model/there"),
    ],
)
def test_wrong_flags_are_one_sentence(given, capsys, flags, words):
    assert main([*given, *flags]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_captions_and_classes_are_not_mixed_up(given, saved, tmp_path, capsys):
    assert main([*given[:2], "--clip", "x"]) == 2
    assert "--prompts FILE is needed" in capsys.readouterr().err
    assert main([*given[:2], "--likelihood", "x"]) == 2
    assert "--likelihood does not go with" in capsys.readouterr().err
    assert main(["evaluate", str(saved), *given[2:], "--clip", "x"]) == 2
    assert "--prompts does not go with" in capsys.readouterr().err
