"""Pictures and tables of the study, from docs/study/runs.json alone.

    python tests/benchmarks/study_figures.py

Draws docs/study/curves.png and ends.png, writes docs/study/runs.md, and prints the table of
docs/study.md.
"""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from study import MAIN, METHODS, STUDY, read_rows


def steps_to(curve: list[list[float]], value: float) -> float | None:
    """Step at which a curve first reaches a value, on straight lines between its points."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= value:
            return before + (after - before) * min(1.0, (high - value) / max(high - low, 1e-9))
    return None


def summaries(rows: list[dict]) -> dict[str, dict]:
    """Of every method at its best rate: ends and steps to the flat model's end, seed by seed."""
    found, flat = {}, None
    for method in METHODS:
        own = [r for r in rows if r["method"] == method]
        if not own:
            continue
        rate = min((r for r in own if r["seed"] == 0), key=lambda r: r["nats"]["ids"])
        own = [r for r in own if r["learning_rate"] == rate["learning_rate"]]
        if method == "flat":
            flat = float(np.mean([r["curve"][-1][1] for r in own]))
        tried = {r["learning_rate"] for r in rows if r["method"] == method}
        steps = [steps_to(r["curve"], flat) for r in own]
        found[method] = {
            "rate": rate["learning_rate"], "rates": len(tried), "rows": own, "steps": steps,
        }  # fmt: skip
    return found


def main() -> None:
    found = summaries(read_rows())
    flat = found["flat"]
    end = np.mean([r["curve"][-1][1] for r in flat["rows"]])

    # Curves of the main methods: mean of the seeds, and their range.
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for method in MAIN:
        if method not in found:
            continue
        curves = np.array([r["curve"] for r in found[method]["rows"]])  # (seeds, points, 2)
        steps, values = curves[0, :, 0], curves[..., 1]
        (line,) = axes.plot(steps, values.mean(0), label=f"{method}, seeds: {len(curves)}")
        axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2)
    axes.axhline(end, color="gray", linestyle=":", label="end of flat")
    axes.set(xlabel="steps of 32 images", ylabel="validation, nats per id (lower is better)")
    axes.set_ylim(top=float(np.percentile([c[1] for c in flat["rows"][0]["curve"]], 90)))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(STUDY / "curves.png", dpi=120)

    # What every method ends with, against the flat model, on ids and on clusters.
    keys = ["ids", "N/2", "N/8", "N/16"]
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(found) + 1.6), layout="constrained")
    names = [m for m in found if m != "flat"]
    places = np.arange(len(names))
    for i, key in enumerate(keys):
        base = mean_nats(flat["rows"], key)
        gains = [mean_nats(found[m]["rows"], key) - base for m in names]
        axes.barh(places + 0.2 * (i - 1.5), gains, height=0.2, label=key)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="nats per position against flat, at the same steps (lower is better)")
    axes.legend(title="likelihood of")
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(STUDY / "ends.png", dpi=120)

    (STUDY / "runs.md").write_text("\n".join(every_run(read_rows())) + "\n")
    print("\n".join(table(found)))


def every_run(rows: list[dict]) -> list[str]:
    """Lines of docs/study/runs.md: what each run gave, where, in which time, by which command."""
    lines = [
        "# Every run of the study",
        "",
        "Made of [runs.json](runs.json) by `python tests/benchmarks/study_figures.py`. Seconds are",
        "processor time of one thread, more where other work shared the machine's caches.",
        "",
        "| method | rate | seed | nats per id | s | machine | command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        place = row["machine"]
        where = f"{place['gpu'] or place['cpu']}, torch {place['torch']}"
        cells = (row["learning_rate"], row["seed"], f"{row['nats']['ids']:.3f}", row["seconds"])
        words = " ".join(row["command"].split())
        lines.append(f"| {row['method']} | {' | '.join(map(str, cells))} | {where} | `{words}` |")
    return lines


def mean_nats(rows: list[dict], key: str) -> float:
    """Mean of runs; NaN where the method has no such likelihood."""
    return float(np.mean([r["nats"].get(key, np.nan) for r in rows]))


def table(found: dict[str, dict]) -> list[str]:
    """Lines of the table of docs/study.md."""
    keys = ["ids", "N/2", "N/8", "N/16"]
    flat = found["flat"]["rows"][0]
    heads = ["method", "rate (tried)", "seeds", "nats per id", *keys[1:]]
    heads += ["steps to flat's end", "FLOPs to it"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for method, one in found.items():
        cells = [method, f"{one['rate']} ({one['rates']})", str(len(one["rows"]))]
        for key in keys:
            value, ends = (
                mean_nats(one["rows"], key),
                [r["nats"][key] for r in one["rows"] if key in r["nats"]],
            )
            spread = f" ± {np.std(ends, ddof=1):.3f}" if len(ends) > 1 and key == "ids" else ""
            cells.append("" if np.isnan(value) else f"{value:.3f}{spread}")
        reached = [s for s in one["steps"] if s is not None]
        texts = ["100%", "100%"] if method == "flat" else ["not reached", ""]
        if method != "flat" and reached and len(reached) == len(one["steps"]):
            share = np.mean(reached) / flat["steps"]
            spread = f"; {min(reached):.0f} to {max(reached):.0f}" if len(reached) > 1 else ""
            texts = [f"{np.mean(reached):.0f} ({share:.0%}{spread})"]
            texts += [f"{share * one['rows'][0]['flops'] / flat['flops']:.0%}"]
        lines.append("| " + " | ".join([*cells, *texts]).rstrip() + " |")
    return lines


if __name__ == "__main__":
    main()
