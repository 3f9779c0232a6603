"""Balanced k-means and the code rearrangement of IAR (arXiv 2501.00880).

Must give the assignments and the mapping of IAR's balance_k_means.py from the same centers.
Shapes: N rows, K clusters, m = N / K rows in each, d columns.
"""

from dataclasses import KW_ONLY, dataclass

import numpy as np
from numba import njit, prange

from ._arithmetic import LANES, add_squared_distances, squared_distance
from .codebook import CodebookLike, as_codebook, check_clusters, normalized, torch_threads_kept
from .compilation import compilation_announced
from .estimator import CodebookClusterer

CHUNK = 32  # rows a thread takes at a time


@njit(cache=True)
def _to_centers(points, columns, first, count, lines):
    """Squared distances (count, K) from points first.. to the centers; both are columns (d, _)."""
    lines[:count] = 0.0
    for k in range(0, columns.shape[0], LANES):
        add_squared_distances(columns, points, k, 0, columns.shape[1], first, count, lines)


@njit(cache=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def _first_least(line):
    """Position of the least value, the first of equals."""
    # two passes: a bare minimum becomes vector instructions, one that carries its position does not
    least = line[0]
    for value in line:
        least = min(least, value)
    for c in range(line.shape[0]):
        if line[c] == least:
            return c
    return 0


@njit(parallel=True, cache=True)
def _nearest_centers(points, columns, nearest, least):
    """The nearest center of each point and its squared distance."""
    # distances live for one chunk, so memory is CHUNK x K a thread and never N x K
    for part in prange((points.shape[1] + CHUNK - 1) // CHUNK):
        start = np.int64(part) * CHUNK  # prange counts unsigned, and mixing signs makes floats
        count = min(CHUNK, points.shape[1] - start)
        lines = np.empty((CHUNK, columns.shape[1]))
        _to_centers(points, columns, start, count, lines)
        for i in range(count):
            best = _first_least(lines[i])
            nearest[start + i], least[start + i] = best, lines[i, best]


@njit(cache=True)
def _assign(points, columns, order, nearest, capacity, labels):
    """Each point, in the given order, to its nearest center that is not full yet.

    Only points whose nearest center is full need their other distances, which are not stored.
    """
    room, lines = np.full(columns.shape[1], capacity), np.empty((1, columns.shape[1]))
    # greedy as in IAR: rows that are surest of their center choose first. The clusters' room adds
    # up to N, so some center always has room and `best` ends at one
    for i in order:
        best = nearest[i]
        if room[best] == 0:
            _to_centers(points, columns, i, 1, lines)
            line, best = lines[0], -1
            for c in range(line.shape[0]):
                if room[c] > 0 and (best < 0 or line[c] < line[best]):
                    best = c
        labels[i] = best
        room[best] -= 1


@njit(cache=True)
def _means(rows, labels, k):
    """Mean (K, d) of the rows of each of the equal clusters."""
    sums = np.zeros((k, rows.shape[1]))
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            sums[labels[i], j] += rows[i, j]
    return sums / (rows.shape[0] // k)


def _stable_order(values: np.ndarray) -> np.ndarray:
    """Ascending order, ties by position; the sort that ignores ties is several times faster."""
    order = np.argsort(values)
    ordered = values[order]
    tied = (ordered[1:] == ordered[:-1]).any()
    return np.argsort(values, kind="stable") if tied else order


@njit(cache=True)
def _closest(rows, visited, point):
    """The unvisited row nearest to a point."""
    best, least = -1, np.inf
    for i in range(rows.shape[0]):
        if not visited[i]:
            distance = squared_distance(rows[i], point)
            if best < 0 or distance < least:
                best, least = i, distance
    return best


@njit(cache=True)
def _chain(rows, center):
    """Order of the m rows of a cluster, grown from the middle to both ends in turn.

    The row nearest to the center comes to m/2 - 1, its nearest neighbor beside it; then the left
    and the right end take turns to add their nearest row that is left.
    """
    # every link looks at all m rows: O(m^2 d) a cluster, N m d operations in all
    m = rows.shape[0]
    order, visited = np.empty(m, np.int64), np.zeros(m, np.bool_)
    left = right = max(m // 2 - 1, 0)
    order[left] = _closest(rows, visited, center)
    visited[order[left]] = True
    to_right = True
    for _ in range(m - 1):
        # an end that has met its border leaves all that remains to the other
        if right + 1 < m and (to_right or left == 0):
            order[right + 1] = _closest(rows, visited, rows[order[right]])
            right += 1
            visited[order[right]] = True
        else:
            order[left - 1] = _closest(rows, visited, rows[order[left]])
            left -= 1
            visited[order[left]] = True
        to_right = not to_right
    return order


def balanced_kmeans(
    rows: np.ndarray, centers: np.ndarray, max_iter: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Clusters of equal size.

    In ascending order of the distance to their nearest center, rows go to the nearest center that
    has room; centers move to the plain mean of their rows.

    Args:
        rows: (N, d) of unit length; centers: (K, d) to start from, K a divisor of N.

    Returns:
        labels (N,) int64, the last centers (K, d), and the iterations done.
    """
    # one column a row, so that the distances from a point to all centers are sweeps of vector
    # instructions; the zeros of the padding add nothing to a distance
    n, k = len(rows), len(centers)
    padding = ((0, -rows.shape[1] % LANES), (0, 0))
    points = np.ascontiguousarray(np.pad(rows.T, padding))
    nearest, labels, least = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    iteration = 0
    # N K d operations an iteration; a greedy assignment may raise the objective, so that nothing
    # but max_iter promises an end
    while iteration < max_iter:
        iteration += 1
        columns = np.ascontiguousarray(np.pad(centers.T, padding))
        _nearest_centers(points, columns, nearest, least)
        _assign(points, columns, _stable_order(least), nearest, n // k, labels)
        # plain means, not scaled back to unit length, and NumPy's default tolerances: both are
        # IAR's, and equal assignments need both
        moved = _means(rows, labels, k)
        settled = np.allclose(moved, centers)
        centers = moved
        if settled:
            break
    return labels, centers, iteration


def arrange(rows: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """IAR's mapping (N,) int64 from old to new code: clusters one after the other, similar codes
    of a cluster beside each other."""
    # equal sizes make the reshape right; the stable sort keeps members in ascending order, by which
    # the chain breaks ties
    members = np.argsort(labels, kind="stable").reshape(k, -1)
    permutation = np.empty(len(rows), np.int64)
    for c, own in enumerate(members):
        order = own[_chain(rows[own], rows[own].mean(axis=0))]
        permutation[order] = c * len(own) + np.arange(len(own))
    return permutation


@dataclass(eq=False, repr=False)
class BalancedKMeans(CodebookClusterer):
    """Clusters of equal size, and an order of the codes in which neighbors are similar (IAR).

    Rows are scaled to unit length; see `balanced_kmeans`.

    Args:
        n_clusters: clusters K, a divisor of N.
        init: (K, d) first centers, scaled to unit length like the rows; None draws distinct rows.
        max_iter: iterations at most.
        random_state: seed of the first centers.

    Attributes:
        labels_: (N,) int64, IAR's cluster numbers (those of the centers).
        n_clusters_: K.
        cluster_centers_: (K, d) float64.
        n_iter_: iterations done.
        permutation_: (N,) int64, IAR's mapping from old to new code; labels_ is permutation_ // m.
    """

    n_clusters: int = 8
    _: KW_ONLY
    init: np.ndarray | None = None
    max_iter: int = 100  # iterations at most
    random_state: int = 42

    @compilation_announced()
    @torch_threads_kept()
    def fit(self, X: CodebookLike, y: object = None) -> "BalancedKMeans":
        """Cluster the rows of X (N, d).

        Raises:
            ValueError: not a codebook, a zero row, N not divisible by n_clusters, centers of
                another shape than (K, d), or max_iter below 1.
        """
        rows = normalized(self._rows(X))
        n, k = len(rows), check_clusters(self.n_clusters, len(rows))
        if n % k:
            raise ValueError(
                f"n_clusters must divide the {n} rows of the codebook into equal clusters, got {k}"
            )
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {self.max_iter}")
        found = balanced_kmeans(rows, self._first_centers(rows, k), self.max_iter)
        self.labels_, self.cluster_centers_, self.n_iter_ = found
        self.permutation_ = arrange(rows, self.labels_, k)
        self.n_clusters_ = k
        return self

    def _first_centers(self, rows: np.ndarray, k: int) -> np.ndarray:
        """The centers (K, d) to start from, of unit length."""
        if self.init is None:
            rng = np.random.default_rng(self.random_state)
            return rows[rng.choice(len(rows), k, replace=False)]
        centers = as_codebook(self.init)
        if centers.shape != (k, rows.shape[1]):
            raise ValueError(
                f"init must be centers of shape {(k, rows.shape[1])}, got {centers.shape}"
            )
        return normalized(centers)
