"""The study of docs/study.md: what each method gives a small generator, on one axis.

    python tests/benchmarks/study.py prepare --data DIR --out runs/study
    python tests/benchmarks/study.py run prior-both --learning-rate 2e-3 --seed 0 --out runs/study
    python tests/benchmarks/study.py all --out runs/study

`start` makes the tokenizer that the training of `bundled("ids")` began with; `prepare` makes codes
of its tokenizer and cluster maps; `run` trains one method and adds its row to
docs/study/runs.json; `all` makes the runs of the protocol that are not there yet; study_figures.py
makes pictures and tables of them. Everything that was interrupted goes
on when it is called again.
"""

import argparse
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "docs" / "study"
RECIPE, RUNS = STUDY / "recipe.yaml", STUDY / "runs.json"
CURVE_IMAGES = 10  # validation images a class that are measured
RATES = ("1e-3", "2e-3", "4e-3")
SEEDS = 3
MAIN = (
    "flat", "prior-context", "prior-both", "prior-tree", "masc-half", "prior-codebook",
    "prior-random-tree",
)  # fmt: skip


class Method(NamedTuple):
    """A generator, or the second network that follows one."""

    map: str | None = None  # of MAPS
    settings: tuple[str, ...] = ()  # of the generator
    after: str | None = None  # method whose clusters a refiner makes into ids
    states: bool = False  # that generator's hidden states come in too


METHODS = {
    "flat": Method(),
    "random-half": Method("random-half"),
    "kmeans-half": Method("kmeans-half"),
    "masc-half": Method("masc-half"),
    "masc-quarter": Method("masc-quarter"),
    "masc-eighth": Method("masc-eighth"),
    "masc-half-unit-rows": Method("masc-half-unit-rows"),
    "single-half": Method("single-half"),
    "complete-half": Method("complete-half"),
    "ward-half": Method("ward-half"),
    "usage-half": Method("usage-half"),
    "kmeans-eighth": Method("kmeans-eighth"),
    "masc-half-refined": Method(
        "masc-half", ("causal=true", "mask_to_members=true"), "masc-half", states=True
    ),
    "dcpe-half-refined": Method("masc-half", ("causal=true", "num_hidden_layers=1"), "masc-half"),
    "ctf": Method("kmeans-eighth", ("causal=false", "mask_to_members=true"), "kmeans-eighth"),
    "iar": Method("balanced", ("scheme=token", "cluster_loss_weight=1.0")),
    "cluster-token": Method("masc-eighth", ("scheme=cluster_token",)),
    "rear": Method(None, ("context_noise=uniform", "alignment_weight=1.0")),
    "noise-cluster": Method(None, ("context_noise=cluster",)),
    "tree-loss": Method(None, ("tree_loss_weight=1.0",)),
    "grow": Method(None, ("grow={0: 256, 200: 1024, 400: all}",)),
    "prior-random-tree": Method(None, ("embedding_prior=random_tree",)),
    "prior-random-codebook": Method(None, ("embedding_prior=random_codebook",)),
    "prior-tree": Method(None, ("embedding_prior=tree",)),
    "prior-codebook": Method(None, ("embedding_prior=codebook",)),
    "prior-both": Method(None, ("embedding_prior=both",)),
    "prior-random-context": Method(None, ("embedding_prior=random_context",)),
    "prior-context": Method(None, ("embedding_prior=context",)),
    "prior-both-tree-loss": Method(None, ("embedding_prior=both", "tree_loss_weight=1.0")),
    "prior-both-noise": Method(None, ("embedding_prior=both", "context_noise=cluster")),
    "prior-both-masc-half": Method("masc-half", ("embedding_prior=both",)),
    "prior-both-cluster-token": Method(
        "masc-eighth", ("embedding_prior=both", "scheme=cluster_token")
    ),
}
# Members a cluster on average, and settings of `codeclade cluster`, or a linkage of SciPy's.
MAPS = {
    "random-half": (2, ("--method", "random")),
    "kmeans-half": (2, ("--method", "kmeans")),
    "kmeans-eighth": (8, ("--method", "kmeans")),
    "masc-half": (2, ()),
    "masc-quarter": (4, ()),
    "masc-eighth": (8, ()),
    "masc-half-unit-rows": (2, ("--normalize",)),
    "usage-half": (2, ("weights=usage",)),
    "balanced": (128, ("--method", "balanced")),
    "single-half": (2, "single"),
    "complete-half": (2, "complete"),
    "ward-half": (2, "ward"),
}


