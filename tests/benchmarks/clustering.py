"""Average linkage side by side: ours, fastcluster, SciPy, scikit-learn and the greedy loop.

    python tests/benchmarks/clustering.py --quick
    python tests/benchmarks/clustering.py --sizes 1024 16384 262144 --json out.json --plot out.png

Every run has a process of its own, so that peak memory is its own; compiled code is loaded and
warm before the clock starts (the first call ever, which compiles, is a row by itself). Peak memory
is what the run adds to the process. Runs of one size follow each other, repeats go round the
methods, and the least time counts.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

ONE_THREAD = dict.fromkeys(("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
METHODS = ("codeclade", "codeclade on CUDA", "fastcluster", "scipy", "scikit-learn", "greedy")
MATRIX = {"fastcluster": 1.1, "scipy": 1.1, "scikit-learn": 1.1, "greedy": 8}  # of 4 N^2 bytes
LARGEST = {"fastcluster": 32768, "scipy": 16384, "scikit-learn": 16384, "greedy": 2048}
SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)


def codebook(kind: str, n: int, d: int) -> np.ndarray:
    """float32 codebook (n, d), or a .npy file.

    "sphere": uniform directions; "mixture": clusters on the sphere; "gauss": independent columns;
    "student": heavy tails, 2 degrees of freedom.
    """
    rng = np.random.default_rng(0)
    if kind.endswith(".npy"):
        return np.load(kind)[:n]
    rows = rng.standard_normal((n, d))
    if kind == "mixture":
        centers = rng.standard_normal((max(2, n // 64), d))
        rows = centers[rng.integers(0, len(centers), n)] + 0.2 * rows
    if kind in ("sphere", "mixture"):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if kind == "student":
        rows = rng.standard_t(2, (n, d))
    return rows.astype(np.float32)


def greedy(rows: np.ndarray, k: int) -> np.ndarray:
    """MASC's algorithm 1 as written: a minimum over the whole matrix for every merge."""
    x = rows.astype(np.float64)
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    np.fill_diagonal(distances, np.inf)
    sizes, owner = np.ones(len(x)), np.arange(len(x))
    for _ in range(len(x) - k):
        s, t = divmod(int(distances.argmin()), len(x))
        row = (sizes[s] * distances[s] + sizes[t] * distances[t]) / (sizes[s] + sizes[t])
        row[s] = np.inf
        distances[s] = distances[:, s] = row
        distances[t] = distances[:, t] = np.inf
        sizes[s] += sizes[t]
        owner[owner == t] = s
    return np.unique(owner, return_inverse=True)[1]


def solver(method: str, k: int | None):
    """A function of the codebook; k None asks for the full tree."""
    if method == "codeclade":
        from codeclade.clustering import average_linkage

        return lambda x: average_linkage(x, n_clusters=k, progress=False)
    if method == "codeclade on CUDA":
        from codeclade.clustering import average_linkage

        return lambda x: average_linkage(x, n_clusters=k, progress=False, device="cuda")
    if method == "fastcluster":
        import fastcluster

        return lambda x: fastcluster.linkage(x.astype(np.float64), "average")
    if method == "scipy":
        from scipy.cluster.hierarchy import linkage

        return lambda x: linkage(x.astype(np.float64), "average")
    if method == "scikit-learn":
        from sklearn.cluster import AgglomerativeClustering

        model = AgglomerativeClustering(k or 1, linkage="average", compute_full_tree=k is None)
        return lambda x: model.fit(x.astype(np.float64))
    return lambda x: greedy(x, k or 1)


def peak_bytes() -> int:
    """Peak resident memory of this process since the last `reset_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Forget the peak, where the system allows it."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def work(method: str, kind: str, n: int, d: int, k: int | None, warm: bool) -> dict:
    """One measured run, in this process."""
    x, run = codebook(kind, n, d), solver(method, k)
    if warm:
        ours = method.startswith("codeclade")  # 5000 rows: enough to meet every compiled function
        solver(method, None)(codebook("sphere", 5000 if ours else 64, d))
    reset_peak()
    before, wall, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    run(x)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": (peak_bytes() - before) / 2**20,
    }


def in_fresh_process(arguments: list, **environment) -> dict:
    """`work` or `balanced` in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps(arguments)]
    run = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment
    )
    return json.loads(run.stdout)


