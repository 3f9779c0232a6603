"""What every training loop shares: learning rate, checkpoints, logs.

A checkpoint is an accelerate state folder, written under a temporary name and then renamed.
"""

import contextlib
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from .data import StepSampler, step_loader


def learning_rate(step: int, *, peak: float, final: float, warmup: int, total: int) -> float:
    """Linear warm-up to `peak`, then cosine decay to `final` at step `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@contextlib.contextmanager
def ema_weights(model: nn.Module, ema: EMAModel) -> Iterator[None]:
    """The averaged weights in `model` for the length of a with block."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    yield
    ema.restore(model.parameters())


class Run:
    """One training run in a folder: checkpoints, log.jsonl, progress bar.

    Args:
        accelerator: after `prepare`; its state is what checkpoints hold.
        out: folder of the run.
        recipe: dataclass, kept in every checkpoint; a resumed run must have the same one.
        total: number of optimizer steps.
        keep: checkpoints kept.
    """

    def __init__(
        self, accelerator: Accelerator, out: str | Path, recipe, total: int, keep: int = 2
    ):
        self.accelerator, self.out, self.total, self.keep = accelerator, Path(out), total, keep
        self.recipe = asdict(recipe)
        self.checkpoints = self.out / "checkpoints"
        self.bar = None
        self.started = time.time()
        self.seconds_before = 0.0

    def resume(self) -> int:
        """Load the newest checkpoint, if any, and return the step to go on from."""
        found = sorted(self.checkpoints.glob("step-*"))
        start = 0
        if found:
            state = json.loads((found[-1] / "run.json").read_text())
            changed = [key for key in self.recipe if state["recipe"].get(key) != self.recipe[key]]
            if changed:
                raise ValueError(
                    f"{self.out} holds a run with another recipe ({', '.join(changed)} differ); "
                    "use its recipe to go on, or another --out."
                )
            self.accelerator.load_state(str(found[-1]))
            start, self.seconds_before = state["step"], state["seconds"]
        self.out.mkdir(parents=True, exist_ok=True)
        quiet = {} if self.accelerator.is_main_process else {"disable": True}
        self.bar = tqdm(total=self.total, initial=start, unit="step", **quiet)
        return start

    @property
    def seconds(self) -> float:
        """Training time so far, resumed parts included."""
        return self.seconds_before + time.time() - self.started

    def save(self, step: int) -> None:
        """Write a checkpoint that `resume` continues at `step`."""
        target, partial = self.checkpoints / f"step-{step:08d}", self.checkpoints / "partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {"step": step, "seconds": self.seconds, "recipe": self.recipe}
            (partial / "run.json").write_text(json.dumps(state, indent=1))
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for old in sorted(self.checkpoints.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def steps(self, dataset, optimizer, start: int) -> Iterator[tuple[int, Any]]:
        """(steps done with it, batch) for every step from `start` on.

        Sets the step's learning rate before, and writes a checkpoint after the step where due.
        """
        recipe, accelerator = self.recipe, self.accelerator
        sampler = StepSampler(
            len(dataset),
            recipe["batch_size"],
            recipe["seed"],
            start,
            self.total,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = step_loader(dataset, sampler, recipe["workers"])
        for done, batch in enumerate(loader, start + 1):
            rate = learning_rate(
                done - 1,
                peak=recipe["learning_rate"],
                final=recipe["final_learning_rate"],
                warmup=recipe["warmup"],
                total=self.total,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            yield done, batch
            if done % recipe["save_every"] == 0 or done == self.total:
                self.save(done)
            self.bar.update()

    def descend(self, loss: Tensor, model: nn.Module, optimizer) -> None:
        """One optimizer step down `loss`, gradients clipped."""
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(model.parameters(), self.recipe["gradient_clip"])
        optimizer.step()
        optimizer.zero_grad()

    def due(self, done: int) -> bool:
        """Whether the model is to be evaluated after `done` steps."""
        return done % self.recipe["evaluate_every"] == 0 or done == self.total

    def record(self, folder: Path, stage: str, data: str, images: int, classes: int) -> None:
        """Write training.json beside finished weights: recipe, data, time, machine, last numbers.

        Args:
            folder: of the weights.
            stage: "tokenizer", "generator" or "refiner".
            data, images, classes: where the training images came from, and how many they were.
        """
        logged: dict[str, float] = {}
        for line in (self.out / "log.jsonl").read_text().splitlines():
            logged |= json.loads(line)
        for name in ("step", "seconds", "learning_rate"):
            logged.pop(name, None)
        device = self.accelerator.device
        machine = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        )
        content = {
            "stage": stage,
            "data": data,
            "images": images,
            "classes": classes,
            "steps": self.total,
            "seconds": round(self.seconds, 1),
            "machine": f"{self.accelerator.num_processes} x {machine} ({device.type}), "
            f"torch {torch.__version__}",
            "recipe": self.recipe,
            "logged": logged,
        }
        (folder / "training.json").write_text(json.dumps(content, indent=1) + "\n")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append a line to log.jsonl and show it beside the progress bar."""
        if not self.accelerator.is_main_process:
            return
        line = {"step": step, "seconds": round(self.seconds, 1)} | {
            key: round(float(value), 6) for key, value in values.items()
        }
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        self.bar.set_postfix({key: f"{value:.4g}" for key, value in values.items()})
