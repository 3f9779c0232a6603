"""Training in float16: refused on processors; elsewhere gradients are scaled, and steps left out.

Autocast and GradScaler work on a processor too, so the loop around them is tested there.
"""

import json
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from codeclade.training.discriminator import adaptive_weight
from codeclade.training.optimization import build_optimizer
from codeclade.training.recipe import RunRecipe
from codeclade.training.run import Run
from points import Points


def recipe(**settings) -> RunRecipe:
    given = {
        "steps": 12, "batch_size": 8, "learning_rate": 0.01, "warmup": 4, "mixed_precision": "no",
        "tracker": "none", "log_every": 1, "save_every": 3, "ema_decay": 0.5, "gradient_clip": 0.5,
    }  # fmt: skip
    return RunRecipe(**given | settings)


def scaled_run(out, scale: float | None) -> Run:
    """A run whose gradients are scaled, from a scale on that may be far too large."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(recipe(), out)
    if scale is not None:
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        run.accelerator.native_amp = True
        AcceleratorState()._mixed_precision = "fp16"  # accelerate unscales gradients then alone
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    run.start(model, build_optimizer(model, recipe(mixed_precision="fp16")))
    return run


def trained(run: Run, until: int = 12) -> list[dict[str, float]]:
    """Numbers of every step; stops after step `until`, as if killed."""

    def losses(points: torch.Tensor, sums: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (run.model(points) - sums).square().mean()}

    found = []
    for done, batch in run.steps(Points()):
        before = [one.detach().clone() for one in (*run.model.parameters(), *run.ema.shadow_params)]
        means = run.optimize(batch, losses)
        after = [*run.model.parameters(), *run.ema.shadow_params]
        still = all(map(torch.equal, before, after))
        rate = run.optimizer.param_groups[0]["lr"]
        found.append(
            {"loss": means["loss"].item(), "norm": means["gradient_norm"].item(), "rate": rate,
             "still": still, "skipped": run.skipped}
        )  # fmt: skip
        if done == until:
            break
    return found


def test_float16_is_refused_on_a_processor(tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"'fp16', which trains on a GPU alone.*bf16 or no\."):
        Run(recipe(mixed_precision="fp16"), tmp_path)
    assert not list(tmp_path.iterdir())
    Run(recipe(), tmp_path)  # and leaves nothing behind that another run would stumble over


def test_float16_takes_an_optimizer_that_does_not_hide_skipped_steps():
    model = nn.Linear(2, 2)
    assert build_optimizer(model, recipe(mixed_precision="fp16")).defaults["fused"] is False
    assert build_optimizer(model, recipe(mixed_precision="bf16")).defaults["fused"] is True


def test_steps_of_infinite_gradients_move_nothing(tmp_path):
    plain = trained(scaled_run(tmp_path / "plain", None))
    found = trained(scaled_run(tmp_path / "scaled", 2.0**20))
    skipped = [row for row in found if row["still"]]
    assert 0 < len(skipped) < 8 and found[-1]["skipped"] == len(skipped)
    assert found[0]["still"] and not found[-1]["still"]
    # The learning rate waits: the first step that counts has the first rate of the warm-up.
    kept = [row for row in found if not row["still"]]
    assert [row["rate"] for row in kept] == [row["rate"] for row in plain[: len(kept)]]
    assert all(a["rate"] == b["rate"] for a, b in pairwise(found) if a["still"])
    # Norms are those of unscaled gradients, so clipping means the same.
    first = kept[0]
    assert 0.1 < first["norm"] / plain[len(skipped)]["norm"] < 10


def test_a_scaled_run_is_resumed_bit_equal(tmp_path):
    whole = scaled_run(tmp_path / "whole", 2.0**20)
    rows = trained(whole)
    first = trained(scaled_run(tmp_path / "parts", 2.0**20), until=8)  # step 6 was saved
    second = scaled_run(tmp_path / "parts", 1.0)  # the checkpoint has the scale
    assert second.accelerator.scaler.get_scale() not in (1.0, 2.0**20)
    state = json.loads((second.folder.newest() / "run.json").read_text())
    assert second.first == 6 and second.skipped == state["skipped"] == first[5]["skipped"] > 0
    assert str(first[:6] + trained(second)) == str(rows)  # in words, as norms that are NaN differ
    assert all(map(torch.equal, second.model.parameters(), whole.model.parameters()))
    assert all(map(torch.equal, second.ema.shadow_params, whole.ema.shadow_params))
    assert second.accelerator.scaler.get_scale() == whole.accelerator.scaler.get_scale()


def test_the_adaptive_weight_does_not_depend_on_the_scale():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    found = []
    for scale in (None, 2.0**12):
        accelerator = Accelerator()
        if scale is not None:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loss, adversarial = 3 * weight.square().sum(), weight.sum()
        found.append(adaptive_weight(loss, adversarial, weight, accelerator))
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_float16_trains_on_a_gpu(tmp_path):
    run = Run(recipe(mixed_precision="fp16"), tmp_path)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    run.start(model, build_optimizer(model, recipe(mixed_precision="fp16")))
    rows = trained(run)
    assert run.accelerator.scaler is not None and rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["skipped"] == rows[0]["skipped"] or row["norm"] > 0 for row in rows)
