"""k-means, the baseline of MASC (arXiv 2510.04220) and the coarse labels of CTF."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.validation import check_is_fitted

from .codebook import CodebookLike, canonical, check_clusters, normalized, torch_threads_kept
from .estimator import CodebookClusterer


def kmeans(
    rows: np.ndarray, n_clusters: int, init: str | np.ndarray, n_init: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """scikit-learn's k-means of rows (N, d), clusters numbered by their smallest member.

    Returns:
        labels (N,) int64, centers (K, d) in the order of the labels, the sum of squared distances
        to them, and the iterations of the best start.
    """
    from sklearn.cluster import KMeans as SklearnKMeans  # slow to import, so only when it runs

    options: dict[str, Any] = {"init": init, "n_init": n_init, "random_state": seed}
    model: Any = SklearnKMeans(n_clusters, **options).fit(rows)
    # scikit-learn's numbers depend on the random start, these on the partition alone; the centers
    # follow, each found by the first row of its cluster
    labels = canonical(model.labels_)
    _, first = np.unique(labels, return_index=True)
    centers = model.cluster_centers_[model.labels_[first]]
    return labels, centers, float(model.inertia_), int(model.n_iter_)


@dataclass(eq=False, repr=False)
class KMeans(CodebookClusterer):
    """scikit-learn's k-means on codebook rows.

    The defaults are MASC's baseline; CTF's labels are `init="k-means++", normalize=True`.

    Args:
        n_clusters: clusters K.
        n_init: restarts; the one of least inertia is kept.
        init: "random" or "k-means++", or (K, d) centers.
        random_state: seed.
        normalize: scale rows to unit length first.

    Attributes:
        labels_: (N,) int64, clusters numbered by their smallest member.
        n_clusters_: clusters found; fewer than K only if there are fewer distinct rows.
        cluster_centers_: (n_clusters_, d) float64, in the order of the labels.
        inertia_: sum of squared distances to the centers.
        n_iter_: iterations of the start that was kept.
    """

    n_clusters: int = 8
    _: KW_ONLY
    n_init: int = 10  # starts; the one of least inertia is kept
    init: str | np.ndarray = "random"  # first centers: random codes, or k-means++
    random_state: int = 0
    normalize: bool = False

    @torch_threads_kept()
    def fit(self, X: CodebookLike, y: object = None) -> "KMeans":
        """Cluster the rows of X (N, d).

        Raises:
            ValueError: not a codebook, n_clusters outside 1..N, or a setting that scikit-learn
                refuses.
        """
        rows = self._rows(X)
        k = check_clusters(self.n_clusters, len(rows))
        if self.normalize:
            rows = normalized(rows)
        found = kmeans(rows, k, self.init, self.n_init, self.random_state)
        self.labels_, self.cluster_centers_, self.inertia_, self.n_iter_ = found
        self.n_clusters_ = len(self.cluster_centers_)
        return self

    def predict(self, X: CodebookLike) -> np.ndarray:
        """Labels (M,) int64 of other rows (M, d): those of the nearest centers.

        Raises:
            NotFittedError: before `fit`.
            ValueError: not rows of the width that `fit` saw.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        if self.normalize:
            rows = normalized(rows)
        return pairwise_distances_argmin(rows, self.cluster_centers_).astype(np.int64)
