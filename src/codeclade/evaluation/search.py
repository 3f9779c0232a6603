"""Search for the sampling settings whose images are nearest to photographs.

Every point of a grid is sampled with few images and judged by the Fréchet distance of a feature
network; the same seeds serve all points, and the same number of images, so that its bias is the
same. The nearest point of many is partly luck: confirm it on the full count with other seeds.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm.auto import tqdm

from ..components.weight_files import read_json
from ..data.atomic import new_file, write_json
from ..data.pixels import to_pixels
from ..metrics.networks import FeatureNetwork
from .feature_cache import PhotographSets
from .feature_sets import FeatureSet, frechet, standard_error
from .reference import Photographs
from .rejection import Judge
from .resize import sized_batches
from .sampling import Pipeline, SampleParts, Sampling, check_settings, image_side

NUMBERS = {"guidance_scale": float, "temperature": float, "top_k": int, "top_p": float}
SCHEDULE = "guidance_schedule"
MOST = 1000  # points of a grid


@dataclass
class Trial:
    """One point of the grid and its distance to the photographs."""

    settings: dict[str, Any]
    distance: float
    # Of the distance, see `feature_sets.Distance`; None where there are too few images.
    deviations: Tensor | None = field(default=None, compare=False)

    @property
    def error(self) -> float | None:
        """The standard error of the distance."""
        return standard_error(self.deviations)


def number_values(name: str, text: str) -> list[float]:
    """Values of "a,b,c" or of "first:last:step", both ends included.

    Raises:
        ValueError: anything else, or a range that does not end.
    """
    kind = NUMBERS[name]
    try:
        if ":" not in text:
            return [kind(word) for word in text.split(",")]
        first, last, step = (float(word) for word in text.split(":"))
        if step <= 0 or last < first:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--search {name}={text} must be numbers with commas, or first:last:step."
        ) from None
    # Counted and rounded: a sum of steps of 0.1 would miss its last value.
    count = int((last - first) / step + 1e-9) + 1
    return [kind(round(first + step * i, 9)) for i in range(min(count, MOST + 1))]


def grid(values: dict[str, list]) -> list[dict[str, Any]]:
    """All combinations.

    Raises:
        ValueError: more than `MOST`.
    """
    points = 1
    for found in values.values():
        points *= len(found)
    if points > MOST:
        raise ValueError(f"--search has {points} points; at most {MOST} are searched.")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def photograph_set(
    network: FeatureNetwork,
    photographs: Photographs,
    size: int,
    batch_size: int,
    classes: list[int] | None = None,
) -> FeatureSet:
    """All photographs at `size` pixels, as a network sees them; `classes` as of `FeatureSet`."""
    sets = PhotographSets(network, photographs, size, classes)
    for images, labels in sized_batches(photographs.images, size, batch_size):
        sets.add(images, labels)
    one, other = sets.finish(batch_size)
    return one.joined(other)


def search(
    pipe: Pipeline,
    base: Sampling,
    points: list[dict[str, Any]],
    folder: Path,
    batch_size: int,
    state: PartialState,
    photographs: Photographs | None = None,
    network: FeatureNetwork | None = None,
    judge: Judge | None = None,
) -> list[Trial]:
    """Sample every point on all processes; judge on the first one.

    Args:
        base: count, seed and whatever the points do not set.
        points: settings of every trial.
        folder: where samples are kept while they are measured.
        photographs, network: needed on the first process alone.
        judge: where `base` has several draws.

    Returns:
        Trials in order of the points, the same on all processes.

    Raises:
        ValueError: a setting that the pipeline does not take, before anything is sampled.
    """
    # All points are checked first: a wrong one must not end an hour of sampling.
    plans = [replace(base, **settings) for settings in points]
    for plan in plans:
        check_settings(pipe, plan)
    size = base.size or image_side(pipe)
    reference = None
    if state.is_main_process:
        reference = photograph_set(network, photographs, size, batch_size)

    # Every process samples its share; only the first one keeps features and judges.
    trials = []
    bar = tqdm(plans, "search", unit="point") if state.is_main_process else plans
    for settings, plan in zip(points, bar, strict=True):
        parts = SampleParts(folder, pipe, plan, judge)
        parts.make(batch_size, state.process_index, state.num_processes)
        state.wait_for_everyone()
        if reference is not None:
            samples = FeatureSet(reference.network)
            for images, labels in parts.batches():
                samples.add(to_pixels(images), labels)
            gap = frechet(samples, reference)
            trials.append(Trial(settings, gap.value, gap.deviations))
            parts.delete()
    # All processes go on with the same winner.
    sent = [trials]
    if state.num_processes > 1:
        broadcast_object_list(sent)
    return sent[0]


def nearest(trials: list[Trial]) -> tuple[Trial, list[Trial]]:
    """The nearest trial, and others that these images cannot tell from it.

    Two trials have the photographs and the seeds in common, so the error of their difference is
    taken in pairs, from what both are without the same images: within two such errors they are
    alike.
    """
    best = min(trials, key=lambda trial: trial.distance)
    alike = []
    for trial in trials:
        if trial is best or trial.deviations is None or best.deviations is None:
            continue
        error = standard_error(trial.deviations - best.deviations) or 0.0
        if trial.distance - best.distance < 2 * error:
            alike.append(trial)
    return best, alike


def save_trials(trials: list[Trial], distance: str, path: Path) -> None:
    """Write `path` (JSON) and a picture of the same name beside it.

    Args:
        distance: name of the distance.
    """
    rows = [
        {**trial.settings, distance: trial.distance, "standard_error": trial.error}
        for trial in trials
    ]
    write_json(path, rows)
    figure = plot(trials, distance)
    with new_file(path.with_suffix(".png")) as partial:
        figure.savefig(partial, dpi=120)


def plot(trials: list[Trial], distance: str):
    """Distance over the first setting of the grid, a line for every choice of the others."""
    from matplotlib.figure import Figure

    names = list(trials[0].settings)
    lines: dict[str, list[Trial]] = {}
    for trial in trials:
        rest = ", ".join(f"{name} {trial.settings[name]}" for name in names[1:])
        lines.setdefault(rest, []).append(trial)
    # The first setting is the axis, every choice of the others a line.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, part in lines.items():
        values = [trial.settings[names[0]] for trial in part]
        values = values if names[0] in NUMBERS else [str(value) for value in values]
        errors = [trial.error or 0.0 for trial in part]
        heights = [trial.distance for trial in part]
        (line,) = axes.plot(values, heights, "o-", label=label or None)
        axes.errorbar(values, heights, errors, fmt="none", capsize=3, color=line.get_color())

    # The winner, and what the axes are.
    best, _ = nearest(trials)
    place = best.settings[names[0]]
    place = place if names[0] in NUMBERS else str(place)
    axes.plot([place], [best.distance], "o", ms=14, mfc="none", mec="black", label="nearest")
    axes.set_xlabel(names[0].replace("_", " "))
    axes.set_ylabel(f"{distance} and standard error (lower is nearer)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def write_defaults(folder: Path, settings: dict[str, Any]) -> None:
    """Make settings the defaults of a saved pipeline."""
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", index | settings, indent=2)
