"""The folder of a training run: lock, checkpoints, best weights, log.

A checkpoint is written under another name and renamed when it is complete, so that a process
killed at any moment leaves the ones before.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.atomic import new_file, write_json
from .recipe import RunRecipe

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None


class RunFolder:
    """Files of one run.

    Args:
        out: the folder.
        keep: newest checkpoints that stay.
    """

    def __init__(self, out: Path, keep: int):
        self.out, self.keep = out, keep
        self.checkpoints, self.best = out / "checkpoints", out / "best"
        self.partial, self.log_file = self.checkpoints / "partial", out / "log.jsonl"
        self._lock: IO | None = None

    def lock(self) -> None:
        """Take the folder for this process; it ends with the process, however that ends.

        Raises:
            ValueError: another run has it.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        lock = (self.out / "run.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ValueError(
                f"{self.out} is in use by another run; wait, or use another --out."
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        return max(self.checkpoints.glob("step-*"), default=None)

    def check_recipe(self, recipe: RunRecipe) -> None:
        """Raise a ValueError if the folder holds a run that `recipe` cannot go on with."""
        newest = self.newest()
        if newest is None:
            return
        state = json.loads((newest / "run.json").read_text())
        before, now = state["recipe"], asdict(recipe)
        fixed = [key for key in now if key not in recipe.HARMLESS]
        changed = [key for key in fixed if key in before and before[key] != now[key]]
        if changed:
            raise ValueError(
                f"{self.out} holds a run with another recipe ({', '.join(changed)} differ); "
                "use its recipe to go on, or another --out. A run that goes on may change "
                f"{', '.join(recipe.HARMLESS)} alone."
            )

    def start_partial(self) -> None:
        """Make way for a checkpoint."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def finish_partial(self, step: int, seconds: float, recipe: RunRecipe, skipped: int) -> None:
        """The partial checkpoint becomes that of a step; old ones go."""
        state = {"step": step, "seconds": seconds, "recipe": asdict(recipe)}
        state |= {"skipped": skipped} if skipped else {}
        write_json(self.partial / "run.json", state)
        target = self.checkpoints / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        self.partial.rename(target)
        # An old one is renamed first: killed halfway, it must not look like a whole one.
        for old in sorted(self.checkpoints.glob("step-*"))[: -self.keep]:
            shutil.rmtree(self.partial, ignore_errors=True)
            old.rename(self.partial)
        shutil.rmtree(self.partial, ignore_errors=True)

    def best_loss(self) -> float:
        """Lowest validation loss so far, of `best_state`."""
        record = self.best / "best.json"
        return (
            json.loads(record.read_text())["validation_loss"] if record.is_file() else float("inf")
        )

    def save_best(self, step: int, loss: float, weights: dict[str, Tensor]) -> None:
        """Keep averaged weights as the best ones."""
        self.best.mkdir(parents=True, exist_ok=True)
        with new_file(self.best / "model.safetensors") as partial:
            save_file({name: value.contiguous() for name, value in weights.items()}, partial)
        write_json(self.best / "best.json", {"step": step, "validation_loss": loss})

    def best_state(self) -> dict[str, Tensor]:
        """The best averaged weights."""
        return load_file(self.best / "model.safetensors")

    def forget_after(self, step: int) -> None:
        """Drop what a run wrote after the checkpoint that it goes on from."""
        record = self.best / "best.json"
        if record.is_file() and json.loads(record.read_text())["step"] > step:
            shutil.rmtree(self.best)
        if self.log_file.is_file():
            lines = self.log_file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step(line) <= step]
            if len(kept) < len(lines):
                with new_file(self.log_file) as partial:
                    partial.write_text("".join(kept))

    def write(self, line: dict) -> None:
        """Append a line to log.jsonl."""
        with self.log_file.open("a") as log:
            log.write(json.dumps(line) + "\n")

    def logged(self) -> dict[str, float]:
        """The last value of every number in log.jsonl."""
        found: dict[str, float] = {}
        for line in self.log_file.read_text().splitlines():
            found |= json.loads(line)
        return found


def _step(line: str) -> int:
    return json.loads(line)["step"]
