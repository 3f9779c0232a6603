"""MASC and DCPE: codebook clusters as cuts of the average-linkage tree.

MASC (arXiv 2510.04220) and DCPE state the same objective, the mean pairwise distance between
members, and merge the closest pair first: on the same rows their partitions coincide.
"""

from dataclasses import dataclass

import numpy as np

from .codebook import as_codebook, check_clusters, normalized
from .linkage import average_labels, average_linkage, cut


def _fit(estimator, rows: np.ndarray, n_clusters: int, metric: str, full: bool) -> None:
    """Set the fitted attributes of a tree estimator."""
    if full:
        linkage = average_linkage(rows, metric=metric)
        estimator.labels_ = cut(linkage, n_clusters)
        estimator.children_ = linkage[:, :2].astype(np.int64)
        estimator.distances_ = linkage[:, 2].copy()
    else:
        estimator.labels_ = average_labels(rows, n_clusters, metric=metric)
    estimator.n_clusters_ = n_clusters


@dataclass
class Masc:
    """Average linkage between codebook rows (MASC, arXiv 2510.04220, eq. 3 and algorithm 1).

    Args:
        n_clusters: clusters K to cut the tree into.
        metric: "euclidean" (the paper's), "sqeuclidean" or "cosine".
        normalize: scale rows to unit length first. The released code clusters raw rows; LlamaGen's
            tokenizer sees only directions, so unit rows are what its decoder sees.
        compute_full_tree: also build the merges above K. Without them `fit` is faster and sets
            `labels_` and `n_clusters_` alone.

    Attributes:
        labels_: (N,) int64 in 0..K-1, clusters numbered by their smallest member.
        n_clusters_: K.
        children_: (N - 1, 2) int64 merged nodes as scikit-learn's AgglomerativeClustering has them.
        distances_: (N - 1,) float64 heights of the merges.
    """

    n_clusters: int
    metric: str = "euclidean"
    normalize: bool = False
    compute_full_tree: bool = True

    def fit(self, codebook) -> "Masc":
        """Cluster the rows of `codebook` (N, d); errors as `average_linkage`."""
        rows = as_codebook(codebook)
        if self.normalize:
            rows = normalized(rows)
        k = check_clusters(self.n_clusters, len(rows))
        _fit(self, rows, k, self.metric, self.compute_full_tree)
        return self


@dataclass
class Dcpe:
    """DCPE as released: average linkage between raw rows, vocabulary divided by `rate`.

    The partition is the one `Masc` finds for the same K on raw rows. Published DCPE weights were
    made with float32 sums and may differ in a few merges: load their map, do not recompute it.

    Args:
        rate: rows per cluster on average; K = N // rate.
        n_clusters: K itself, instead of the rate.
        compute_full_tree: as in `Masc`.

    Attributes:
        labels_, n_clusters_, children_, distances_: as in `Masc`.
    """

    rate: int = 2
    n_clusters: int | None = None
    compute_full_tree: bool = True

    def fit(self, codebook) -> "Dcpe":
        """Cluster the rows of `codebook` (N, d); errors as `average_linkage`."""
        rows = as_codebook(codebook)
        k = self.n_clusters
        if k is None:
            if not 1 <= self.rate <= len(rows):
                raise ValueError(
                    f"rate must be from 1 to the {len(rows)} rows of the codebook, got {self.rate}"
                )
            k = len(rows) // self.rate
        _fit(self, rows, check_clusters(k, len(rows)), "euclidean", self.compute_full_tree)
        return self