def obstacle(method: str, n: int) -> str | None:
    """Why a method is left out at this size, if it is."""
    if method == "codeclade on CUDA":
        import torch

        return None if torch.cuda.is_available() else "no CUDA here"
    if method not in MATRIX:
        return None
    if n > LARGEST[method]:
        return f"left out above N = {LARGEST[method]}: too slow"
    from codeclade.clustering.codebook import available_memory

    needed = MATRIX[method] * 4 * n * n
    if needed > available_memory():
        return f"its matrix of {needed / 2**30:.0f} GiB does not fit"
    return None


def compare(kind: str, n: int, d: int, repeats: int) -> list[dict]:
    """All methods on one codebook; repeats go round the methods."""
    n = len(codebook(kind, n, d))
    cuts = {"full tree": None, "K = N/2": n // 2, "K = N/4": n // 4, "K = N/8": n // 8}
    cores = os.cpu_count() or 1
    jobs = [("codeclade", name, k, cores) for name, k in cuts.items()]
    jobs += [("codeclade", "full tree", None, 1)] if cores > 1 else []
    jobs += [("codeclade on CUDA", name, k, cores) for name, k in list(cuts.items())[:2]]
    jobs += [(method, "full tree", None, 1) for method in METHODS[2:]]  # none uses more than one
    rows = {}
    for repeat in range(repeats):
        for method, name, k, threads in jobs:
            why = obstacle(method, n)
            row = {"data": kind, "n": n, "d": d, "method": method, "asked": name}
            row["threads"] = threads
            if why:
                rows[method, name, threads] = row | {"skipped": why}
                continue
            if method == "greedy" and repeat:
                continue
            limits = ONE_THREAD if threads == 1 else {}
            seen = in_fresh_process(["work", method, kind, n, d, k, True], **limits)
            old = rows.get((method, name, threads))
            if old is None or seen["seconds"] < old["seconds"]:
                rows[method, name, threads] = row | seen
    return list(rows.values())


def balanced_loop(rows: np.ndarray, centers: np.ndarray, max_iter: int) -> np.ndarray:
    """IAR's balanced assignment as written: a Python loop over the codes."""
    n, k = len(rows), len(centers)
    for _ in range(max_iter):
        distances = ((rows[:, None] - centers[None]) ** 2).sum(-1)
        labels, room = np.empty(n, np.int64), np.full(k, n // k)
        for i in np.argsort(distances.min(1), kind="stable"):
            for c in np.argsort(distances[i], kind="stable"):
                if room[c] > 0:
                    labels[i] = c
                    room[c] -= 1
                    break
        moved = np.stack([rows[labels == c].mean(0) for c in range(k)])
        settled = np.allclose(moved, centers)
        centers = moved
        if settled:
            break
    return labels


def balanced(n: int, k: int, max_iter: int) -> dict:
    """BalancedKMeans against the loop, same centers; ours also arranges the codes."""
    from codeclade.clustering import BalancedKMeans

    x = codebook("sphere", n, 8).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    centers = x[np.random.default_rng(42).choice(n, k, replace=False)]
    model = BalancedKMeans(n_clusters=k, init=centers, max_iter=max_iter)
    model.fit(x)
    start = time.perf_counter(), time.process_time()
    model.fit(x)
    middle = time.perf_counter(), time.process_time()
    labels = balanced_loop(x, centers, max_iter)
    end = time.perf_counter(), time.process_time()
    return {
        "n": n,
        "clusters": k,
        "iterations": model.n_iter_,
        "same": bool((labels == model.labels_).all()),
        "seconds": middle[0] - start[0],
        "cpu_seconds": middle[1] - start[1],
        "loop_seconds": end[0] - middle[0],
        "loop_cpu_seconds": end[1] - middle[1],
    }


def machine() -> dict:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    packages = ("codeclade", "numpy", "numba", "scipy", "fastcluster", "scikit-learn")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in packages},
    }


