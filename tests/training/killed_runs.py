"""What test_long_runs.py starts: a run that is killed again and again, and one in one go.

`python killed_runs.py FOLDER`. Children are forked before torch has computed anything here.
It needs tests/ in PYTHONPATH.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from codeclade.training.optimization import build_optimizer
from codeclade.training.recipe import RunRecipe
from codeclade.training.run import Run
from points import Points

STEPS, KILLS = 1500, 12


def train(out: Path) -> None:
    """A network with dropout, saved after every other step; its weights go to out/end."""
    torch.set_num_threads(1)
    recipe = RunRecipe(
        steps=STEPS, batch_size=16, learning_rate=0.01, mixed_precision="no", log_every=5,
        save_every=2, evaluate_every=10, tracker="none",
    )  # fmt: skip
    run = Run(recipe, out)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    run.start(model, build_optimizer(model, recipe))

    def losses(points, sums):
        return {"loss": (run.model(points) - sums).square().mean()}

    for done, batch in run.steps(Points()):
        run.log_losses(done, run.optimize(batch, losses))
        if run.evaluates(done):
            with run.averaged_weights():
                weight = run.plain_model[0].weight
                run.validated(done, {"validation_loss": weight.abs().sum().item()})
    end = run.plain_model.state_dict()
    shadows = {f"ema_{i}": tensor for i, tensor in enumerate(run.ema.shadow_params)}
    save_file(end | shadows | {"draw": torch.rand(4)}, out / "end.safetensors")


def forked(out: Path) -> int:
    """Process id of a child that trains."""
    child = os.fork()
    if child == 0:
        try:
            train(out)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def being_written(partial: Path) -> bool:
    """Whether a checkpoint has some of its files, at this moment."""
    try:
        return bool(os.listdir(partial))
    except FileNotFoundError:
        return False


def kill(child: int, partial: Path, in_save: bool, wait: float) -> tuple[bool, bool]:
    """Kill a child after some seconds, if wanted once a checkpoint is being written.

    Returns:
        Whether it was killed before its end, and whether in the middle of a checkpoint.
    """
    time.sleep(wait)
    deadline = time.monotonic() + 60
    while in_save and not being_written(partial) and time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False, False
    try:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    except ProcessLookupError:
        return False, False
    return os.WIFSIGNALED(status), being_written(partial)


def main(folder: Path) -> None:
    draw = random.Random(0)
    out, partial = folder / "killed", folder / "killed" / "checkpoints" / "partial"
    kills = saving = 0
    for index in range(40):
        if kills == KILLS or (out / "end.safetensors").exists():
            break
        wait = draw.uniform(0.05, 0.4)
        killed, halfway = kill(forked(out), partial, index % 2 == 0, wait)
        kills, saving = kills + killed, saving + (killed and halfway)
    for place in (out, folder / "whole"):
        _, status = os.waitpid(forked(place), 0)
        assert status == 0, f"training in {place} failed"
    ends = [load_file(place / "end.safetensors") for place in (out, folder / "whole")]
    equal = all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    logs = [
        [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]
        for lines in (
            (place / "log.jsonl").read_text().splitlines() for place in (out, folder / "whole")
        )
    ]
    found = {"kills": kills, "while_saving": saving, "equal": equal and logs[0] == logs[1]}
    (folder / "found.json").write_text(json.dumps(found))
    print(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
