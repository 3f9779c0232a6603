"""Average linkage (UPGMA) of a codebook, exact and without the N x N distance matrix.

The tree of MASC (arXiv 2510.04220, eq. 3 and algorithm 1) and of DCPE. Equal to
`scipy.cluster.hierarchy.linkage(x, "average")`, heights within 1e-9 relative.

Three phases: equal rows merge at height zero; rounds of reciprocal nearest neighbors, found by
bounds in a tree of boxes, make most merges in memory O(N d); the last few thousand clusters, among
which bounds prune little, finish on a matrix of their mean distances.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from .._arithmetic import all_rounded
from ..codebook import (
    CodebookLike,
    as_codebook,
    available_memory,
    check_clusters,
    check_memory,
    choose,
    normalized,
    torch_threads_kept,
)
from . import _space_tree
from ._clusters import Clusters, singletons
from ._distance_matrix import distance_matrix
from ._neighbor_chain import merge_all
from ._numbering import labels_of_linkage, labels_of_pairs, scipy_linkage
from ._reciprocal_pairs import merge_in_rounds

METRICS = ("cosine", "euclidean", "sqeuclidean")
MATRIX = 4096  # clusters left, at most, at which the matrix takes over
MATRIX_DEEP = 16384  # the same where the search prunes badly, in many dimensions
DEEP = 12  # effective dimensions from which it does
LONG = 50_000  # rows from which a progress bar is worth showing


@torch_threads_kept()
def average_linkage(
    x: CodebookLike,
    metric: str = "euclidean",
    n_clusters: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Average-linkage tree of the rows of x.

    Distances that agree to 12 digits count as a tie; the pair whose clusters have the smallest
    members merges first (row-major first minimum), so the tree is unique and deterministic.
    Equal rows merge first, at height zero. Where the tree depends on ties, other programs may
    return another, equally valid one.

    Args:
        x: (N, d) rows of numbers: NumPy array, torch tensor or parameter, or nn.Embedding.
        metric: "euclidean" (MASC's), "sqeuclidean" or "cosine", averaged over pairs of members.
        n_clusters: stop when the cut at this many clusters is certain; None for the full tree.
        progress: show a bar of merges done; None shows it for long work.

    Returns:
        (N - 1, 4) float64 linkage matrix as SciPy's: the two clusters, height, size. With
        `n_clusters` only its first N - n_clusters rows.

    Raises:
        ValueError: not a codebook, unknown metric, or n_clusters outside 1..N.
        MemoryError: not enough memory is available.
    """
    merges, n = _lowest_merges(x, metric, n_clusters, progress)
    heights = np.maximum.accumulate(merges[:, 2])  # ties may be out of order in the last digits
    return scipy_linkage(merges[:, :2].astype(np.int64), heights, n)


@torch_threads_kept()
def average_labels(
    x: CodebookLike, n_clusters: int, metric: str = "euclidean", progress: bool | None = None
) -> np.ndarray:
    """Labels (N,) int64 of the average-linkage cut at `n_clusters`, clusters numbered by their
    smallest member; arguments and errors as `average_linkage`."""
    merges, n = _lowest_merges(x, metric, n_clusters, progress)
    return labels_of_pairs(merges[:, :2].astype(np.int64), n)


def cut(linkage: ArrayLike, n_clusters: int) -> np.ndarray:
    """Labels (N,) int64 of the full tree cut at n_clusters, numbered by their smallest member.

    Args:
        linkage: (N - 1, 4) linkage matrix, ours or SciPy's.
        n_clusters: 1..N.

    Raises:
        ValueError: n_clusters is outside 1..N.
    """
    children = np.asarray(linkage)[:, :2].astype(np.int64)
    n = len(children) + 1
    n_clusters = check_clusters(n_clusters, n)
    return labels_of_linkage(children, n, n - n_clusters)


