"""What a codebook must be: checks shared by every clustering method.

Each check raises one sentence that names the value seen and the values allowed.
"""

import contextlib
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike


class TensorLike(Protocol):
    """A torch tensor or parameter on any device, of any dtype."""

    def detach(self) -> Any: ...


class EmbeddingLike(Protocol):
    """A module that keeps its rows as `weight`, as torch.nn.Embedding does."""

    weight: Any


CodebookLike: TypeAlias = ArrayLike | TensorLike | EmbeddingLike


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Give torch, where it is loaded, its number of threads back: numba's threads set it too."""
    # only where it is loaded already: clustering alone does not pay for the import of torch
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)


def as_codebook(codebook: CodebookLike) -> np.ndarray:
    """The codebook as a C-contiguous float64 array (N, d).

    Every float16, bfloat16 and float32 is a float64 exactly, and so are integers up to 2^53.

    Args:
        codebook: (N, d) rows of numbers: a NumPy array, anything NumPy reads, a torch tensor or
            parameter on any device, or an nn.Embedding.

    Raises:
        ValueError: not two-dimensional, no rows or columns, not real numbers, or not finite.
        TypeError: Python objects that are no numbers.
    """
    # the kind of numbers first, since the cast to float64 below would drop imaginary parts with a
    # mere warning. Here and below some words are those that scikit-learn's estimator checks look
    # for in a message
    rows = _as_array(codebook)
    if rows.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: codebook has dtype {rows.dtype}")
    if rows.dtype.kind not in "fiuO":
        raise ValueError(f"codebook must hold rows of numbers, got dtype {rows.dtype}")
    # then the shape, on which every method relies without another look
    if rows.ndim != 2:
        raise ValueError(
            f"codebook must have two dimensions (N, d), got shape {rows.shape}. Reshape your data "
            "to one row for each code"
        )
    if 0 in rows.shape:
        empty = "sample" if rows.shape[0] == 0 else "feature"
        raise ValueError(
            f"codebook must have at least one row and column, got 0 {empty}(s) "
            f"(shape={rows.shape}) while a minimum of 1 is required."
        )
    with np.errstate(over="ignore"):  # a long double beyond float64 is found below
        rows = np.ascontiguousarray(rows, dtype=np.float64)
    # then the values: a comparison with NaN is false, so its row would silently be nobody's
    # neighbor
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(
            f"codebook rows must be finite, but {bad.size} hold NaN or infinity "
            f"(first: row {bad[0]})"
        )
    return rows


def check_weights(weights: ArrayLike, n: int) -> np.ndarray:
    """Weights (N,) of N rows as float64.

    Raises:
        ValueError: another shape, or weights that are not finite and positive.
    """
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (n,):
        raise ValueError(f"weights has shape {given.shape}, but there are {n} rows.")
    # A row of weight zero would be at no distance from anything.
    bad = np.flatnonzero(~(np.isfinite(given) & (given > 0)))
    if bad.size:
        raise ValueError(
            f"weights must be finite and above 0, but {bad.size} are not (first: row {bad[0]}, "
            f"{given[bad[0]]:g})."
        )
    return given


def _as_array(codebook: Any) -> np.ndarray:
    """Whatever holds the rows as a NumPy array of its own dtype; bfloat16 becomes float64."""
    if not hasattr(codebook, "detach") and hasattr(getattr(codebook, "weight", None), "detach"):
        codebook = codebook.weight  # nn.Embedding
    if hasattr(codebook, "detach"):
        # NumPy has no bfloat16; float64 holds each one exactly
        tensor = codebook.detach().cpu()
        codebook = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    if hasattr(codebook, "tocsr"):
        raise ValueError(f"codebook must be dense rows, got a sparse {type(codebook).__name__}")
    return np.asarray(codebook)


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows (N, d) scaled to unit length.

    Raises:
        ValueError: a row is zero, so has no direction.
    """
    largest = np.abs(rows).max(axis=1, keepdims=True)
    zero = np.flatnonzero(largest == 0)
    if zero.size:
        raise ValueError(
            f"zero rows have no direction to normalize, but {zero.size} rows are zero "
            f"(first: row {zero[0]})"
        )
    rows = rows / largest  # first by the largest entry: squares of 1e-200 would vanish
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def check_clusters(n_clusters: Any, n: int) -> int:
    """`n_clusters` as an int in 1..n.

    Raises:
        ValueError: not a whole number, or out of range.
    """
    # True is an int to Python, but no number of clusters; 8.0 from a recipe is one
    whole = isinstance(n_clusters, (int, float, np.number)) and not isinstance(n_clusters, bool)
    if not whole or not 1 <= n_clusters <= n or int(n_clusters) != n_clusters:
        raise ValueError(
            f"n_clusters must be a whole number from 1 to the {n} rows of the codebook, "
            f"got {n_clusters!r}"
        )
    return int(n_clusters)


def choose(name: str, value: str, known: Collection[str]) -> str:
    """`value` if it is one of `known`.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(sorted(known))}, got {value!r}")
    return value


def available_memory() -> int:
    """Bytes that can be allocated now without swapping (Linux counts reclaimable cache)."""
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    # elsewhere than on Linux only the size of the machine's memory is known: a bound all the same
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: int, what: str) -> None:
    """Refuse before starting rather than be killed halfway.

    Raises:
        MemoryError: fewer than `needed` bytes are available.
    """
    free = available_memory()
    if needed > free:
        raise MemoryError(
            f"{what} needs about {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB "
            "of memory are available"
        )


def canonical(labels: np.ndarray) -> np.ndarray:
    """The same partition with clusters numbered by their smallest member, int64."""
    _, smallest, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(smallest), dtype=np.int64)
    rank[np.argsort(smallest)] = np.arange(len(smallest))
    return rank[inverse]