def command(*words: object) -> None:
    """Run the codeclade command line; its output goes through."""
    subprocess.run([sys.executable, "-m", "codeclade", *map(str, words)], check=True)


def tokenizer() -> Path:
    """Folder of the tokenizer that all methods share, which is bundled."""
    import codeclade

    return Path(codeclade.bundled("ids")) / "vq_model"


def prepare(data: str, out: Path) -> None:
    """Codes of all images, codes of the images to measure, cluster maps."""
    if not (out / "codes" / "validation" / "codes.json").exists():
        words = ("--recipe", RECIPE, "--tokenizer", tokenizer(), "--out", out / "codes")
        command("encode", *words, f"data={data}")
    fewer_codes(out / "codes", out / "curve-codes")
    codebook = load_file(next(tokenizer().glob("*.safetensors")))["quantize.embedding.weight"]
    for name, (members, settings) in MAPS.items():
        clusters, folder = len(codebook) // members, out / name
        if folder.exists():
            continue
        if isinstance(settings, str):
            linkage_map(codebook.float(), settings, clusters).save_pretrained(folder)
            continue
        usage = ("--codes", out / "codes" / "train") if "weights=usage" in settings else ()
        words = ("--clusters", clusters, "--out", folder, *usage)
        command("cluster", tokenizer(), *words, *settings)


def linkage_map(codebook: torch.Tensor, method: str, clusters: int):
    """The map of SciPy's hierarchical clustering of rows (N, d) by another linkage than ours."""
    from scipy.cluster import hierarchy

    from codeclade.clustering.linkage import cut
    from codeclade.components.cluster_map import ClusterMap

    tree = hierarchy.linkage(codebook.double().numpy(), method)
    return ClusterMap.from_labels(cut(tree, clusters), codebook, method=method)


def centers(data: str, photographs: int, codes: int, vectors) -> torch.Tensor:
    """k-means centers (codes, d) of `vectors` (B, d, G, G) of pixels, over training photographs."""
    from sklearn.cluster import MiniBatchKMeans

    from codeclade.data.images import load_images
    from codeclade.data.pixels import to_pixels

    images = load_images(data, "train", 64, [], 1.0)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:photographs]
    with torch.no_grad():
        parts = []
        for part in order.split(50):
            pixels = to_pixels(torch.stack([images[(i, 0)][0] for i in part.tolist()]))
            parts.append(vectors(pixels).permute(0, 2, 3, 1).flatten(0, 2))
    kmeans = MiniBatchKMeans(codes, batch_size=16384, n_init=1, random_state=0, max_iter=30)
    return torch.from_numpy(kmeans.fit(torch.cat(parts).numpy()).cluster_centers_).float()


def first_tokenizer(data: str, folder: Path) -> None:
    """The tokenizer of 0.1 with k-means centers of the latents of 4,000 photographs as codebook."""
    import codeclade
    from codeclade.components.vq_model import VQModel

    # Latents of length one, as the quantizer compares them.
    model = VQModel.from_pretrained(codeclade.bundled("0.1"), subfolder="vq_model")
    rows = centers(
        data, 4000, 4096, lambda pixels: F.normalize(model.encode(pixels).latents, dim=1)
    )

    # Everything else stays.
    state = model.state_dict()
    state["quantize.embedding.weight"] = F.normalize(rows, dim=1)
    larger = VQModel.from_config({**model.config, "codebook_size": len(rows)})
    larger.load_state_dict(state)
    larger.save_pretrained(folder)


def fewer_codes(source: Path, folder: Path) -> None:
    """The same training codes, and CURVE_IMAGES validation images a class."""
    (folder / "validation").mkdir(parents=True, exist_ok=True)
    if not (folder / "train").exists():
        (folder / "train").symlink_to((source / "train").resolve())
    header = json.loads((source / "validation" / "codes.json").read_text())
    shards = [load_file(source / "validation" / name) for name in header["shards"]]
    ids, labels = (torch.cat([shard[key] for shard in shards]) for key in ("ids", "labels"))
    kept = torch.cat([(labels == c).nonzero().flatten()[:CURVE_IMAGES] for c in labels.unique()])
    save_file({"ids": ids[kept], "labels": labels[kept]}, folder / "validation" / "few.safetensors")
    header |= {"images": len(kept), "shards": ["few.safetensors"]}
    (folder / "validation" / "codes.json").write_text(json.dumps(header))


