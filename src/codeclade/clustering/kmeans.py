"""k-means, the baseline of MASC (arXiv 2510.04220) and the coarse labels of CTF."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .codebook import as_codebook, canonical, check_clusters, normalized


@dataclass
class KMeans:
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
    """

    n_clusters: int
    n_init: int = 10
    init: str | np.ndarray = "random"
    random_state: int = 0
    normalize: bool = False

    def fit(self, codebook) -> "KMeans":
        """Cluster the rows of `codebook` (N, d).

        Raises:
            ValueError: not a codebook, or n_clusters outside 1..N.
            ImportError: scikit-learn is not installed.
        """
        rows = as_codebook(codebook)
        k = check_clusters(self.n_clusters, len(rows))
        if self.normalize:
            rows = normalized(rows)
        model: Any = _sklearn_kmeans()(
            n_clusters=k,
            init=self.init,  # type: ignore[arg-type]  # stubs know neither arrays
            n_init=self.n_init,  # type: ignore[arg-type]  # nor numbers
            random_state=self.random_state,
        ).fit(rows)
        self.labels_ = canonical(model.labels_)
        _, first = np.unique(self.labels_, return_index=True)
        self.n_clusters_ = len(first)
        self.cluster_centers_ = model.cluster_centers_[model.labels_[first]]
        self.inertia_ = float(model.inertia_)
        return self


def _sklearn_kmeans():
    try:
        from sklearn.cluster import KMeans as SklearnKMeans
    except ImportError as error:
        raise ImportError(
            "KMeans needs scikit-learn, which comes with `pip install codeclade[eval]`"
        ) from error
    return SklearnKMeans
