"""What every training loop shares: checkpoints, steps, logs.

A checkpoint is an accelerate state folder, written under a temporary name and then renamed.
"""

import contextlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..data.atomic import write_json
from ..data.records import TrainingRecord
from .batches import StepSampler, step_loader
from .optimization import ema_weights, learning_rate
from .recipe import RunRecipe


class Run:
    """One training run in a folder: processes, checkpoints, log.jsonl, progress bar.

    Draw the model's weights after this and then call `start`.

    Args:
        recipe: kept in every checkpoint; a resumed run must have the same one.
        out: folder of the run.
        keep: checkpoints kept.

    Raises:
        ValueError: a batch that the processes cannot share equally, or a folder with another
            recipe's run.
    """

    accelerator: Accelerator
    recipe: RunRecipe
    out: Path
    keep: int
    model: nn.Module  # as accelerate wraps it
    optimizer: torch.optim.Optimizer
    ema: EMAModel | None
    first: int  # step that this process started from

    def __init__(self, recipe: RunRecipe, out: str | Path, keep: int = 2):
        self.recipe, self.out, self.keep = recipe, Path(out), keep
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            # ACCELERATE_GRADIENT_ACCUMULATION_STEPS, if set, wins: `accelerate launch` has a flag.
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        )
        shares = self.accelerator.num_processes * self.passes
        if recipe.batch_size % shares:
            raise ValueError(
                f"batch_size is {recipe.batch_size}; it must be a multiple of {shares} "
                f"({self.accelerator.num_processes} processes, {self.passes} passes each)."
            )
        self.checkpoints = self.out / "checkpoints"
        self._check_recipe()
        self.started, self.seconds_before = time.time(), 0.0
        set_seed(recipe.seed)  # all processes draw the same first weights

    @property
    def passes(self) -> int:
        """Forward and backward passes a step and process."""
        return self.accelerator.gradient_accumulation_steps

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *states: Any) -> None:
        """Prepare for the devices and load the newest checkpoint, if any.

        Args:
            states: more objects with `state_dict` and `load_state_dict`, equal on all processes.
        """
        # What checkpoints hold: model, optimizer, random states, averaged weights, `states`.
        accelerator, decay = self.accelerator, self.recipe.ema_decay
        self.ema = EMAModel(model.parameters(), decay=decay) if decay else None
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if self.ema is not None:
            self.ema.to(accelerator.device)
            accelerator.register_for_checkpointing(self.ema)
        accelerator.register_for_checkpointing(*states)

        # From here on every process draws numbers of its own, or all would drop the same units.
        set_seed(self.recipe.seed, device_specific=True)
        self.first, newest = 0, self._newest()
        if newest is not None:
            accelerator.load_state(str(newest))
            state = json.loads((newest / "run.json").read_text())
            self.first, self.seconds_before = state["step"], state["seconds"]

        self.out.mkdir(parents=True, exist_ok=True)
        quiet = {} if accelerator.is_main_process else {"disable": True}
        self.bar = tqdm(total=self.recipe.steps, initial=self.first, unit="step", **quiet)

    def _newest(self) -> Path | None:
        return max(self.checkpoints.glob("step-*"), default=None)

    def _check_recipe(self) -> None:
        newest, recipe = self._newest(), asdict(self.recipe)
        if newest is None:
            return
        before = json.loads((newest / "run.json").read_text())["recipe"]
        changed = [key for key, value in recipe.items() if before.get(key) != value]
        if changed:
            raise ValueError(
                f"{self.out} holds a run with another recipe ({', '.join(changed)} differ); "
                "use its recipe to go on, or another --out."
            )

    @property
    def plain_model(self) -> nn.Module:
        """The model without accelerate's wrapper; shares its weights."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def seconds(self) -> float:
        """Training time so far, resumed parts included."""
        return self.seconds_before + time.time() - self.started

    def save(self, step: int) -> None:
        """Write a checkpoint that `resume` continues at `step`."""
        # All processes write into one folder, whose last name says that it is complete.
        target, partial = self.checkpoints / f"step-{step:08d}", self.checkpoints / "partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {"step": step, "seconds": self.seconds, "recipe": asdict(self.recipe)}
            write_json(partial / "run.json", state)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for old in sorted(self.checkpoints.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def steps(self, dataset: Dataset) -> Iterator[tuple[int, list[Tensor]]]:
        """(steps done with it, this process's share of the batch) for every step that is left.

        Sets the step's learning rate before, and writes a checkpoint after the step where due.
        """
        # Batches depend on (seed, step) alone, so a resumed run gets those of the whole one.
        recipe, accelerator = self.recipe, self.accelerator
        sampler = StepSampler(
            len(dataset),
            recipe.batch_size,
            recipe.seed,
            self.first,
            recipe.steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        for done, batch in enumerate(step_loader(dataset, sampler, recipe.workers), self.first + 1):
            rate = learning_rate(
                done - 1,
                peak=recipe.learning_rate,
                final=recipe.final_learning_rate,
                warmup=recipe.warmup,
                total=recipe.steps,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            yield done, batch
            if done % recipe.save_every == 0 or done == recipe.steps:
                self.save(done)
            self.bar.update()

    def optimize(
        self, batch: list[Tensor], losses: Callable[..., dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """One optimizer step on a batch: gradients clipped, weights averaged.

        Args:
            batch: tensors whose first dimension is this process's share of the batch.
            losses: maps the tensors of one pass to means over it, by name; "loss" is minimized.

        Returns:
            Means over the share, by name.
        """
        # Gradients of all passes add up; `backward` divides by their number, and only the last
        # one exchanges them between processes.
        means: dict[str, Tensor] = {}
        parts = list(zip(*(tensor.chunk(self.passes) for tensor in batch), strict=True))
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
            with alone:
                found = losses(*part)
                self.accelerator.backward(found["loss"])
            for name, value in found.items():
                means[name] = means.get(name, 0) + value.detach() / len(parts)

        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.model.parameters())
        return means

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """The averaged weights in the model for the length of a with block."""
        return ema_weights(self.model, self.ema)

    def evaluates(self, done: int) -> bool:
        """Whether the model is to be evaluated after `done` steps."""
        return done % self.recipe.evaluate_every == 0 or done == self.recipe.steps

    def finished_model(self) -> nn.Module:
        """The model with its averaged weights, in float32, ready to be saved."""
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).float().eval()
        if self.ema is not None:
            self.ema.copy_to(model.parameters())
        return model

    def record(self, folder: Path, stage: str, data: str, images: int, classes: int) -> None:
        """Write training.json beside finished weights: recipe, data, time, machine, last numbers.

        Args:
            folder: of the weights.
            stage: "tokenizer", "generator" or "refiner".
            data, images, classes: where the training images came from, and how many they were.
        """
        # The last value of every number that was logged.
        logged: dict[str, float] = {}
        for line in (self.out / "log.jsonl").read_text().splitlines():
            logged |= json.loads(line)
        for name in ("step", "seconds", "learning_rate"):
            logged.pop(name, None)
        device = self.accelerator.device
        machine = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        )
        record = TrainingRecord(
            stage=stage,
            data=data,
            images=images,
            classes=classes,
            steps=self.recipe.steps,
            seconds=round(self.seconds, 1),
            machine=f"{self.accelerator.num_processes} x {machine} ({device.type}), "
            f"torch {torch.__version__}",
            recipe=self.recipe,
            logged=logged,
        )
        write_json(folder / TrainingRecord.FILE, record.to_json())

    def log_losses(self, done: int, losses: dict[str, Tensor]) -> None:
        """Log means over all processes, and the learning rate, where due after `done` steps."""
        if done % self.recipe.log_every == 0:
            means = self.accelerator.reduce(losses, "mean")
            rate = {"learning_rate": self.optimizer.param_groups[0]["lr"]}
            self.log(done, {name: value.item() for name, value in means.items()} | rate)

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
