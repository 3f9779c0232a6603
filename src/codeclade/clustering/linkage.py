"""Average linkage (UPGMA) of a codebook, exact and without the N x N distance matrix.

The tree of MASC (arXiv 2510.04220, eq. 3 and algorithm 1) and of DCPE. Equal to
`scipy.cluster.hierarchy.linkage(x, "average")`, heights within 1e-9 relative.
"""

import numpy as np
from numba import get_num_threads, njit
from tqdm import tqdm

from . import dense, rounds, space_tree
from .codebook import (
    as_codebook,
    available_memory,
    check_clusters,
    check_memory,
    choose,
    normalized,
    torch_threads_kept,
)
from .forest import Forest, coarse, plant

METRICS = ("cosine", "euclidean", "sqeuclidean")
DENSE = 4096  # clusters left, at most, at which the matrix takes over
DENSE_DEEP = 16384  # the same where the search prunes badly, in many dimensions
DEEP = 12  # effective dimensions from which it does
LONG = 50_000  # rows from which a progress bar is worth showing


@torch_threads_kept()
def average_linkage(x, metric="euclidean", n_clusters=None, progress=None) -> np.ndarray:
    """Average-linkage tree of the rows of x.

    Distances that agree to 12 digits count as a tie; the pair whose clusters have the smallest
    members merges first (row-major first minimum), so the tree is unique and deterministic.
    Equal rows merge first, at height zero. Where the tree depends on ties, other programs may
    return another, equally valid one.

    Args:
        x: (N, d) floating-point rows, NumPy array or torch tensor.
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
    merges, n = _merges(x, metric, n_clusters, progress)
    return _number(merges[:, :2].astype(np.int64), np.maximum.accumulate(merges[:, 2]), n)


@torch_threads_kept()
def average_labels(x, n_clusters, metric="euclidean", progress=None) -> np.ndarray:
    """Labels (N,) int64 of the average-linkage cut at `n_clusters`, clusters numbered by their
    smallest member; arguments and errors as `average_linkage`."""
    merges, n = _merges(x, metric, n_clusters, progress)
    return _roots(merges[:, :2].astype(np.int64), n)


def cut(linkage, n_clusters: int) -> np.ndarray:
    """Labels (N,) int64 of the full tree cut at n_clusters, numbered by their smallest member.

    Args:
        linkage: (N - 1, 4) linkage matrix, ours or SciPy's.
        n_clusters: 1..N.

    Raises:
        ValueError: n_clusters is outside 1..N.
    """
    n = len(linkage) + 1
    n_clusters = check_clusters(n_clusters, n)
    return _cut(np.asarray(linkage)[:, :2].astype(np.int64), n, n - n_clusters)


@njit(cache=True)
def _find(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True)
def _number(pairs, heights, n):
    """SciPy's numbering of merges given as pairs of members, in order of height."""
    out = np.empty((pairs.shape[0], 4))
    parent, size = np.arange(2 * n), np.ones(2 * n)
    for i in range(pairs.shape[0]):
        a, b = _find(parent, pairs[i, 0]), _find(parent, pairs[i, 1])
        parent[a] = parent[b] = n + i
        size[n + i] = size[a] + size[b]
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = min(a, b), max(a, b), heights[i], size[n + i]
    return out


@njit(cache=True)
def _roots(pairs, n):
    """Canonical labels of the partition that joins the given pairs of members."""
    parent = np.arange(n)
    for i in range(pairs.shape[0]):
        a, b = _find(parent, pairs[i, 0]), _find(parent, pairs[i, 1])
        parent[max(a, b)] = min(a, b)
    labels, count = np.empty(n, np.int64), 0
    for i in range(n):
        root = _find(parent, i)
        if root == i:
            labels[i] = count
            count += 1
        else:
            labels[i] = labels[root]
    return labels


@njit(cache=True)
def _cut(children, n, merges):
    """Canonical labels after the first `merges` rows of a linkage matrix."""
    member = np.arange(n + merges)
    pairs = np.empty((merges, 2), np.int64)
    for i in range(merges):
        pairs[i, 0], pairs[i, 1] = member[children[i, 0]], member[children[i, 1]]
        member[n + i] = pairs[i, 0]
    return _roots(pairs, n)


