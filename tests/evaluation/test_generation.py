"""`codeclade evaluate`: distances by textbook formulas, a seed an image, numbers in the card."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from codeclade.cli import main
from codeclade.data.imagenet import class_names, synset_names
from codeclade.evaluation.generation import Protocol, generate, match_classes
from codeclade.hub.card import render_card
from codeclade.hub.repository import read_repository
from codeclade.metrics.distances import frechet_distance, kernel_distance


def draw(n: int, shift: float = 0.0, seed: int = 0, width: int = 6) -> torch.Tensor:
    numbers = np.random.default_rng(seed).normal(size=(n, width)) @ np.diag(range(1, width + 1))
    return torch.from_numpy(numbers + shift)


@pytest.mark.parametrize("counts", [(50, 70), (4, 70), (50, 5), (4, 5)])
def test_frechet_distance_is_the_formula(counts):
    a, b = draw(counts[0]), draw(counts[1], 0.5, 1)
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(6)).real
    expected = np.square(a.numpy().mean(0) - b.numpy().mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_the_unbiased_estimate():
    a, b = draw(9), draw(7, 0.5, 1)
    k = [[[(x @ y / 6 + 1) ** 3 for y in q] for x in p] for p, q in ((a, a), (b, b), (a, b))]
    within = [
        sum(v for i, row in enumerate(m) for j, v in enumerate(row) if i != j)
        / (len(m) * (len(m) - 1))
        for m in k[:2]
    ]
    between = sum(map(sum, k[2])) / 63
    assert kernel_distance(a, b) == pytest.approx(float(sum(within) - 2 * between), rel=1e-9)
    same = [kernel_distance(draw(40, seed=2 * s), draw(40, seed=2 * s + 1)) for s in range(200)]
    spread = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 4 * spread  # unbiased: zero on average for one distribution


def test_classes_are_matched_by_synonym_and_wordnet_id():
    assert match_classes(["b, c", "A"], ["a", "c"]) == {"A": "a", "b, c": "c"}
    assert match_classes(["n01443537", "n02099601"], ["golden retriever", "goldfish, x"]) == {
        "n02099601": "golden retriever",
        "n01443537": "goldfish, x",
    }
    every = match_classes(list(synset_names()), class_names())  # with two cranes
    assert list(every.items()) == list(synset_names().items())
    with pytest.raises(ValueError, match=r"the data has no class 'yeti'; it has cat, dog, \.\.\."):
        match_classes(["cat", "dog"], ["yeti"])
    with pytest.raises(ValueError, match="two classes of the pipeline are the same"):
        match_classes(["cat, tabby"], ["cat", "tabby"])


def test_images_do_not_depend_on_the_batch_size(tiny_pipeline):
    pipe = tiny_pipeline("cluster")
    found = [
        torch.cat([images for images, _ in generate(pipe, Protocol("", 3, 5, 2.0, size))])
        for size in (1, 4, 32)
    ]
    assert found[0].shape == (15, 3, 16, 16) and found[0].dtype == torch.uint8
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    other = torch.cat([images for images, _ in generate(pipe, Protocol("", 3, 6, 2.0, 32))])
    assert not torch.equal(found[0], other)


@pytest.fixture
def photos(tmp_path):
    """An image folder with training and validation pictures of five ImageNet classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 1), ("validation", 4)):
        for name in ("goldfish", "tabby", "golden retriever", "lion", "alp"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    names = dict(enumerate(["goldfish", "tabby", "golden retriever", "lion", "alp"]))
    tiny_pipeline("cluster", id2label=names).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_the_command_writes_numbers_that_the_card_shows(saved, photos, tmp_path, capsys):
    samples = tmp_path / "samples.npz"
    arguments = ["evaluate", str(saved), "--data", str(photos), "--images", "2"]
    assert main([*arguments, "--npz", str(samples)]) == 0
    results = {row["metric"]: row for row in json.loads((saved / "evaluation.json").read_text())}
    assert set(results) == {
        "PSNR of reconstructions",
        "SSIM of reconstructions",
        "Codebook usage",
        "KID",
        "Frechet distance",
        "Class accuracy",
    }
    assert 3 < results["PSNR of reconstructions"]["value"] < 20
    assert "20 validation photographs" in results["KID"]["protocol"]
    assert "10 generated images, guidance 2, seed 0" in results["Class accuracy"]["protocol"]
    assert "chance 20.0 %" in results["Class accuracy"]["protocol"]
    assert results["KID"]["dataset"] == "photos"
    with np.load(samples) as file:
        assert file["arr_0"].shape == (10, 16, 16, 3) and file["arr_0"].dtype == np.uint8
    printed = capsys.readouterr().out
    card = render_card(read_repository(saved), "user/tiny")
    for row in results.values():
        assert row["protocol"] in printed and row["protocol"] in card
    assert str(tmp_path) not in card
    assert main(arguments) == 0
    assert {row["metric"]: row for row in json.loads((saved / "evaluation.json").read_text())} == (
        results
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--images", "0"], "--images 0 must be 1 or more"),
        (["--out", "no/where.json"], "there is no folder no for where.json"),
        (["--data", "no/such/data"], "no/such/data"),
    ],
)
def test_bad_input_is_one_sentence(saved, photos, capsys, change, words):
    assert main(["evaluate", str(saved), "--data", str(photos), *change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("codeclade evaluate: ") and words in error
    assert not (saved / "evaluation.json").exists()


def test_data_of_other_classes_is_refused(saved, photos, capsys):
    (photos / "validation" / "lion").rename(photos / "validation" / "liger")
    (photos / "train" / "lion").rename(photos / "train" / "liger")
    assert main(["evaluate", str(saved), "--data", str(photos)]) == 2
    assert "the data has no class 'lion'" in capsys.readouterr().err
