"""Balanced k-means and the code rearrangement of IAR (arXiv 2501.00880).

Must give the assignments and the mapping of IAR's balance_k_means.py from the same centres.
Shapes: N rows, K clusters, m = N / K rows in each, d columns.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from .codebook import as_codebook, check_clusters, normalized
from .forest import squared


@njit(parallel=True, cache=True)
def _distances(rows, centres, out):
    """Squared distances (N, K) and, returned, the nearest of each row."""
    least = np.empty(rows.shape[0])
    for i in prange(rows.shape[0]):
        least[i] = np.inf
        for c in range(centres.shape[0]):
            out[i, c] = squared(rows[i], centres[c])
            least[i] = min(least[i], out[i, c])
    return least


@njit(cache=True)
def _assign(distances, order, capacity, labels):
    """Each row, in the given order, to its nearest centre that is not full yet."""
    room = np.full(distances.shape[1], capacity)
    for i in order:
        best = -1
        for c in range(distances.shape[1]):
            if room[c] > 0 and (best < 0 or distances[i, c] < distances[i, best]):
                best = c
        labels[i] = best
        room[best] -= 1


@njit(cache=True)
def _closest(rows, visited, point):
    """The unvisited row nearest to a point."""
    best, least = -1, np.inf
    for i in range(rows.shape[0]):
        if not visited[i]:
            distance = squared(rows[i], point)
            if best < 0 or distance < least:
                best, least = i, distance
    return best


@njit(cache=True)
def _chain(rows, centre):
    """Order of the m rows of a cluster, grown from the middle to both ends in turn.

    The row nearest to the centre comes to m/2 - 1, its nearest neighbour beside it; then the left
    and the right end take turns to add their nearest row that is left.
    """
    m = rows.shape[0]
    order, visited = np.empty(m, np.int64), np.zeros(m, np.bool_)
    left = right = max(m // 2 - 1, 0)
    order[left] = _closest(rows, visited, centre)
    visited[order[left]] = True
    to_right = True
    for _ in range(m - 1):
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


@dataclass
class BalancedKMeans:
    """Clusters of equal size, and an order of the codes in which neighbours are similar (IAR).

    Rows are scaled to unit length. In ascending order of the distance to their nearest centre they
    go to the nearest centre that has room; centres move to the plain mean of their rows.

    Args:
        n_clusters: clusters K, a divisor of N.
        init: (K, d) first centres, scaled to unit length like the rows; None draws distinct rows.
        max_iter: iterations at most.
        random_state: seed of the first centres.

    Attributes:
        labels_: (N,) int64, IAR's cluster numbers (those of the centres).
        n_clusters_: K.
        cluster_centers_: (K, d) float64.
        n_iter_: iterations done.
        permutation_: (N,) int64, IAR's mapping from old to new code; labels_ is permutation_ // m.
    """

    n_clusters: int
    init: np.ndarray | None = None
    max_iter: int = 100
    random_state: int = 42

    def fit(self, codebook) -> "BalancedKMeans":
        """Cluster the rows of `codebook` (N, d).

        Raises:
            ValueError: not a codebook, a zero row, N not divisible by n_clusters, or centres of
                another shape than (K, d).
        """
        rows = normalized(as_codebook(codebook))
        n, k = len(rows), check_clusters(self.n_clusters, len(rows))
        if n % k:
            raise ValueError(
                f"n_clusters must divide the {n} rows of the codebook into equal clusters, got {k}"
            )
        self.labels_, self.cluster_centers_ = self._cluster(rows, self._first_centres(rows, k))
        self.permutation_ = self._arrange(rows, self.labels_, k)
        self.n_clusters_ = k
        return self

    def _first_centres(self, rows: np.ndarray, k: int) -> np.ndarray:
        if self.init is None:
            rng = np.random.default_rng(self.random_state)
            return rows[rng.choice(len(rows), k, replace=False)]
        centres = as_codebook(self.init)
        if centres.shape != (k, rows.shape[1]):
            raise ValueError(
                f"init must be centres of shape {(k, rows.shape[1])}, got {centres.shape}"
            )
        return normalized(centres)

    def _cluster(self, rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, k = len(rows), len(centres)
        distances, labels = np.empty((n, k)), np.empty(n, np.int64)
        for iteration in range(1, self.max_iter + 1):
            self.n_iter_ = iteration
            order = np.argsort(_distances(rows, centres, distances), kind="stable")
            _assign(distances, order, n // k, labels)
            moved = rows[np.argsort(labels, kind="stable")].reshape(k, n // k, -1).mean(axis=1)
            settled = np.allclose(moved, centres)
            centres = moved
            if settled:
                break
        return labels, centres

    @staticmethod
    def _arrange(rows: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
        members = np.argsort(labels, kind="stable").reshape(k, -1)
        permutation = np.empty(len(rows), np.int64)
        for c, own in enumerate(members):
            order = own[_chain(rows[own], rows[own].mean(axis=0))]
            permutation[order] = c * len(own) + np.arange(len(own))
        return permutation
