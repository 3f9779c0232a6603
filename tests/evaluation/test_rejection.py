"""Rejection sampling: of several draws the one whose class is most probable is kept."""

import json

import pytest
import torch

from codeclade.cli import main
from codeclade.evaluation import sampling
from codeclade.evaluation.rejection import Judge, open_judge
from codeclade.evaluation.sampling import SampleParts, Sampling, sample_images
from codeclade.metrics.networks import FrozenNetwork, NetworkOutput


class Brightness(FrozenNetwork):
    """Logits of ten classes: the mean colors of a row of patches."""

    name, fingerprint = "brightness", "0" * 64

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(5.0), requires_grad=False)

    def forward(self, pixels):
        logits = self.scale * torch.nn.functional.adaptive_avg_pool2d(pixels, (2, 5)).mean(1)
        return NetworkOutput(logits.flatten(1), logits.flatten(1))


JUDGE = Judge(Brightness(), [3, 1, 4, 0, 9])


def kept(pipe, folder, batch_size=32, processes=1, judge=JUDGE, **changes) -> torch.Tensor:
    parts = SampleParts(folder, pipe, Sampling(3, 5, **({"draws": 4} | changes)), judge)
    for rank in reversed(range(processes)):
        parts.make(batch_size, rank, processes)
    images = torch.cat([images for images, _ in parts.batches()])
    parts.delete()
    return images


def test_the_best_of_own_draws_is_kept(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "PART", 4)
    pipe = tiny_pipeline("cluster")
    found = kept(pipe, tmp_path)
    for size, processes in ((1, 1), (3, 2), (4, 3)):
        assert torch.equal(found, kept(pipe, tmp_path, size, processes))
    # By hand, image by image: its four draws, and of these the most probable.
    labels = torch.arange(5).repeat_interleave(3)
    first, won = 5 * 1_000_003, set()
    for number, label in enumerate(labels.tolist()):
        draws = []
        for draw in range(4):
            own = torch.Generator().manual_seed(first + 4 * number + draw)
            pixels = pipe(label, generator=own, output_type="pt").images[0]
            draws.append((pixels * 255).round().byte())
        probabilities = Brightness()(torch.stack(draws) / 127.5 - 1).logits.softmax(1)
        best = int(probabilities[:, JUDGE.classes[label]].argmax())
        assert torch.equal(found[number], draws[best])
        won.add(best)
    assert len(won) > 2
    # One draw is plain sampling, whose seeds are as before; parts of both are never mixed.
    plan = Sampling(3, 5)
    plain = sample_images(pipe, plan, list(range(15)), labels)
    assert torch.equal(plain, kept(pipe, tmp_path, judge=None, draws=1))
    assert not torch.equal(plain, found)
    with pytest.raises(ValueError, match="4 draws an image: several need a judge"):
        SampleParts(tmp_path, pipe, Sampling(draws=4))


def test_a_judge_needs_classes_of_imagenet():
    judge = open_judge("lite0", ["goldfish", "tabby"], "cpu", Brightness())
    assert judge.classes.tolist() == [1, 281]
    with pytest.raises(ValueError, match="whose classes all bear names of ImageNet's"):
        open_judge("lite0", ["goldfish", "my cat"], "cpu")


def test_the_protocol_names_draws_and_judge(saved, photos, tmp_path, capsys):
    command = ["evaluate", str(saved), "--data", str(photos), "--images", "2"]
    assert main([*command, "--out", str(tmp_path / "plain.json")]) == 0
    assert main([*command, "--draws", "3"]) == 0
    before = {r["metric"]: r for r in json.loads((tmp_path / "plain.json").read_text())}
    after = {r["metric"]: r for r in json.loads((saved / "evaluation.json").read_text())}
    accuracy = "Class accuracy-EfficientNet-Lite0"
    conditions = after[accuracy]["conditions"]
    assert conditions["draws"] == 3 and conditions["judge"] == "EfficientNet-Lite0"
    assert conditions["judge_fingerprint"] == conditions["network_fingerprint"]
    assert conditions["seeds"] == "draw j of image i (from 0): seed 0 * 1000003 + 3 * i + j"
    assert "best of 3 by EfficientNet-Lite0's class" in after[accuracy]["protocol"]
    assert "draws" not in before[accuracy]["conditions"]
    assert "draws" not in after["PSNR of reconstructions"]["conditions"]
    capsys.readouterr()
    for change, words in (
        (["--judge", "lite2"], "--judge chooses among several; it needs --draws 2 or more"),
        (["--draws", "2", "--judge", "vgg16"], "--judge vgg16 must be one of lite0, lite2"),
        (["--draws", "2", "--features", "vgg16"], "--judge vgg16 must be one of lite0, lite2"),
        (["--draws", "0"], "--draws 0 must be 1 or more"),
    ):
        assert main([*command, *change]) == 2
        assert words in capsys.readouterr().err