def _merges(x, metric, n_clusters, progress) -> tuple[np.ndarray, int]:
    """The lowest N - n_clusters merges in order: (merges, 3) smallest members and height; and N."""
    choose("metric", metric, METRICS)
    rows = as_codebook(x)
    n = len(rows)
    wanted = n - check_clusters(1 if n_clusters is None else n_clusters, n)
    if metric == "cosine":
        rows = normalized(rows)
    repeats, forest = _distinct(rows)
    top = wanted - len(repeats)
    if top <= 0:
        return repeats[:wanted], n
    hidden = not progress
    if progress is None and n >= LONG:
        hidden = None  # tqdm's word for: shown on a terminal
    with tqdm(total=wanted, desc="average linkage", disable=hidden) as bar:
        bar.update(len(repeats))
        merges = _grow(forest, top, metric == "euclidean", bar.update)
    if metric == "cosine":
        merges[:, 2] /= 2  # |a - b|^2 = 2 - 2 cos for unit rows
    return np.concatenate([repeats, merges]), n


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, Forest]:
    """Merges at height zero of equal rows, and the forest of distinct rows near in memory."""
    _, first, inverse, count = np.unique(
        rows + 0.0, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    again = np.flatnonzero(first[inverse.ravel()] != np.arange(len(rows)))
    repeats = np.column_stack([first[inverse.ravel()[again]], again, np.zeros(len(again))])
    repeats = repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]
    order = np.arange(len(first))
    distinct = np.ascontiguousarray(rows[first])
    space_tree.sort_in_space(distinct, order, space_tree.levels_for(len(order)))
    return repeats, plant(distinct[order], count[order].astype(np.float64), first[order])


def effective_dimension(rows: np.ndarray) -> float:
    """Directions the rows spread over: (sum of variances)^2 / sum of squared variances."""
    covariance = np.cov(rows[:: max(1, len(rows) // 1024)], rowvar=False)
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())


def _side(forest: Forest) -> int:
    """Clusters left at which the dense matrix takes over."""
    count = len(forest.rows)
    side = min(DENSE, max(1024, count // 8))
    if count > side and effective_dimension(forest.rows) > DEEP:
        side = max(side, min(DENSE_DEEP, DENSE * 4, int((available_memory() / 16) ** 0.5)))
    return min(side, count)


def _grow(forest: Forest, wanted: int, euclidean: bool, advance) -> np.ndarray:
    """The `wanted` lowest merges of the forest, sorted by height and then by members."""
    count, d = forest.rows.shape
    side = _side(forest)
    if side < min(count, count - wanted + 1):
        side = 1  # the cut lies below: the rounds find it alone
    check_memory(8 * (side**2 + count * (6 * d + 24)), f"average linkage of {count} rows")
    merges = rounds.run(forest, side, wanted, euclidean, advance)
    if side > 1:
        merges = np.concatenate([merges, _finish(forest, euclidean, advance)])
    heights = _coarse_all(merges[:, 2])
    return merges[np.lexsort((merges[:, 1], merges[:, 0], heights))[:wanted]]


@njit(cache=True)
def _coarse_all(heights):
    out = np.empty_like(heights)
    for i in range(heights.shape[0]):
        out[i] = coarse(heights[i])
    return out


def _finish(forest: Forest, euclidean: bool, advance) -> np.ndarray:
    """All merges of the clusters that are left, through the dense matrix."""
    slots = np.flatnonzero(forest.alive)
    slots = slots[np.argsort(forest.first[slots])]
    size, count = forest.size[slots], len(slots)
    matrix = dense.empty_matrix(count)
    if euclidean:
        members, starts = _gather(forest.head, forest.after, slots)
        columns, weight = np.ascontiguousarray(forest.rows[members].T), forest.weight[members]
        step = -(-len(members) // 2048)
        for top in range(step):  # slices of even work, so that an interrupt is heard
            dense.average_rows(
                columns, weight, starts, size, 4 * get_num_threads(), top, step, matrix
            )
        dense.mirror(matrix)
    else:
        dense.squared_rows(forest.mean[slots], forest.variance[slots], matrix)
    heights = np.empty((count - 1, 3))
    living, links = np.arange(count), np.zeros(count + 1, np.int64)
    for start in range(0, count - 1, 512):
        part = heights[start : start + 512]
        dense.chain(matrix, size, living, links, part, len(part))
        advance(len(part))
    heights[:, :2] = forest.first[slots][heights[:, :2].astype(np.int64)]
    return heights


@njit(cache=True)
def _gather(head, after, slots):
    """Members of each cluster one after the other, and where each cluster starts."""
    members, starts = np.empty(head.shape[0], np.int64), np.empty(slots.shape[0] + 1, np.int64)
    count = 0
    for i in range(slots.shape[0]):
        starts[i] = count
        j = head[slots[i]]
        while j >= 0:
            members[count] = j
            count += 1
            j = after[j]
    starts[-1] = count
    return members[:count], starts
