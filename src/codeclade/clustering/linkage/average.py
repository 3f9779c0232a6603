"""Average linkage (UPGMA) of a codebook, exact and without the N x N distance matrix.

The tree of MASC (arXiv 2510.04220, eq. 3 and algorithm 1) and of DCPE. Equal to
`scipy.cluster.hierarchy.linkage(x, "average")`, heights within 1e-9 relative.

Three phases: equal rows merge at height zero; rounds of reciprocal nearest neighbors, found by
bounds in a tree of boxes, make most merges in memory O(N d); the last few thousand clusters, among
which bounds prune little, finish on a matrix of their mean distances.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from .._arithmetic import TIE
from ..codebook import (
    CodebookLike,
    as_codebook,
    available_memory,
    check_clusters,
    check_memory,
    check_weights,
    choose,
    normalized,
    torch_threads_kept,
)
from ..compilation import compilation_announced
from . import _space_tree
from ._clusters import Clusters, singletons
from ._distance_matrix import distance_matrix
from ._neighbor_chain import merge_all, width_for
from ._numbering import labels_of_linkage, labels_of_pairs, scipy_linkage
from ._products import BLOCK
from ._reciprocal_pairs import merge_in_rounds

METRICS = ("cosine", "euclidean", "sqeuclidean")
MATRIX = 4096  # clusters left, at most, at which the matrix takes over
MATRIX_DEEP = 16384  # the same where the search prunes badly, in many dimensions
DEEP = 12  # effective dimensions from which it does
HEAVY = 3  # mean over median of squared distances from the middle: where heavy tails begin
LARGEST = 400  # rows are scaled so that their largest entry is just below 2**LARGEST
CLOSEST = -480  # a distance below 2**CLOSEST then has a square without all its digits
LONG = 50_000  # rows from which a progress bar is worth showing


@compilation_announced()
@torch_threads_kept()
def average_linkage(
    x: CodebookLike,
    metric: str = "euclidean",
    n_clusters: int | None = None,
    progress: bool | None = None,
    weights: ArrayLike | None = None,
    device: str | None = None,
) -> np.ndarray:
    """Average-linkage tree of the rows of x.

    Distances that agree to 12 digits count as a tie, for more are not known after rounding; the
    pair whose clusters have the smallest members merges first (row-major first minimum), so the
    tree is unique and deterministic. Equal rows merge first, at height zero. Where the tree depends
    on ties (grids, points on a circle), other programs may return another, equally valid one.

    Any scale of float64 is taken: rows are scaled by a power of two before the work, and heights
    back after it, which loses no digit. Under "cosine" distances come from differences of unit
    rows, |a - b|^2 / 2, which keeps digits where 1 - cos has none: for rows at an angle t, heights
    t^2 / 2 are right to about 2e-16 / t relatively. Angles below 1e-15 are rounding alone.

    Args:
        x: (N, d) rows of numbers: NumPy array, torch tensor or parameter, or nn.Embedding.
        metric: "euclidean" (MASC's), "sqeuclidean" or "cosine", averaged over pairs of members.
        n_clusters: stop when the cut at this many clusters is certain; None for the full tree.
        progress: show a bar of merges done; None shows it for long work.
        weights: (N,) positive; a row counts as if it occurred so often: the distance of two
            clusters is sum w_i w_j d(i, j) / (sum w_i sum w_j). None: all count once.
        device: "cuda" finishes the tree there, from as many clusters as its memory holds distances
            of; the partition is that of the processor. None or "cpu": the processor alone.

    Returns:
        (N - 1, 4) float64 linkage matrix as SciPy's: the two clusters, height, size. With
        `n_clusters` only its first N - n_clusters rows.

    Raises:
        ValueError: not a codebook, unknown metric, n_clusters outside 1..N, distinct rows closer
            than 1e-264 of the largest entry, or heights that float64 cannot hold with all digits,
            or weights that are not N positive numbers, or a device that is not here.
        MemoryError: not enough memory is available.
    """
    # a prefix of the sorted merges is already the cut: numbering it as SciPy does is O(N) more
    merges, n, exponent = _lowest_merges(x, metric, n_clusters, progress, weights, device)
    heights = np.maximum.accumulate(merges[:, 2])  # ties may be out of order in the last digits
    heights = _scaled_back(heights, exponent)
    return scipy_linkage(merges[:, :2].astype(np.int64), heights, n)


@compilation_announced()
@torch_threads_kept()
def average_labels(
    x: CodebookLike,
    n_clusters: int,
    metric: str = "euclidean",
    progress: bool | None = None,
    weights: ArrayLike | None = None,
    device: str | None = None,
) -> np.ndarray:
    """Labels (N,) int64 of the average-linkage cut at `n_clusters`, clusters numbered by their
    smallest member; arguments and errors as `average_linkage`."""
    merges, n, _ = _lowest_merges(x, metric, n_clusters, progress, weights, device)
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
    x: CodebookLike,
    metric: str,
    n_clusters: int | None,
    progress: bool | None,
    weights: ArrayLike | None,
    device: str | None,
) -> tuple[np.ndarray, int, int]:
    """The lowest N - n_clusters merges in order: (merges, 3) smallest members and height.

    Also N, and the power of two by which the heights must still be multiplied.
    """
    # everything that can be wrong is found before any work
    choose("metric", metric, METRICS)
    elsewhere = _opened(device)
    rows = as_codebook(x)
    n = len(rows)
    wanted = n - check_clusters(1 if n_clusters is None else n_clusters, n)
    counted = np.ones(n) if weights is None else check_weights(weights, n)
    if metric == "cosine":
        rows = normalized(rows)

    # equal rows merge at height zero, whatever follows
    repeats, clusters, exponent = _distinct(rows, counted)
    squared = metric != "euclidean"
    exponent = (
        2 * exponent - (metric == "cosine") if squared else exponent
    )  # 1 - cos: |a - b|^2 / 2
    above_zero = wanted - len(repeats)
    if above_zero <= 0:
        return repeats[:wanted], n, exponent

    # the lowest merges of the rest are exactly those that the full tree would have: every pair that
    # merges is reciprocal, whatever the order
    hidden = not progress
    if progress is None and n >= LONG:
        hidden = None  # tqdm's word for: shown on a terminal
    with tqdm(total=wanted, desc="average linkage", disable=hidden) as bar:
        bar.update(len(repeats))
        merges = _merge_distinct(clusters, above_zero, not squared, bar.update, elsewhere)
    # sorted, so the first height is the least: if its square kept all digits, every other did
    if merges[0, 2] < 2.0 ** (2 * CLOSEST if squared else CLOSEST):
        raise ValueError(
            "distinct rows of a codebook must be at least 1e-264 of its largest entry apart, "
            f"got rows {int(merges[0, 0])} and {int(merges[0, 1])} closer than that"
        )
    return np.concatenate([repeats, merges]), n, exponent


def _scaled_back(heights: np.ndarray, exponent: int) -> np.ndarray:
    """Heights times 2**exponent, exactly.

    Raises:
        ValueError: one of them would overflow, or lose digits near zero.
    """
    # a power of two changes no digit, unless the result leaves float64's normal numbers
    with np.errstate(over="ignore", under="ignore"):
        out = np.ldexp(heights, exponent)
    smallest = np.finfo(np.float64).tiny
    bad = (heights > 0) & ~((out >= smallest) & (out < np.inf))
    if bad.any():
        raise ValueError(
            f"heights must lie within float64's {smallest:.1e} to {np.finfo(np.float64).max:.1e}, "
            f"but {bad.sum()} of this codebook's do not; scale its rows first"
        )
    return out


def _distinct(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, Clusters, int]:
    """Merges at height zero of equal rows, the distinct rows, and their scale.

    The distinct rows come scaled by a power of two, with neighbors in space near in memory; what
    is measured on them must be multiplied by 2**scale.
    """
    # -0.0 and 0.0 are equal numbers of different bytes; the sum with 0.0 makes them one. A row that
    # occurs again has merged with its first occurrence, whose weight counts it
    _, first, inverse = np.unique(rows + 0.0, axis=0, return_index=True, return_inverse=True)
    count = np.bincount(inverse.ravel(), weights)
    again = np.flatnonzero(first[inverse.ravel()] != np.arange(len(rows)))
    repeats = np.column_stack([first[inverse.ravel()[again]], again, np.zeros(len(again))])
    repeats = repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]
    scale = int(np.frexp(np.abs(rows).max())[1]) - LARGEST
    distinct = np.ldexp(rows[first], -scale)  # squares of 1e-200 and of 1e200 now have room
    # neighbors in space side by side: a leaf of the tree then reads memory in order
    order = np.arange(len(first))
    _space_tree.sort_in_space(distinct, order, _space_tree.levels_for(len(order)))
    clusters = singletons(distinct[order], count[order], first[order])
    return repeats, clusters, scale


def effective_dimension(rows: np.ndarray) -> float:
    """Directions the rows spread over: (sum of variances)^2 / sum of squared variances."""
    # about a thousand rows tell it as well: O(d^2) each, and only the speed depends on it
    some = rows[:: max(1, len(rows) // 1024)]
    covariance = np.cov(some / np.abs(some).max(), rowvar=False)
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())


def has_heavy_tails(rows: np.ndarray) -> bool:
    """Whether the mean squared distance from the middle is far above the median one.

    A Gaussian's is 1 to 2.2 times the median, that of Student's t with 2 degrees of freedom 5 times
    in 8 dimensions.
    """
    some = rows[:: max(1, len(rows) // 1024)]
    squares = ((some - np.median(some, axis=0)) ** 2).sum(axis=1)
    return bool(squares.mean() > HEAVY * np.median(squares))


def _matrix_side(clusters: Clusters) -> int:
    """Clusters left at which the matrix takes over from the search."""
    # the search costs little while clusters are many and small; the matrix costs M^2 numbers and
    # N^2 d / 2 operations whatever the data. Both are exact, so this only chooses the faster
    count = len(clusters.rows)
    # far-out rows lengthen the search among the last thousands, which the matrix does not mind
    share = 4 if has_heavy_tails(clusters.rows) else 8
    side = min(MATRIX, max(1024, count // share))
    # in many dimensions all distances are alike and bounds prune nothing
    if count > side and effective_dimension(clusters.rows) > DEEP:
        side = max(side, min(MATRIX_DEEP, MATRIX * 4, int((available_memory() / 20) ** 0.5)))
    return min(side, count)


def _opened(device: str | None) -> Any:
    """The device that finishes the tree; None is the processor, which does not import torch."""
    if device is None or device == "cpu":
        return None
    from ._on_device import open_device

    return open_device(device)


def _merge_distinct(
    clusters: Clusters,
    wanted: int,
    euclidean: bool,
    advance: Callable[[int], object],
    device: Any = None,  # of torch, or None
) -> np.ndarray:
    """The `wanted` lowest merges of distinct rows, sorted by height and then by members."""
    count, d = clusters.rows.shape
    if device is None:
        side = _matrix_side(clusters)
    else:
        from . import _on_device

        side = min(count, _on_device.matrix_side(device))
    if side < min(count, count - wanted + 1):
        side = 1  # the cut lies below: the rounds find it alone
    # the matrix with its spare columns, the arrays of Clusters and of the tree, a block of products
    held = min(side, _on_device.FEW) if device else side
    needed = 8 * (held * width_for(held) + count * (6 * d + 24) + BLOCK * held)
    check_memory(needed, f"average linkage of {count} rows")
    merges = merge_in_rounds(clusters, side, wanted, euclidean, advance)
    if side > 1:
        merges = np.concatenate([merges, _merge_by_matrix(clusters, euclidean, advance, device)])
    # merges come out of order; sorted, a prefix is the cut at any number of clusters
    return _sorted(merges)[:wanted]


def _sorted(merges: np.ndarray) -> np.ndarray:
    """Merges (M, 3) in the order of their heights, ties in the order of their members."""
    # ties are groups of heights, or rounding would decide their order: first all by height, so that
    # groups are runs, then by members inside a group
    merges = merges[np.argsort(merges[:, 2])]
    heights = merges[:, 2]
    tie_group = np.cumsum(np.diff(heights, prepend=heights[0]) > TIE * heights)
    return merges[np.lexsort((merges[:, 1], merges[:, 0], tie_group))]


def _merge_by_matrix(
    clusters: Clusters,
    euclidean: bool,
    advance: Callable[[int], object],
    device: Any,
) -> np.ndarray:
    """All merges of the clusters that are left: (merges, 3) smallest members and height."""
    # in the order of smallest members, by which the chain breaks ties; rows become members after
    slots = np.flatnonzero(clusters.active)
    slots = slots[np.argsort(clusters.first[slots])]
    if device is None:
        matrix = distance_matrix(clusters, slots, euclidean)
        merges = merge_all(matrix, clusters.size[slots], advance)
    else:
        from . import _on_device

        distances = _on_device.distance_matrix(clusters, slots, euclidean, device)
        size = distances.new_tensor(clusters.size[slots])
        merges = _on_device.merge_in_rounds(distances, size, advance)
    merges[:, :2] = clusters.first[slots][merges[:, :2].astype(np.int64)]
    return merges