def train(verb: str, method: str, rate: str, seed: int, out: Path) -> tuple[Path, dict]:
    """Train the generator or refiner of a method: its folder, and what its row holds of it."""
    way = METHODS[method]
    folder = out / "runs" / f"{method}-{rate}-{seed}"
    words = [verb, "--recipe", RECIPE, "--tokenizer", tokenizer(), "--codes", out / "curve-codes"]
    words += ["--out", folder, *(["--cluster-map", out / way.map] if way.map else [])]
    if way.states:
        words += ["--generator", out / "runs" / f"{way.after}-{rate}-{seed}" / "pipeline"]
    words += [*way.settings, f"learning_rate={rate}", f"final_learning_rate={rate}", f"seed={seed}"]
    before = os.times()
    command(*words)
    after = os.times()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return folder, {
        "curve": {row["step"]: row["validation_loss"] for row in log if "validation_loss" in row},
        # Of one thread: what the run takes on a core with nothing beside it.
        "seconds": round(sum(after[2:4]) - sum(before[2:4]), 1),
        "command": "codeclade " + " ".join(str(w).replace(str(ROOT) + "/", "") for w in words),
    }


def run(method: str, rate: str, seed: int, out: Path) -> dict:
    """Train one method, measure its likelihoods, write its row."""
    row = {"method": method, "learning_rate": rate, "seed": seed}
    made = (
        refined(method, rate, seed, out)
        if METHODS[method].after
        else alone(method, rate, seed, out)
    )
    curve = made.pop("curve")
    row |= {
        "steps": max(curve),
        "curve": [[step, round(value, 5)] for step, value in sorted(curve.items())],
        **made,
        "machine": machine(),
    }
    write_row(row)
    return row


def alone(method: str, rate: str, seed: int, out: Path) -> dict:
    """Curve and numbers of a generator, whose clusters get a uniform member."""
    from codeclade.components.cluster_map import ClusterMap
    from codeclade.components.pipeline import CodecladePipeline
    from codeclade.data.codes import Codes
    from codeclade.evaluation.likelihood import likelihood, tree_partitions

    folder, made = train("train-generator", method, rate, seed, out)
    pipeline = CodecladePipeline.from_pretrained(folder / "pipeline", dtype=torch.float32)
    predicts_clusters = pipeline.transformer.scheme.predicts_clusters
    cluster_map = pipeline.cluster_map if predicts_clusters else None
    held_out = Codes(out / "curve-codes" / "validation")
    few = torch.cat([ids for ids, _ in held_out.first_views(500)])
    if cluster_map is not None:
        added = cluster_map.sizes[cluster_map.mapping[few]].double().log().mean().item()
        made["curve"] = {step: value + added for step, value in made["curve"].items()}
    partitions = tree_partitions(ClusterMap.from_pretrained(out / "masc-half"))
    found = likelihood(pipeline.transformer, held_out, cluster_map, partitions, batch_size=25)
    return (
        made
        | size(pipeline.transformer)
        | {
            "nats": {key: round(value, 5) for key, value in found.nats.items()},
            "standard_errors": {key: round(v, 5) for key, v in found.standard_errors.items()},
        }
    )


def refined(method: str, rate: str, seed: int, out: Path) -> dict:
    """Curve and numbers of a generator of clusters and a network from clusters to ids.

    p(ids) = p(clusters) p(ids | clusters) is exact: both networks' nats add up.
    """
    from codeclade.components.cluster_map import ClusterMap
    from codeclade.components.refiner import Refiner
    from codeclade.data.codes import Codes

    # The generator's row, whose ids are uniform members: without them it is that of its clusters.
    first = METHODS[method].after
    same = {"method": first, "learning_rate": rate, "seed": seed}
    rows = [r for r in read_rows() if same.items() <= r.items()]
    before = rows[0] if rows else run(first, rate, seed, out)
    cluster_map = ClusterMap.from_pretrained(out / METHODS[method].map)
    held_out = Codes(out / "curve-codes" / "validation")
    few = torch.cat([ids for ids, _ in held_out.first_views(500)])
    drawn = cluster_map.sizes[cluster_map.mapping[few]].double().log().mean().item()

    # Both trained as long: sums of the same steps.
    folder, made = train("train-refiner", method, rate, seed, out)
    curve = {step: value - drawn + made["curve"][step] for step, value in before["curve"]}
    sizes = size(Refiner.from_pretrained(folder / "refiner"))
    return made | {
        "curve": curve,
        **{key: before[key] + value for key, value in sizes.items()},
        "seconds": round(before["seconds"] + made["seconds"], 1),
        "nats": {"ids": round(curve[max(curve)], 5)},
        "standard_errors": {},
    }


