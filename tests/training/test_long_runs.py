"""What a long run needs: it can be killed, stopped, continued and watched, and none is lost."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from tqdm.auto import tqdm

from codeclade import CodecladeConfig, CodecladeTransformer
from codeclade.training.interruption import how_to_go_on
from codeclade.training.optimization import build_optimizer
from codeclade.training.recipe import RunRecipe
from codeclade.training.run import Run
from codeclade.training.start_table import (
    DataSummary,
    activation_bytes,
    duration,
    memory_bytes,
    start_table,
)
from codeclade.training.throughput import ImageCost, Meter, decoder_flops, device_peak
from codeclade.training.trackers import tracker_name
from points import Points

KILLED = Path(__file__).parent / "killed_runs.py"


@dataclass(kw_only=True)
class Recipe(RunRecipe):
    """A short run on the CPU."""

    steps: int = 8
    batch_size: int = 10
    learning_rate: float = 0.01
    mixed_precision: str = "no"
    log_every: int = 2
    save_every: int = 4
    evaluate_every: int = 2
    tracker: str = "none"


def started(out, recipe: Recipe) -> Run:
    run = Run(recipe, out)
    model = nn.Linear(4, 1)
    run.start(model, build_optimizer(model, recipe))
    return run


def train(run: Run, validation=lambda done: 1.0, spoil: int = 0, stop: int = 0) -> None:
    """All steps; after step `spoil` a weight is no number, before `stop` comes a Ctrl-C."""

    def losses(points, sums):
        return {"loss": (run.model(points) - sums).square().mean()}

    for done, batch in run.steps(Points()):
        if done == stop:
            signal.raise_signal(signal.SIGINT)
        run.log_losses(done, run.optimize(batch, losses))
        if done == spoil:
            run.plain_model.weight.data[0, 0] = math.nan
        if run.evaluates(done):
            with run.averaged_weights():
                run.validated(done, {"validation_loss": validation(done)})


def log(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_every_log_line_says_how_fast_and_how_long(tmp_path):
    run = started(tmp_path, Recipe(log_every=1))
    run.describe(
        DataSummary("photos", images=50, held_out=6, classes=5), ImageCost(tokens=16, flops=100.0)
    )
    train(run)
    lines = [line for line in log(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    for line in lines:
        assert line["images_per_second"] > 0
        assert line["gradient_norm"] > 0 and line["learning_rate"] > 0
        ratio = line["tokens_per_second"] / line["images_per_second"]
        assert ratio == pytest.approx(16, rel=1e-4)
        assert line["seconds_left"] >= 0
    assert lines[-1]["seconds_left"] == 0


def test_the_meter_divides_by_time_without_pauses(monkeypatch):
    clock = iter([0.0, 1.0, 7.0, 8.0, 9.0])  # start, pause from 1 to 7, reading at 8
    monkeypatch.setattr("codeclade.training.throughput.time.monotonic", lambda: next(clock))
    meter = Meter(10, ImageCost(tokens=16, flops=3e3), peak=1e6)
    with meter.pause():
        pass
    meter.step()
    meter.step()
    found = meter.read(left=5)
    assert found["images_per_second"] == pytest.approx(10.0)  # 20 in 2 seconds
    assert found["tokens_per_second"] == pytest.approx(160.0)
    assert found["model_flops_utilization"] == pytest.approx(0.03)
    assert found["seconds_left"] == pytest.approx(5.0)


def test_flops_are_six_a_weight_and_position_and_attention():
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 8, bias=False))
    assert decoder_flops(model, layers=2, width=8, length=4) == 6 * 64 * 4 + 6 * 2 * 8 * 16
    assert device_peak("NVIDIA H100 80GB HBM3", 8) == 8 * 989e12
    assert device_peak("Some GPU", 1) is None


def test_a_run_whose_loss_is_no_number_stops_and_names_the_step(tmp_path):
    run = started(tmp_path, Recipe(log_every=100, evaluate_every=100))
    with pytest.raises(ValueError, match=r"no longer a number at step 6; .*step-00000004 holds"):
        train(run, spoil=5)
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names == ["step-00000004"]


def test_what_is_said_after_the_steps_starts_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("codeclade.training.run.tqdm", partial(tqdm, disable=False, mininterval=0))
    train(started(tmp_path / "whole", Recipe()))
    assert capsys.readouterr().err.endswith("\n")
    run = started(tmp_path / "spoiled", Recipe(log_every=100, evaluate_every=100))
    try:
        train(run, spoil=5)
    except ValueError:  # still alive here, as where the command line says what happened
        assert capsys.readouterr().err.endswith("\n")
    else:
        pytest.fail("was not stopped")


def test_the_best_weights_stay_and_can_end_the_run(tmp_path):
    seen = {}

    def validation(done: int) -> float:
        seen[done] = run.plain_model.weight.detach().clone()
        return {4: 0.5}.get(done, 1.0)

    run = started(tmp_path, Recipe())
    train(run, validation)
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert best == {"step": 4, "validation_loss": 0.5}
    assert torch.equal(run.finished_model(best=True).weight, seen[4])
    assert not torch.equal(seen[4], seen[8])


def test_what_was_written_after_the_last_checkpoint_is_forgotten(tmp_path):
    recipe = Recipe()
    with pytest.raises(RuntimeError):
        train(started(tmp_path, recipe), validation=lambda done: fail_at(done, 6))
    assert max(line["step"] for line in log(tmp_path)) == 6
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 2
    train(run := started(tmp_path, recipe))
    assert run.first == 4
    steps = [line["step"] for line in log(tmp_path) if "loss" in line]
    assert steps == [2, 4, 6, 8]


def fail_at(done: int, step: int) -> float:
    if done == step:
        raise RuntimeError("the machine went away")
    return 1.0


def test_epochs_are_counted_in_images(tmp_path):
    run = started(tmp_path, Recipe(epochs=2.5))
    train(run)
    assert run.total == 13  # 125 images in batches of 10
    assert log(tmp_path)[-1]["step"] == 13
    assert log(tmp_path)[-1]["validation_loss"] == 1.0


def test_harmless_settings_may_change_when_a_run_goes_on(tmp_path):
    train(started(tmp_path, Recipe()))
    changed = Recipe(steps=12, log_every=1, evaluate_every=3, save_every=6, keep=1, workers=0)
    run = started(tmp_path, changed)
    assert run.first == 8
    train(run)
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names == ["step-00000012"]
    with pytest.raises(ValueError, match=r"\(learning_rate differ\).*may change steps, epochs"):
        Run(replace(changed, learning_rate=0.5), tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    first = started(tmp_path, Recipe())
    with pytest.raises(ValueError, match="is in use by another run"):
        started(tmp_path, Recipe())
    train(first)
    assert started(tmp_path, Recipe()).first == 8  # free again


def test_ctrl_c_saves_the_step_and_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/codeclade", "train-generator", "--out", "my runs"])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(started(tmp_path, Recipe()), stop=3)
    command = "codeclade train-generator --out 'my runs'"
    assert str(stopped.value) == f"step 3 is saved; to go on: {command}"
    assert signal.getsignal(signal.SIGINT) is before
    assert started(tmp_path, Recipe()).first == 3
    monkeypatch.setattr(sys, "argv", ["mine.py", "a b"])
    assert how_to_go_on() == "to go on: python mine.py 'a b'"


def test_the_start_table_is_arithmetic():
    with torch.device("meta"):
        model = nn.ModuleDict({"body": nn.Linear(1024, 1024), "head": nn.Linear(1024, 10)})
    model["head"].requires_grad_(False)
    total, trainable = 1024 * 1025 + 10250, 1024 * 1025
    assert memory_bytes(model, averaged=True) == {
        "parameters": 4 * total,
        "gradients": 4 * trainable,
        "optimizer": 8 * trainable,
        "average": 4 * total,
    }
    assert memory_bytes(model, averaged=True, shards=4)["parameters"] == total
    table = start_table(
        model,
        DataSummary("photos", images=1000, held_out=50, classes=10),
        tokens=256,
        batch_size=8,
        passes=2,
        steps=500,
        first=0,
        precision="bf16",
        device="cpu",
        processes=2,
        averaged=True,
    )
    for words in (
        "photos: 1,000 images, 10 classes; 50 for validation",
        "256 an image, 256,000",
        "0 of 500 done, 4.0 epochs",
        "2 x 2 passes x 2 images",
        "1,049,600 parameters, 1,049,600 trainable, float32",
        "10,250 parameters, 0 trainable, float32",
        "20.1 MiB a device",
    ):
        assert words in table
    assert [duration(s) for s in (30, 600, 7200, 10 * 86400)] == [
        "30 s",
        "10.0 min",
        "2.0 h",
        "10.0 days",
    ]


def test_the_3b_model_fits_eight_sharded_devices():
    with torch.device("meta"):
        config = CodecladeConfig(
            hidden_size=3200, num_hidden_layers=24, num_attention_heads=32,
            intermediate_size=8704, grid_size=24,
        )  # fmt: skip
        model = CodecladeTransformer(config)
    kept = sum(memory_bytes(model, averaged=True, shards=8).values())
    shape = {"layers": 24, "width": 3200, "inner": 8704, "vocabulary": 16384, "bytes_each": 2}
    pass_of_8 = activation_bytes(positions=8 * 576, checkpointing=True, **shape)
    assert kept == pytest.approx(20 * 3_096_659_200 / 8)  # 7.2 GiB
    assert kept + pass_of_8 < 12e9 < 80e9


@pytest.mark.parametrize(("layers", "inner"), [(4, 176), (8, 352)])
def test_activations_are_about_what_autograd_keeps(layers, inner):
    shape = {"grid_size": 8, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 64}
    config = CodecladeConfig(num_hidden_layers=layers, intermediate_size=inner, **shape)
    model = CodecladeTransformer(config).train()
    weights = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(64, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(tokens[:, :-1], torch.zeros(4, dtype=torch.int64), labels=tokens)
    expected = activation_bytes(
        positions=4 * 64, layers=layers, width=64, inner=inner, vocabulary=64, bytes_each=4,
        checkpointing=False,
    )  # fmt: skip
    assert output.loss.isfinite()
    assert sum(kept.values()) == pytest.approx(expected, rel=0.2)


def test_the_table_and_the_time_are_printed(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("codeclade.training.run.WARM_UP", 3)
    monkeypatch.setenv("TQDM_DISABLE", "0")
    run = started(tmp_path, Recipe())
    run.describe(DataSummary("photos", images=50, held_out=6, classes=5))
    train(run)
    printed = "".join(capfd.readouterr())
    assert "photos: 50 images, 5 classes; 6 for validation" in printed
    assert "3 steps took" in printed


def test_a_tracker_is_named_or_nothing(monkeypatch):
    installed = {"tensorboard"}
    monkeypatch.setattr("codeclade.training.trackers.find_spec", lambda n: n in installed or None)
    assert tracker_name("") == "tensorboard"
    assert tracker_name("none") is None
    with pytest.raises(ValueError, match="tracker=wandb needs the package wandb, which is not"):
        tracker_name("wandb")
    with pytest.raises(ValueError, match="tracker is 'tensorbord'; it must be one of none, tensor"):
        tracker_name("tensorbord")
    installed.clear()
    assert tracker_name("") is None


def test_tensorboard_gets_the_numbers(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(started(tmp_path, Recipe(tracker="tensorboard")))
    events = reader.EventAccumulator(str(tmp_path / "tracker"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == [2, 4, 6, 8]


def test_the_fused_optimizer_makes_the_same_steps():
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = build_optimizer(model, Recipe(), fused=fused)
        for _ in range(3):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.defaults["fused"] is fused
        found.append(model.weight.detach())
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_killed_at_any_moment_the_end_is_bit_equal(tmp_path):
    """SIGKILL at up to 12 moments, half of them while saving; see killed_runs.py."""
    command = [sys.executable, str(KILLED), str(tmp_path)]
    settings = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    paths = [str(KILLED.parents[1]), os.environ.get("PYTHONPATH", "")]
    settings["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    # A fast machine may be done before the last kills.
    assert found["kills"] >= 9 and found["while_saving"] >= 3
    assert found["equal"]
