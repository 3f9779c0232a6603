"""MASC and DCPE: codebook clusters as cuts of the average-linkage tree.

MASC (arXiv 2510.04220) and DCPE state the same objective, the mean pairwise distance between
members, and merge the closest pair first: on the same rows their partitions coincide.
"""

from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from .codebook import CodebookLike, check_clusters, normalized
from .estimator import CodebookClusterer
from .linkage import average_labels, average_linkage, cut


class TreeClusterer(CodebookClusterer):
    """What Masc and Dcpe share: a tree of merges and its cuts.

    Attributes:
        children_: (N - 1, 2) int64 merged nodes as scikit-learn's AgglomerativeClustering has them.
        distances_: (N - 1,) float64 heights of the merges.
        n_leaves_: rows N of the codebook.
    """

    children_: np.ndarray
    distances_: np.ndarray

    def cut(self, n_clusters: int) -> np.ndarray:
        """Labels (N,) int64 of the fitted tree at another number of clusters.

        Raises:
            NotFittedError: before `fit`, or after one without the full tree.
            ValueError: n_clusters is outside 1..N.
        """
        check_is_fitted(self, "children_")
        return cut(self.children_, n_clusters)

    def _cluster(
        self,
        rows: np.ndarray,
        n_clusters: int,
        metric: str,
        full: bool,
        weights: ArrayLike | None,
        device: str,
    ) -> None:
        """Set the fitted attributes; without the full tree those of an earlier fit go."""
        for stale in ("children_", "distances_"):
            if hasattr(self, stale):
                delattr(self, stale)
        # labels alone need only the merges below the cut, and the search stops once these are
        # certain
        if full:
            linkage = average_linkage(rows, metric=metric, weights=weights, device=device)
            self.labels_ = cut(linkage, n_clusters)
            self.children_ = linkage[:, :2].astype(np.int64)
            self.distances_ = linkage[:, 2].copy()
        else:
            self.labels_ = average_labels(
                rows, n_clusters, metric=metric, weights=weights, device=device
            )
        self.n_clusters_, self.n_leaves_ = n_clusters, len(rows)


@dataclass(eq=False, repr=False)
class Masc(TreeClusterer):
    """Average linkage between codebook rows (MASC, arXiv 2510.04220, eq. 3 and algorithm 1).

    Args:
        n_clusters: clusters K to cut the tree into.
        metric: "euclidean" (the paper's), "sqeuclidean" or "cosine".
        normalize: scale rows to unit length first. The released code clusters raw rows; LlamaGen's
            tokenizer sees only directions, so unit rows are what its decoder sees.
        compute_full_tree: also build the merges above K. Without them `fit` is faster and sets
            neither `children_` nor `distances_`.
        device: "cuda" finishes the tree there: the same partition, faster for many rows.

    Attributes:
        labels_: (N,) int64 in 0..K-1, clusters numbered by their smallest member.
        n_clusters_: K.
        children_, distances_, n_leaves_: as in `TreeClusterer`.
    """

    n_clusters: int = 8
    _: KW_ONLY
    metric: str = "euclidean"  # or sqeuclidean, cosine: distance between codes
    normalize: bool = False
    compute_full_tree: bool = True  # also the merges above K, which the map keeps
    device: str = "cpu"  # cuda finishes the tree there: the same partition

    def fit(self, X: CodebookLike, y: object = None, weights: ArrayLike | None = None) -> "Masc":
        """Cluster the rows of X (N, d), with weights (N,); errors as `average_linkage`."""
        rows = self._rows(X)
        if self.normalize:
            rows = normalized(rows)
        k = check_clusters(self.n_clusters, len(rows))
        self._cluster(rows, k, self.metric, self.compute_full_tree, weights, self.device)
        return self


@dataclass(eq=False, repr=False)
class Dcpe(TreeClusterer):
    """DCPE as released: average linkage between raw rows, vocabulary divided by `rate`.

    The partition is the one `Masc` finds for the same K on raw rows. Published DCPE weights were
    made with float32 sums and may differ in a few merges: load their map, do not recompute it.

    Args:
        rate: rows per cluster on average; K = N // rate.
        n_clusters: K itself, instead of the rate.
        compute_full_tree, device: as in `Masc`.

    Attributes:
        labels_, n_clusters_, children_, distances_, n_leaves_: as in `Masc`.
    """

    _: KW_ONLY
    rate: int = 2
    n_clusters: int | None = None
    compute_full_tree: bool = True  # also the merges above K, which the map keeps
    device: str = "cpu"  # cuda finishes the tree there: the same partition

    def fit(self, X: CodebookLike, y: object = None, weights: ArrayLike | None = None) -> "Dcpe":
        """Cluster the rows of X (N, d), with weights (N,); errors as `average_linkage`."""
        rows = self._rows(X)
        k = self.n_clusters
        if k is None:
            if not 1 <= self.rate <= len(rows):
                raise ValueError(
                    f"rate must be from 1 to the {len(rows)} rows of the codebook, got {self.rate}"
                )
            k = len(rows) // self.rate
        k = check_clusters(k, len(rows))
        self._cluster(rows, k, "euclidean", self.compute_full_tree, weights, self.device)
        return self
