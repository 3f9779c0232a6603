"""Two measurements side by side, with intervals, where they were measured in the same way.

Where both are of the same images, the interval is that of the paired difference: by bootstrap over
the values of single images, or, of what is of a whole set, from its values without some of the
images. Else it follows from the standard errors as if both were independent.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..components.weight_files import read_json
from ..data.records import EvaluationRecord
from .protocol import differences

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95
NORMAL = 1.959964  # its two-sided quantile of the normal distribution
# Numbers on the very same images, in the same order: their differences may be paired.
PAIRED = ("data_fingerprint", "prompts_fingerprint", "images")
DEVIATIONS = "deviations of "  # before a metric's name in the file of single images
SHARES = ("Precision", "Recall", "Coverage")
CLIP = "CLIP score"  # its values are of prompts, whose images are alike


@dataclass
class Row:
    """One metric of both measurements."""

    metric: str
    unit: str
    values: tuple[float, float]
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None]
    difference: tuple[float, float] | None  # interval of b - a; None where none is known
    how: str  # where the intervals come from


@dataclass
class Measured:
    """A file of records with the values of single images and the deviations of sets (see
    `feature_sets.Distance`), if they were kept."""

    name: str
    records: dict[str, EvaluationRecord]
    per_image: dict[str, np.ndarray]
    deviations: dict[str, np.ndarray]


def read_measured(path: str | Path) -> Measured:
    """What `codeclade evaluate` wrote.

    Raises:
        ValueError: no such file, or one that holds no records.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; codeclade evaluate writes evaluation.json.")
    records = [EvaluationRecord.from_json(row, path) for row in read_json(path, list)]
    beside, per_image = path.with_name(f"{path.stem}-images.npz"), {}
    if beside.is_file():
        with np.load(beside, allow_pickle=False) as file:
            per_image = {name: file[name].astype(np.float64) for name in file.files}
        # With infinite values (PSNR of exact images) no mean is known: standard errors serve.
        per_image = {name: x for name, x in per_image.items() if np.isfinite(x).all()}
    known = {record.metric: record for record in records}
    deviations = {name: per_image.pop(DEVIATIONS + name, None) for name in known}
    deviations = {name: x for name, x in deviations.items() if x is not None}
    return Measured(str(path), known, per_image, deviations)


def compare_measured(a: Measured, b: Measured, allowed: tuple[str, ...] = ()) -> list[Row]:
    """Rows of all metrics that both files have.

    Args:
        allowed: fields of the protocol that may differ, since they are what is compared.

    Raises:
        ValueError: no common metric, records without protocol, or protocols that differ.
    """
    common = [name for name in a.records if name in b.records]
    if not common:
        raise ValueError(f"{a.name} and {b.name} have no metric in common.")
    for name in common:
        _check_protocols(a, b, name, allowed)
    return [_row(a, b, name) for name in common]


def left_out(a: Measured, b: Measured) -> list[str]:
    """What is in one file alone and so in no row, a line a file."""
    lines = []
    for one, other in ((a, b), (b, a)):
        names = [name for name in one.records if name not in other.records]
        if names:
            lines.append(f"in {one.name} alone: {', '.join(names)}")
    return lines


def _check_protocols(a: Measured, b: Measured, name: str, allowed: tuple[str, ...]) -> None:
    pair = [x.records[name].conditions for x in (a, b)]
    for file, conditions in zip((a, b), pair, strict=True):
        if conditions is None:
            raise ValueError(
                f"{file.name} was written before protocols were kept; evaluate again to compare."
            )
    # A first look has fewer images, which alone moves most distances.
    quick = [bool(conditions.get("quick")) for conditions in pair]
    if quick[0] != quick[1]:
        few, whole = (a, b) if quick[0] else (b, a)
        raise ValueError(
            f"{few.name} is a first look (--quick) and {whole.name} a whole evaluation; evaluate "
            "both in one way to compare."
        )
    # Everything else must be equal, or the user says that it is what is compared.
    found = [field for field in differences(*pair) if field not in allowed]
    if found:
        told = "; ".join(f"{x} is {pair[0].get(x)} and {pair[1].get(x)}" for x in found)
        raise ValueError(
            f"{name} was measured in different ways: {told} (in {a.name} and {b.name}); give "
            f"--allow {' '.join(found)} if that is what you compare."
        )


