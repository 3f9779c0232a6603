"""What all training loops share: learning rate, steps, bit-equal resuming, logs."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from codeclade.training.averages import averaged_weights
from codeclade.training.optimization import build_optimizer, learning_rate
from codeclade.training.recipe import RunRecipe
from codeclade.training.run import Run
from points import Points


@dataclass(kw_only=True)
class Recipe(RunRecipe):
    """A short run on the CPU."""

    classes: list = field(default_factory=list)
    steps: int = 10
    batch_size: int = 16
    learning_rate: float = 0.01
    mixed_precision: str = "no"
    tracker: str = "none"
    log_every: int = 1
    save_every: int = 2


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
    """A small network with dropout: order, weights and random state all matter."""

    def __init__(self, out, recipe: Recipe, dropout: float = 0.5):
        self.run = Run(recipe, out)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.run.start(model, build_optimizer(model, recipe))
        self.first, self.passes = self.run.first, []

    def losses(self, points: torch.Tensor, sums: torch.Tensor) -> dict[str, torch.Tensor]:
        self.passes.append(len(points))
        return {"loss": (self.run.model(points) - sums).square().mean()}

    def train(self, until: int | None = None) -> list[float]:
        """Losses of the steps; stops after step `until`, as if killed."""
        losses = []
        for done, batch in self.run.steps(Points()):
            found = self.run.optimize(batch, self.losses)
            self.run.log_losses(done, found)
            losses.append(found["loss"].item())
            if done == until:
                break
        return losses

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.run.model.parameters()]


def test_a_resumed_run_is_bit_equal(tmp_path):
    recipe = Recipe(steps=9, save_every=3)
    whole = Training(tmp_path / "whole", recipe)
    assert whole.first == 0
    losses = whole.train()
    first = Training(tmp_path / "parts", recipe)
    first_losses = first.train(until=7)  # killed after step 7; step 6 was saved
    torch.manual_seed(99)
    second = Training(tmp_path / "parts", recipe)
    assert second.first == 6
    assert first_losses[:6] + second.train() == losses
    assert all(map(torch.equal, second.weights(), whole.weights()))
    assert all(map(torch.equal, second.run.ema.shadow_params, whole.run.ema.shadow_params))


def test_the_newest_checkpoints_are_kept(tmp_path):
    Training(tmp_path, Recipe(steps=12, keep=2)).train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000012"]
    assert Training(tmp_path, Recipe(steps=12)).first == 12


def test_a_checkpoint_cut_short_is_not_resumed(tmp_path):
    Training(tmp_path, Recipe(steps=4)).train()
    (tmp_path / "checkpoints" / "step-00000004").rename(tmp_path / "checkpoints" / "partial")
    (tmp_path / "checkpoints" / "partial" / "run.json").unlink()
    again = Training(tmp_path, Recipe(steps=4))
    assert again.first == 2
    again.train()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]


def test_another_recipe_is_refused(tmp_path):
    Training(tmp_path, Recipe(steps=2)).train()
    with pytest.raises(ValueError, match=r"another recipe \(learning_rate, classes differ\)"):
        Run(Recipe(steps=2, learning_rate=0.5, classes=["apple"]), tmp_path)


def test_the_log_has_a_line_a_call(tmp_path):
    training = Training(tmp_path, Recipe())
    training.run.log(1, {"loss": torch.tensor(0.5), "rate": 1e-3})
    training.run.log(2, {"dead_codes": 3})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == 0.5
    assert lines[1]["dead_codes"] == 3
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"]


def test_training_time_adds_up_over_resumed_parts(tmp_path):
    training = Training(tmp_path, Recipe(steps=2))
    training.run.started -= 100
    training.train()
    assert 100 <= Training(tmp_path, Recipe(steps=2)).run.seconds < 160


@pytest.mark.parametrize("from_environment", [False, True])
def test_passes_accumulate_to_the_step_of_the_whole_batch(tmp_path, monkeypatch, from_environment):
    whole = Training(tmp_path / "whole", Recipe(), dropout=0.0)
    losses = whole.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = {} if from_environment else {"gradient_accumulation_steps": 4}
    if from_environment:  # what `accelerate launch --gradient_accumulation_steps 4` sets
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    parts = Training(tmp_path / "parts", Recipe(**settings), dropout=0.0)
    assert parts.train() == pytest.approx(losses, abs=1e-6)
    assert set(parts.passes) == {4} and len(parts.passes) == 4 * len(losses)
    for a, b in zip(parts.weights(), whole.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_batch_that_the_passes_do_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size is 16; it must be a multiple of 3 \(1 proc"):
        Run(Recipe(gradient_accumulation_steps=3), tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"), [("steps", 0), ("log_every", 0), ("mixed_precision", "fp8")]
)
def test_settings_that_cannot_be_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value!r}; it must be"):
        Recipe(**{setting: value})


def test_without_a_decay_there_is_no_average(tmp_path):
    training = Training(tmp_path, Recipe(ema_decay=0.0, steps=3))
    training.train()
    assert training.run.ema is None
    weights = training.weights()
    assert all(map(torch.equal, training.run.finished_model().parameters(), weights))


def test_averaged_weights_leave_when_validation_fails(tmp_path):
    training = Training(tmp_path, Recipe(steps=3))
    training.train()
    before = training.weights()
    with pytest.raises(KeyError), averaged_weights(training.run.model, training.run.ema):
        assert not all(map(torch.equal, training.weights(), before))
        raise KeyError
    assert all(map(torch.equal, training.weights(), before))