def size(model: torch.nn.Module) -> dict[str, float]:
    """Parameters, and FLOPs of training on an image."""
    from codeclade.training.throughput import decoder_flops

    config = model.config
    flops = decoder_flops(model, config.num_hidden_layers, config.hidden_size, config.num_tokens)
    return {"parameters": sum(p.numel() for p in model.parameters()), "flops": flops}


def machine() -> dict:
    """What a row was measured on."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": version("torch"),
    }


def read_rows() -> list[dict]:
    return json.loads(RUNS.read_text()) if RUNS.exists() else []


def write_row(row: dict) -> None:
    """Add a row, or replace that of the same run; several runs may end together."""
    same = ("method", "learning_rate", "seed", "steps")
    with (STUDY / "runs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [r for r in read_rows() if any(r[key] != row[key] for key in same)] + [row]
        rows.sort(key=lambda r: (list(METHODS).index(r["method"]), r["learning_rate"], r["seed"]))
        partial = RUNS.with_suffix(".partial")
        partial.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        partial.replace(RUNS)


def best_rate(rows: list[dict], method: str) -> str | None:
    """The learning rate whose search run (seed 0) ended lowest; None while some are missing."""
    ends = {
        r["learning_rate"]: r["nats"]["ids"]
        for r in rows
        if r["method"] == method and r["seed"] == 0
    }
    return min(ends, key=ends.get) if set(ends) >= set(RATES) else None


def plan(rows: list[dict]) -> Iterator[tuple[str, str, int]]:
    """All runs of the protocol in their order: method, learning rate, seed."""

    # Rates of the two that the question is about, every method at the flat model's, then the rest.
    def searched(methods: Iterable[str]) -> Iterator[tuple[str, str, int]]:
        yield from ((method, rate, 0) for method in methods for rate in RATES)
        for seed in range(1, SEEDS):
            yield from ((method, best_rate(rows, method), seed) for method in methods)

    yield from ((method, rate, 0) for method in MAIN[:2] for rate in RATES)
    yield from ((method, best_rate(rows, "flat"), 0) for method in (*MAIN, *METHODS))
    yield from searched(MAIN[:2])
    yield from searched(MAIN)
    yield from searched(METHODS)


def run_all(out: Path) -> None:
    """Runs of the plan that are not done, one after the other; several processes share them."""
    (out / "taken").mkdir(parents=True, exist_ok=True)
    held = []  # locks live as long as this process
    while True:
        rows = read_rows()
        done = {(r["method"], r["learning_rate"], r["seed"]) for r in rows}
        for method, rate, seed in plan(rows):
            before = METHODS[method].after
            if rate is None or (method, rate, seed) in done:
                continue
            if before and (before, rate, seed) not in done:
                continue  # another process is at it; the plan has it first
            lock = (out / "taken" / f"{method}-{rate}-{seed}").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            held.append(lock)
            print(f"{method} at {rate}, seed {seed}", flush=True)
            run(method, rate, seed, out)
            break
        else:
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("start", "prepare", "run", "all"):
        one = verbs.add_parser(verb)
        one.add_argument("--out", type=Path, default=ROOT / "runs" / "study")
        if verb in ("start", "prepare"):
            one.add_argument("--data", default="zh-plus/tiny-imagenet", help="folder or Hub id")
        if verb == "run":
            one.add_argument("method", choices=METHODS)
            one.add_argument("--learning-rate", choices=RATES, default=RATES[0])
            one.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.verb == "start":
        first_tokenizer(arguments.data, arguments.out)
    elif arguments.verb == "prepare":
        prepare(arguments.data, arguments.out)
    elif arguments.verb == "run":
        run(arguments.method, arguments.learning_rate, arguments.seed, arguments.out)
    else:
        run_all(arguments.out)


if __name__ == "__main__":
    main()
