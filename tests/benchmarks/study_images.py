"""Images of the study's models: distances to photographs beside the likelihoods of study.py.

    python tests/benchmarks/study_images.py measure --data DIR --out runs/study flat masc-half
    python tests/benchmarks/study_images.py table

Every method's run of seed 0 at its best rate gives images at four guidance scales; the scale of the
lowest KID is measured again with more images and another seed. `measure` adds what is not there yet
to docs/study/images.json, of all methods or of those named, and draws docs/study/samples.png: the
same classes and seeds for all.
"""

import argparse
import json
from pathlib import Path

import torch
from study import METHODS, ROOT, STUDY, read_rows
from study_figures import summaries

RESULTS = STUDY / "images.json"
SCALES = (1.0, 1.75, 2.5, 4.0)
SEARCHED, MEASURED = 3, 10  # images a class, of the search and of the measurement
SHEET_CLASSES = (0, 3, 9, 15, 22, 31, 40, 54, 63, 77, 85, 98)


def measure(data: str, out: Path, methods: list[str]) -> None:
    """Numbers of the methods whose runs are there."""
    from codeclade.data.atomic import write_json
    from codeclade.evaluation.sampling import class_names_of

    photographs = None
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    found = summaries(read_rows())
    for method, one in ((name, found[name]) for name in methods or METHODS if name in found):
        rate = one["rate"]
        if any(r["method"] == method and r["learning_rate"] == rate for r in rows):
            continue
        if not run_folder(method, rate, out).exists():
            print(f"{method} at {rate}: its run is not in {out}", flush=True)
            continue
        pipe = load(method, rate, out)
        photographs = photographs or judged(data, class_names_of(pipe))[0]
        row = {"method": method, "learning_rate": rate, "seed": 0, **pictures(pipe, photographs)}
        rows = [r for r in rows if r["method"] != method] + [row]
        rows.sort(key=lambda r: list(METHODS).index(r["method"]))
        write_json(RESULTS, rows)
        print(json.dumps(row), flush=True)
    sheet(rows, out)


def judged(data: str, names: list[str]):
    """Features of the photographs that count, the same for all methods; and the photographs."""
    from codeclade.data.pixels import to_pixels
    from codeclade.evaluation.feature_sets import FeatureSet, open_network
    from codeclade.evaluation.reference import imagenet_indices, open_photographs

    held_out = open_photographs(data, 64, own=names).images
    chosen = [i for c in range(len(names)) for i in of_class(held_out, c)[:MEASURED]]
    images = held_out.selected(chosen)
    photographs = FeatureSet(open_network("lite2"), imagenet_indices(names))
    for some in torch.arange(len(images)).split(50):
        pixels = torch.cat([images.views(i, [None]) for i in some.tolist()])
        photographs.add(to_pixels(pixels), images.labels[some])
    return photographs, images


def pictures(pipe, photographs) -> dict:
    """Numbers of a pipeline's pictures at the best scale, chosen on other seeds than those."""
    searched = {s: numbers(pipe, photographs, s, SEARCHED, seed=1) for s in SCALES}
    scale = min(searched, key=lambda s: searched[s]["KID"])
    row = {"guidance_scale": scale, **numbers(pipe, photographs, scale, MEASURED, seed=0)}
    row["photographs"] = {"images": photographs.count, "accuracy": photographs.accuracy}
    row["search"] = {f"{s:g}": found["KID"] for s, found in searched.items()}
    return row


def of_class(images, label: int) -> list[int]:
    """Numbers of the images of a class."""
    return [i for i, one in enumerate(images.labels) if int(one) == label]


def run_folder(method: str, rate: str, out: Path) -> Path:
    return out / "runs" / f"{method}-{rate}-0"


def load(method: str, rate: str, out: Path):
    """The pipeline of a method's run, with its refiner where it has one."""
    from codeclade.components.pipeline import CodecladePipeline
    from codeclade.components.refiner import Refiner

    first = METHODS[method].after or method
    folder, parts = run_folder(first, rate, out) / "pipeline", {}
    if first != method:
        parts["refiner"] = Refiner.from_pretrained(run_folder(method, rate, out) / "refiner")
    pipe = CodecladePipeline.from_pretrained(folder, dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def numbers(pipe, photographs, scale: float, count: int, seed: int) -> dict[str, float]:
    """Distances and class accuracy of `count` images a class."""
    from codeclade.data.pixels import to_pixels
    from codeclade.evaluation.feature_sets import FeatureSet, set_distances, share_error
    from codeclade.evaluation.sampling import Sampling, sample_images

    sampling = Sampling(count, seed=seed, guidance_scale=scale, temperature=1.0)
    labels, found = sampling.labels(pipe), FeatureSet(photographs.network, photographs.classes)
    for some in torch.arange(len(labels)).split(50):
        images = sample_images(pipe, sampling, some.tolist(), labels)
        found.add(to_pixels(images), labels[some])
    values = {one.name: one for one in set_distances(found, photographs)}
    kid = values[f"KID-{photographs.network.name}"]
    return {
        "images": found.count,
        "FD": round(values[photographs.network.distance_name].value, 3),
        "KID": round(kid.value, 6),
        "KID_error": round(kid.standard_error, 6),
        "accuracy": round(found.accuracy, 4),
        "accuracy_error": round(share_error(found.accuracy, found.count), 4),
    }


def sheet(rows: list[dict], out: Path) -> None:
    """docs/study/samples.png: a row a method, a column a class, one seed each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if run_folder(r["method"], r["learning_rate"], out).exists()]
    height = 0.72 * len(rows) + 0.3
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(11, height), squeeze=False, layout="constrained"
    )
    for axis, row in zip(axes[:, 0], rows, strict=True):
        pipe = load(row["method"], row["learning_rate"], out)
        draws = [torch.Generator().manual_seed(100 + i) for i in range(len(SHEET_CLASSES))]
        settings = {"guidance_scale": row["guidance_scale"], "temperature": 1.0}
        images = pipe(list(SHEET_CLASSES), generator=draws, output_type="np", **settings).images
        axis.imshow(torch.from_numpy(images).permute(1, 0, 2, 3).flatten(1, 2))  # (S, n S, 3)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(row["method"], rotation=0, ha="right", va="center")
    figure.savefig(STUDY / "samples.png", dpi=80)


def table() -> list[str]:
    """Lines of the table of docs/study.md."""
    likelihoods = summaries(read_rows())
    heads = ["method", "nats per id", "guidance", "FD-Lite2", "KID-Lite2", "class accuracy"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for row in json.loads(RESULTS.read_text()):
        first = likelihoods[row["method"]]["rows"][0]  # seed 0, whose images these are
        cells = [row["method"], f"{first['nats']['ids']:.3f}", f"{row['guidance_scale']:g}"]
        cells += [f"{row['FD']:.1f}", f"{row['KID']:.4f} ± {row['KID_error']:.4f}"]
        cells += [f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_error']:.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("measure")
    one.add_argument("methods", nargs="*", help="default: all of the study")
    one.add_argument("--out", type=Path, default=ROOT / "runs" / "study")
    one.add_argument("--data", default="zh-plus/tiny-imagenet", help="folder or Hub id")
    verbs.add_parser("table")
    arguments = parser.parse_args()
    if arguments.verb == "measure":
        measure(arguments.data, arguments.out, arguments.methods)
    else:
        print("\n".join(table()))


if __name__ == "__main__":
    main()
