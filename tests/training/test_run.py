"""What every training loop shares: learning rate, checkpoints that resume bit-equal."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from codeclade.training.run import Run, learning_rate


@dataclass
class Recipe:
    data: str
    steps: int = 10
    rate: float = 1e-3
    classes: list = field(default_factory=list)
    flip: bool = True


def test_learning_rate_warms_up_then_falls_as_a_cosine():
    shape = {"peak": 1.0, "final": 0.1, "warmup": 10, "total": 110}
    rates = [learning_rate(step, **shape) for step in range(121)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)  # half way of the cosine
    assert rates[110:] == pytest.approx([0.1] * 11)
    assert all(a > b for a, b in pairwise(rates[10:111]))
    assert learning_rate(0, peak=1.0, final=0.1, warmup=0, total=5) == 1.0


class Training:
    """A small network on random data with dropout: order, weights and random state all matter."""

    def __init__(self, out, recipe: Recipe, keep: int = 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        accelerator = Accelerator(cpu=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.run = Run(accelerator, out, recipe, recipe.steps, keep)
        self.start = self.run.resume()

    def train(self, until: int, save_every: int) -> list[float]:
        losses = []
        for step in range(self.start, until):
            batch = torch.randn(16, 4)
            loss = (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()
            self.run.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
            if (step + 1) % save_every == 0:
                self.run.save(step + 1)
        return losses

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state per process; other tests may want another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_resumed_run_is_bit_equal(tmp_path):
    recipe = Recipe("photos", steps=9)
    whole = Training(tmp_path / "whole", recipe)
    assert whole.start == 0
    losses = whole.train(9, save_every=9)
    first = Training(tmp_path / "parts", recipe)
    first_losses = first.train(7, save_every=3)  # killed after step 7; step 6 was saved
    torch.manual_seed(99)
    second = Training(tmp_path / "parts", recipe)
    assert second.start == 6
    assert first_losses[:6] + second.train(9, save_every=9) == losses
    assert all(map(torch.equal, second.weights(), whole.weights()))


def test_the_newest_checkpoints_are_kept(tmp_path):
    training = Training(tmp_path, Recipe("photos", steps=12), keep=2)
    training.train(12, save_every=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000012"]
    assert Training(tmp_path, Recipe("photos", steps=12)).start == 12


def test_a_checkpoint_cut_short_is_not_resumed(tmp_path):
    training = Training(tmp_path, Recipe("photos"))
    training.train(4, save_every=2)
    (tmp_path / "checkpoints" / "step-00000004").rename(tmp_path / "checkpoints" / "partial")
    (tmp_path / "checkpoints" / "partial" / "run.json").unlink()
    again = Training(tmp_path, Recipe("photos"))
    assert again.start == 2
    again.train(4, save_every=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]


def test_another_recipe_is_refused(tmp_path):
    Training(tmp_path, Recipe("photos")).train(2, save_every=2)
    with pytest.raises(ValueError, match=r"another recipe \(rate, classes differ\)"):
        Training(tmp_path, Recipe("photos", rate=0.5, classes=["apple"]))


def test_the_log_has_a_line_a_call(tmp_path):
    training = Training(tmp_path, Recipe("photos"))
    training.run.log(1, {"loss": torch.tensor(0.5), "rate": 1e-3})
    training.run.log(2, {"dead_codes": 3})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == 0.5
    assert lines[1]["dead_codes"] == 3
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"]


def test_training_time_adds_up_over_resumed_parts(tmp_path):
    training = Training(tmp_path, Recipe("photos"))
    training.run.started -= 100
    training.train(2, save_every=2)
    assert 100 <= Training(tmp_path, Recipe("photos")).run.seconds < 160
