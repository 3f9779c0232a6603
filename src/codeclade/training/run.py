"""What every training loop shares: checkpoints, steps, logs.

A checkpoint is an accelerate state folder, written under a temporary name and then renamed.
"""

import contextlib
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..data.atomic import disk_errors, write_json
from ..data.records import TrainingRecord
from .averages import AveragedWeights, averaged_weights, whole, whole_state
from .batches import StepSampler, StreamOrder, step_loader
from .cpu_linear import use_fast_linears, use_plain_linears
from .interruption import how_to_go_on, interruptible
from .number_watch import NumberWatch
from .optimization import learning_rate
from .recipe import RunRecipe
from .run_folder import RunFolder
from .sharding import check_launch, check_precision, is_sharded
from .start_table import DataSummary, device_name, duration, start_table
from .throughput import ImageCost, Meter, peak_flops
from .trackers import tracker_name

WARM_UP = 20  # steps after which a run says how long it will take
PASSING = (
    "step", "seconds", "learning_rate", "images_per_second", "tokens_per_second", "seconds_left",
    "model_flops_utilization",
)  # fmt: skip


class Run:
    """One training run in a folder: processes, checkpoints, log.jsonl, progress bar.

    Draw the model's weights after this and then call `start`.

    Args:
        recipe: kept in every checkpoint; a resumed run must have the same one, but for
            `recipe.HARMLESS`.
        out: folder of the run.

    Raises:
        ValueError: a launch that training does not work with, a batch that the processes cannot
            share equally, a tracker that is not there, or a folder with another recipe's run.
    """

    accelerator: Accelerator
    recipe: RunRecipe
    out: Path
    total: int  # steps of the whole run; with `epochs` known once `steps` has the data
    model: nn.Module  # as accelerate wraps it
    optimizer: torch.optim.Optimizer
    ema: AveragedWeights | None
    data: DataSummary  # what `describe` was given
    first: int  # step that this process started from
    skipped: int  # steps that float16 left out for infinite gradients, as GradScaler does

    def __init__(self, recipe: RunRecipe, out: str | Path):
        self.recipe, self.out, self.total = recipe, Path(out), recipe.steps
        self.folder = RunFolder(self.out, recipe.keep)
        self.tracker = tracker_name(recipe.tracker)
        check_precision(recipe.mixed_precision)
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            # ACCELERATE_GRADIENT_ACCUMULATION_STEPS, if set, wins: `accelerate launch` has a flag.
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            log_with=self.tracker,
            project_dir=str(self.out) if self.tracker else None,
        )
        check_launch(self.accelerator)
        # A batch is all processes' together, in so many passes each, and has one size everywhere.
        shares = self.accelerator.num_processes * self.passes
        if recipe.batch_size % shares:
            raise ValueError(
                f"batch_size is {recipe.batch_size}; it must be a multiple of {shares} "
                f"({self.accelerator.num_processes} processes, {self.passes} passes each)."
            )
        # A folder begun with another recipe is refused before its first checkpoint is replaced.
        self.folder.check_recipe(recipe)
        self.started, self.seconds_before = time.time(), 0.0
        self.meter = Meter(recipe.batch_size)
        set_seed(recipe.seed)  # all processes draw the same first weights

    @property
    def passes(self) -> int:
        """Forward and backward passes a step and process."""
        return self.accelerator.gradient_accumulation_steps

    @property
    def images_a_pass(self) -> int:
        """Images of one forward and backward pass of a process."""
        return self.recipe.batch_size // (self.passes * self.accelerator.num_processes)

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *states: Any) -> None:
        """Prepare for the devices and load the newest checkpoint, if any.

        Args:
            states: more objects with `state_dict` and `load_state_dict`, equal on all processes.

        Raises:
            ValueError: a folder that another run is using.
        """
        # One run a folder: two would remove each other's checkpoints.
        if self.accelerator.is_main_process:
            self.folder.lock()

        # What checkpoints hold: model, optimizer, random states, averaged weights, `states`. The
        # average is made of what `prepare` returns, so that it is sharded like the model.
        accelerator, decay = self.accelerator, self.recipe.ema_decay
        use_fast_linears(model)
        # Kernels of 1 x 1 have two orders of strides for one order of numbers; DDP warns of it.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = AveragedWeights(self.model.parameters(), decay=decay) if decay else None
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        accelerator.register_for_checkpointing(*states)

        # From here on every process draws numbers of its own, or all would drop the same units.
        set_seed(self.recipe.seed, device_specific=True)
        self.first, self.skipped, newest = 0, 0, self.folder.newest()
        if newest is not None:
            accelerator.load_state(str(newest))
            state = json.loads((newest / "run.json").read_text())
            self.first, self.seconds_before = state["step"], state["seconds"]
            self.skipped = state.get("skipped", 0)
        if accelerator.is_main_process:
            self.folder.forget_after(self.first)
        accelerator.wait_for_everyone()

        # float16 skips steps of infinite gradients and lowers its scale: there the loss counts.
        scaled = accelerator.scaler is not None
        watched = ["loss"] if scaled else ["loss", "gradient_norm"]
        self.watch = NumberWatch(watched, self.first, accelerator.device)
        if self.tracker:
            config = {
                k: v for k, v in vars(self.recipe).items() if isinstance(v, (int, float, str))
            }
            accelerator.init_trackers("tracker", config=config)
        quiet = {} if accelerator.is_main_process else {"disable": True}
        self.bar = tqdm(total=self.total, initial=self.first, unit="step", **quiet)

    @property
    def plain_model(self) -> nn.Module:
        """The model without accelerate's wrapper; shares its weights."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def seconds(self) -> float:
        """Training time so far, resumed parts included."""
        return self.seconds_before + time.time() - self.started

    def describe(self, data: DataSummary, cost: ImageCost | None = None) -> None:
        """Print the table a run starts with, and count tokens and FLOPs from here on.

        Args:
            data: which `record` will speak of, too.
            cost: of an image.
        """
        self.data, cost = data, cost or ImageCost()
        self._count_steps(data.images)
        accelerator, precision = self.accelerator, self.recipe.mixed_precision
        processes = accelerator.num_processes
        # From here on steps are timed, against the peak of the device where that is known.
        peak = peak_flops(accelerator.device, precision, processes)
        self.meter = Meter(self.recipe.batch_size, cost, peak)
        if not accelerator.is_main_process:
            return
        # The table comes before the first step, which may be minutes away.
        table = start_table(
            self.plain_model,
            data,
            tokens=cost.tokens,
            batch_size=self.recipe.batch_size,
            passes=self.passes,
            steps=self.total,
            first=self.first,
            precision=precision,
            device=device_name(accelerator.device),
            processes=processes,
            averaged=self.ema is not None,
            shards=processes if is_sharded(self.model) else 1,
            activations=cost.activations and cost.activations * self.images_a_pass,
        )
        self.bar.write(table, file=sys.stderr)

    def _count_steps(self, images: int | None) -> None:
        recipe = self.recipe
        if recipe.epochs and images is not None:
            self.total = max(1, math.ceil(recipe.epochs * images / recipe.batch_size))
            self.bar.total = self.total

    def save(self, step: int) -> None:
        """Write a checkpoint that `resume` continues at `step`."""
        # Weights that are not numbers must not take the place of good ones.
        self.check_finite()
        # All processes write into one folder, whose last name says that it is complete.
        main = self.accelerator.is_main_process
        with self.meter.pause():
            if main:
                self.folder.start_partial()
            self.accelerator.wait_for_everyone()
            with disk_errors(self.folder.partial):
                self.accelerator.save_state(str(self.folder.partial))
            self.accelerator.wait_for_everyone()
            if main:
                self.folder.finish_partial(step, self.seconds, self.recipe, self.skipped)
            self.accelerator.wait_for_everyone()

    def steps(self, dataset: Dataset | StreamOrder) -> Iterator[tuple[int, list[Tensor]]]:
        """(steps done with it, this process's share of the batch) for every step that is left.

        Sets the step's learning rate before, and writes a checkpoint after the step where due.

        Raises:
            KeyboardInterrupt: after Ctrl-C; says how to go on.
        """
        # Batches depend on (seed, step) alone, so a resumed run gets those of the whole one.
        recipe, accelerator = self.recipe, self.accelerator
        loader = self._loader(dataset)
        self.stepping = time.time()
        self.meter.read(0)  # time and steps count from here on
        with contextlib.ExitStack() as stack:
            stack.callback(self.folder.release)  # free for others, however the run ends
            stack.callback(self.bar.close)  # what is said next starts a line of its own
            # Several processes could not agree on the step, so theirs stop at the last checkpoint.
            alone = accelerator.num_processes == 1
            interrupted = stack.enter_context(interruptible(self.bar.write)) if alone else []
            left = range(self.first + 1, self.total + 1)
            for done, batch in zip(left, loader, strict=False):  # a stream has no end
                self._set_learning_rate(done)
                yield done, batch
                due = done % recipe.save_every == 0 or done == self.total
                if due or interrupted:
                    self.save(done)
                if interrupted and done < self.total:
                    raise KeyboardInterrupt(f"step {done} is saved; {how_to_go_on()}")
                self.bar.update()

    def _loader(self, dataset: Dataset | StreamOrder) -> Iterable[list[Tensor]]:
        """This process's share of the batches of all steps that are left."""
        recipe, accelerator = self.recipe, self.accelerator
        share = accelerator.process_index, accelerator.num_processes
        if isinstance(dataset, StreamOrder):
            each = recipe.batch_size // share[1]
            return dataset.loader(each, recipe.seed, self.first, share, recipe.workers)
        self._count_steps(len(dataset))
        sampler = StepSampler(
            len(dataset), recipe.batch_size, recipe.seed, self.first, self.total, *share
        )
        return step_loader(dataset, sampler, recipe.workers)

    def _set_learning_rate(self, done: int) -> None:
        recipe = self.recipe
        rate = learning_rate(
            done - 1 - self.skipped,
            peak=recipe.learning_rate,
            final=recipe.final_learning_rate,
            warmup=recipe.warmup,
            total=self.total,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def optimize(
        self, batch: list[Tensor], losses: Callable[..., dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """One optimizer step on a batch: gradients clipped, weights averaged.

        Args:
            batch: tensors whose first dimension is this process's share of the batch.
            losses: maps the tensors of one pass to means over it, by name; "loss" is minimized.

        Returns:
            Means over the share, by name, and "gradient_norm" before clipping.
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

        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        means["gradient_norm"] = whole(norm.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()
        # What a step of infinite gradients would have moved stays where it is.
        self.skipped += self.optimizer.step_was_skipped
        if self.ema is not None and not self.optimizer.step_was_skipped:
            self.ema.step(self.model.parameters())
        self.watch.add(means)
        self.meter.step()
        return means

    def check_finite(self) -> None:
        """Stop a run whose loss or gradient is no longer a number; all processes call it together.

        Raises:
            ValueError: naming the step.
        """
        bad = self.accelerator.gather(self.watch.first_bad.reshape(1)).min().item()
        if bad < math.inf:
            self.bar.close()
            newest = self.folder.newest()
            kept = f"{newest} holds the last good one" if newest else "there is no checkpoint yet"
            raise ValueError(
                f"the loss or its gradient was no longer a number at step {bad:.0f}; {kept}. "
                "Lower learning_rate, raise warmup, or use mixed_precision=bf16 or no."
            )

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """The averaged weights in the model for the length of a with block; no training time."""
        stack = contextlib.ExitStack()
        stack.enter_context(self.meter.pause())
        stack.enter_context(averaged_weights(self.model, self.ema))
        return stack

    def evaluates(self, done: int) -> bool:
        """Whether the model is to be evaluated after `done` steps."""
        return done % self.recipe.evaluate_every == 0 or done == self.total

    def validated(self, done: int, numbers: dict[str, float]) -> None:
        """Log a validation, and keep the weights in the model if their loss is the lowest so far.

        Call it inside `averaged_weights`, on all processes, with the same numbers.

        Args:
            numbers: "validation_loss" among them.
        """
        self.check_finite()
        self.log(done, numbers)
        loss = numbers["validation_loss"]
        if loss < self.folder.best_loss():
            weights = whole_state(self.plain_model)
            self.accelerator.wait_for_everyone()  # all have read the loss before it changes
            if self.accelerator.is_main_process:
                self.folder.save_best(done, loss, weights)
        self.accelerator.wait_for_everyone()

    def finished_model(
        self, build: Callable[[], nn.Module] | None = None, best: bool = False
    ) -> nn.Module:
        """The model with its averaged weights, in float32, ready to be saved.

        Args:
            build: makes the same model anew; only a sharded one needs it, whose whole weights do
                not fit into its shards' modules.
            best: the averaged weights with the lowest loss that `validated` got, not the last.
        """
        if is_sharded(self.model):
            with averaged_weights(self.model, self.ema):
                state = whole_state(self.model)
            model = build()
            model.load_state_dict(state)
        else:
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).float()
            if self.ema is not None:
                self.ema.copy_to(model.parameters())
        if best:
            self.accelerator.wait_for_everyone()
            model.load_state_dict(self.folder.best_state())
        use_plain_linears(model)
        return model.eval()

    def record(self, folder: Path, stage: str) -> None:
        """Write training.json beside finished weights: recipe, data, time, machine, last numbers.

        Args:
            folder: of the weights.
            stage: "tokenizer", "generator" or "refiner".
        """
        logged = {k: v for k, v in self.folder.logged().items() if k not in PASSING}
        device = self.accelerator.device
        machine = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        )
        # What the card says of this run.
        record = TrainingRecord(
            stage=stage,
            data=self.data.source,
            images=self.data.images,
            classes=self.data.classes,
            steps=self.total,
            seconds=round(self.seconds, 1),
            machine=f"{self.accelerator.num_processes} x {machine} ({device.type}), "
            f"torch {torch.__version__}",
            recipe=self.recipe,
            logged=logged,
        )
        write_json(folder / TrainingRecord.FILE, record.to_json())

    def log_losses(self, done: int, losses: dict[str, Tensor]) -> None:
        """Log means over all processes, learning rate and speed, where due after `done` steps."""
        warm = min(WARM_UP, self.total)
        if done % self.recipe.log_every == 0:
            self.check_finite()
            means = self.accelerator.reduce(losses, "mean")
            values = {name: value.item() for name, value in means.items()}
            if self.accelerator.scaler is not None:
                values["skipped_steps"] = self.skipped
            speed = self.meter.read(self.total - done)
            self.log(done, values | {"learning_rate": self.optimizer.param_groups[0]["lr"]} | speed)
        if done == self.first + warm and done < self.total and self.accelerator.is_main_process:
            spent = time.time() - self.stepping
            left = spent / warm * (self.total - done)
            self.bar.write(f"{warm} steps took {spent:.0f} s: about {duration(left)} to go")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append a line to log.jsonl, show it beside the progress bar, and tell the tracker."""
        if not self.accelerator.is_main_process:
            return
        numbers = {key: round(float(value), 6) for key, value in values.items()}
        self.folder.write({"step": step, "seconds": round(self.seconds, 1)} | numbers)
        self.bar.set_postfix({key: f"{value:.4g}" for key, value in values.items()})
        if self.tracker:
            self.accelerator.log(numbers, step=step)