def table(rows: list[dict]) -> str:
    """The rows as text, with the ratio of fastcluster's time and memory to each."""
    lines = [
        f"{'data':10}{'N':>8}{'d':>5}  {'method':14}{'asked':11}{'threads':>8}"
        f"{'wall s':>9}{'cpu s':>9}{'peak MB':>9}{'x time':>8}{'x mem':>7}"
    ]
    base = {(r["data"], r["n"]): r for r in rows if r["method"] == "fastcluster"}
    for r in rows:
        head = f"{Path(r['data']).stem[:9]:10}{r['n']:>8}{r['d']:>5}  "
        head += f"{r['method']:14}{r['asked']:11}{r['threads']:8}"
        if "skipped" in r:
            lines.append(head + "  " + r["skipped"])
            continue
        line = head + f"{r['seconds']:9.3f}{r['cpu_seconds']:9.3f}{r['peak_mb']:9.0f}"
        other = base.get((r["data"], r["n"]), {})
        if "seconds" in other:
            line += f"{other['seconds'] / r['seconds']:8.1f}"
            line += f"{other['peak_mb'] / max(r['peak_mb'], 0.1):7.1f}"
        lines.append(line)
    return "\n".join(lines)


def plot(rows: list[dict], path: str) -> None:
    """Growth of time and memory with N, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    first = rows[0]["data"]
    kept = [r for r in rows if r["data"] == first and "seconds" in r]
    for axis, key, label in zip(axes, ("seconds", "peak_mb"), ("seconds", "peak MB"), strict=True):
        for line in dict.fromkeys((r["method"], r["asked"], r["threads"]) for r in kept):
            points = [r for r in kept if (r["method"], r["asked"], r["threads"]) == line]
            style = "-o" if line[0] == "codeclade" else "--s"
            name = "{}, {}, {} thread(s)".format(*line)
            axis.loglog([r["n"] for r in points], [r[key] for r in points], style, label=name, ms=4)
        axis.set_xlabel("rows of the codebook, N")
        axis.set_ylabel(label)
        axis.grid(True, which="both", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="N to 8192, one repeat")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--data", nargs="+", default=["sphere", "mixture"], help="or .npy files")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="write everything measured here")
    parser.add_argument("--plot", help="write the growth plot here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, *arguments = json.loads(options.worker)
        json.dump({"work": work, "balanced": balanced}[what](*arguments), sys.stdout)
        return
    sizes = [n for n in options.sizes if n <= 8192] if options.quick else options.sizes
    result = {"machine": machine(), "rows": []}
    print(json.dumps(result["machine"]))
    with tempfile.TemporaryDirectory() as empty:
        cold = in_fresh_process(
            ["work", "codeclade", "sphere", 5000, options.columns, None, False],
            NUMBA_CACHE_DIR=empty,
        )
    result["first_call_with_compilation"] = cold
    print(f"first call ever, compiling: {cold['seconds']:.1f} s")
    for kind in options.data:
        for n in sizes:
            repeats = 1 if options.quick or n > 65536 else options.repeats
            rows = compare(kind, n, options.columns, repeats)
            result["rows"] += rows
            print(table(rows), flush=True)
    shape = (4096, 64, 5) if options.quick else (16384, 128, 100)
    even = result["balanced_kmeans"] = in_fresh_process(["balanced", *shape])
    ratio = even["loop_seconds"] / even["seconds"]
    print(f"BalancedKMeans {json.dumps(even)}: {ratio:.0f} times faster than the loop")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))
    if options.plot:
        plot(result["rows"], options.plot)


if __name__ == "__main__":
    main()