def _lowest_merges(
    x: CodebookLike, metric: str, n_clusters: int | None, progress: bool | None
) -> tuple[np.ndarray, int]:
    """The lowest N - n_clusters merges in order: (merges, 3) smallest members and height; and N."""
    # everything that can be wrong is found before any work
    choose("metric", metric, METRICS)
    rows = as_codebook(x)
    n = len(rows)
    wanted = n - check_clusters(1 if n_clusters is None else n_clusters, n)
    if metric == "cosine":
        rows = normalized(rows)

    # equal rows merge at height zero, whatever follows
    repeats, clusters = _distinct(rows)
    above_zero = wanted - len(repeats)
    if above_zero <= 0:
        return repeats[:wanted], n

    hidden = not progress
    if progress is None and n >= LONG:
        hidden = None  # tqdm's word for: shown on a terminal
    with tqdm(total=wanted, desc="average linkage", disable=hidden) as bar:
        bar.update(len(repeats))
        merges = _merge_distinct(clusters, above_zero, metric == "euclidean", bar.update)
    if metric == "cosine":
        merges[:, 2] /= 2  # |a - b|^2 = 2 - 2 cos for unit rows
    return np.concatenate([repeats, merges]), n


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, Clusters]:
    """Merges at height zero of equal rows, and the distinct rows, neighbors near in memory."""
    _, first, inverse, count = np.unique(
        rows + 0.0, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    again = np.flatnonzero(first[inverse.ravel()] != np.arange(len(rows)))
    repeats = np.column_stack([first[inverse.ravel()[again]], again, np.zeros(len(again))])
    repeats = repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]
    order = np.arange(len(first))
    distinct = np.ascontiguousarray(rows[first])
    _space_tree.sort_in_space(distinct, order, _space_tree.levels_for(len(order)))
    clusters = singletons(distinct[order], count[order].astype(np.float64), first[order])
    return repeats, clusters


def effective_dimension(rows: np.ndarray) -> float:
    """Directions the rows spread over: (sum of variances)^2 / sum of squared variances."""
    covariance = np.cov(rows[:: max(1, len(rows) // 1024)], rowvar=False)
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())


def _matrix_side(clusters: Clusters) -> int:
    """Clusters left at which the matrix takes over from the search."""
    count = len(clusters.rows)
    side = min(MATRIX, max(1024, count // 8))
    if count > side and effective_dimension(clusters.rows) > DEEP:
        side = max(side, min(MATRIX_DEEP, MATRIX * 4, int((available_memory() / 16) ** 0.5)))
    return min(side, count)


def _merge_distinct(
    clusters: Clusters, wanted: int, euclidean: bool, advance: Callable[[int], object]
) -> np.ndarray:
    """The `wanted` lowest merges of distinct rows, sorted by height and then by members."""
    count, d = clusters.rows.shape
    side = _matrix_side(clusters)
    if side < min(count, count - wanted + 1):
        side = 1  # the cut lies below: the rounds find it alone
    check_memory(8 * (side**2 + count * (6 * d + 24)), f"average linkage of {count} rows")
    merges = merge_in_rounds(clusters, side, wanted, euclidean, advance)
    if side > 1:
        merges = np.concatenate([merges, _merge_by_matrix(clusters, euclidean, advance)])
    # merges come out of order; sorted, a prefix is the cut at any number of clusters
    heights = all_rounded(merges[:, 2])
    return merges[np.lexsort((merges[:, 1], merges[:, 0], heights))[:wanted]]


def _merge_by_matrix(
    clusters: Clusters, euclidean: bool, advance: Callable[[int], object]
) -> np.ndarray:
    """All merges of the clusters that are left: (merges, 3) smallest members and height."""
    slots = np.flatnonzero(clusters.active)
    slots = slots[np.argsort(clusters.first[slots])]
    matrix = distance_matrix(clusters, slots, euclidean)
    merges = merge_all(matrix, clusters.size[slots], advance)
    merges[:, :2] = clusters.first[slots][merges[:, :2].astype(np.int64)]
    return merges