def _row(a: Measured, b: Measured, name: str) -> Row:
    """One metric: an interval of each value, and one of their difference."""
    first, second = a.records[name], b.records[name]
    values = first.value, second.value
    same = all(first.conditions.get(x) == second.conditions.get(x) for x in PAIRED)
    images = [x.per_image.get(name) for x in (a, b)]
    errors = first.standard_error, second.standard_error
    # With values of single images, their spread says how sure a difference is.
    if all(x is not None and len(x) > 1 for x in images):
        kinds = zip((first, second), images, strict=True)
        intervals = tuple(wilson(x) if record.unit == " %" else bootstrap(x) for record, x in kinds)
        how = f"bootstrap over {'prompts' if name == CLIP else 'images'}"
        if same and len(images[0]) == len(images[1]):
            gap, how = bootstrap(images[1] - images[0]), f"{how}, paired"
        else:
            means = [_bootstrap_means(x, seed) for seed, x in enumerate(images)]
            gap = _interval(means[1] - means[0])
        return Row(name, first.unit or "", values, intervals, gap, how)
    # Without them, standard errors, if both files have some. Of the same photographs a difference
    # has its own: what both owe to them cancels.
    low, high = _limits(first)
    intervals = tuple(
        None
        if error is None
        else (max(value - NORMAL * error, low), min(value + NORMAL * error, high))
        for value, error in zip(values, errors, strict=True)
    )
    deviations = [x.deviations.get(name) for x in (a, b)]
    gap, how = None, "no interval is known"
    if None not in errors:
        error, how = (errors[0] ** 2 + errors[1] ** 2) ** 0.5, "standard errors, as if independent"
        counts = {len(x) for x in deviations if x is not None}
        if same and len(counts) == 1 and not any(x is None for x in deviations):
            error = np.square(deviations[1] - deviations[0]).mean() ** 0.5
            how = "without parts of the images, paired"
        middle, half = values[1] - values[0], NORMAL * float(error)
        gap = middle - half, middle + half
    return Row(name, first.unit or "", values, intervals, gap, how)


def _limits(record: EvaluationRecord) -> tuple[float, float]:
    """What the values of a metric cannot pass."""
    estimator = (record.conditions or {}).get("estimator") or ""
    if record.unit == " %":
        return 0.0, 100.0
    if record.metric.startswith(SHARES):
        return 0.0, 1.0
    if record.metric.startswith("Inception Score"):
        return 1.0, np.inf
    # KID is unbiased, so of equal sets it is as often below 0 as above.
    positive = "Fréchet" in estimator or record.metric.startswith("Density")
    return 0.0 if positive else -np.inf, np.inf


def wilson(values: np.ndarray) -> tuple[float, float]:
    """Interval at `LEVEL` of the share of values (n,) 0 or 100, in percent (Wilson 1927); of few
    images, or a share near 0 or 100 %, resampling would say too much."""
    count, share = len(values), values.mean() / 100
    shrunk = 1 + NORMAL**2 / count
    middle = (share + NORMAL**2 / (2 * count)) / shrunk
    half = NORMAL * (share * (1 - share) / count + (NORMAL / (2 * count)) ** 2) ** 0.5 / shrunk
    return float(100 * max(middle - half, 0)), float(100 * min(middle + half, 1))


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Interval at `LEVEL` of the mean of values (n,), by the percentiles of resampled means."""
    return _interval(_bootstrap_means(values, seed))


def _bootstrap_means(values: np.ndarray, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)  # one draw at a time: 50,000 images need no more memory
    count = len(values)
    return np.array([values[random.integers(count, size=count)].mean() for _ in range(DRAWS)])


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def table(rows: list[Row], names: tuple[str, str]) -> str:
    """A Markdown table of rows."""
    head = f"| metric | {names[0]} | {names[1]} | difference | interval of {LEVEL:.0%} |"
    lines = [head, "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [
            f"{value:.5g}{row.unit}" + (f" [{span[0]:.5g}, {span[1]:.5g}]" if span else "")
            for value, span in zip(row.values, row.intervals, strict=True)
        ]
        gap = f"{row.values[1] - row.values[0]:+.4g}"
        if row.difference:
            gap += f" [{row.difference[0]:+.4g}, {row.difference[1]:+.4g}]"
        lines.append(f"| {row.metric} | {' | '.join(cells)} | {gap} | {row.how} |")
    return "\n".join(lines)
