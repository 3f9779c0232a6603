"""A random partition: the control that any clustering must beat."""

from dataclasses import KW_ONLY, dataclass

import numpy as np

from .codebook import CodebookLike, canonical, check_clusters
from .estimator import CodebookClusterer


def random_labels(n: int, n_clusters: int, seed: int) -> np.ndarray:
    """Random labels (n,) int64 of clusters whose sizes differ by at most one."""
    # remainders of a permutation: sizes differ by one at most, without rejection or repair
    order = np.random.default_rng(seed).permutation(n)
    return canonical(order % n_clusters)


@dataclass(eq=False, repr=False)
class RandomPartition(CodebookClusterer):
    """Random clusters whose sizes differ by at most one.

    Args:
        n_clusters: clusters K.
        random_state: seed.

    Attributes:
        labels_: (N,) int64, clusters numbered by their smallest member.
        n_clusters_: K.
    """

    n_clusters: int = 8
    _: KW_ONLY
    random_state: int = 0

    def fit(self, X: CodebookLike, y: object = None) -> "RandomPartition":
        """Partition the rows of X (N, d), whose values do not matter.

        Raises:
            ValueError: not a codebook, or n_clusters outside 1..N.
        """
        n = len(self._rows(X))
        k = check_clusters(self.n_clusters, n)
        self.labels_ = random_labels(n, k, self.random_state)
        self.n_clusters_ = k
        return self
