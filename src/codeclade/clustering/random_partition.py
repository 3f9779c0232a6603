"""A random partition: the control that any clustering must beat."""

from dataclasses import dataclass

import numpy as np

from .codebook import as_codebook, canonical, check_clusters


@dataclass
class RandomPartition:
    """Random clusters whose sizes differ by at most one.

    Args:
        n_clusters: clusters K.
        random_state: seed.

    Attributes:
        labels_: (N,) int64, clusters numbered by their smallest member.
        n_clusters_: K.
    """

    n_clusters: int
    random_state: int = 0

    def fit(self, codebook) -> "RandomPartition":
        """Partition the rows of `codebook` (N, d), whose values do not matter.

        Raises:
            ValueError: not a codebook, or n_clusters outside 1..N.
        """
        n = len(as_codebook(codebook))
        k = check_clusters(self.n_clusters, n)
        order = np.random.default_rng(self.random_state).permutation(n)
        self.labels_ = canonical(order % k)
        self.n_clusters_ = k
        return self
