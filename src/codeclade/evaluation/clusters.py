"""Statistics of partitions moved to codeclade.metrics.clusters."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "random_like": "metrics.clusters",
        "size_spread": "metrics.clusters",
        "in_cluster_distance": "metrics.clusters",
        "leaf_order": "metrics.clusters",
        "cophenetic_correlation": "metrics.clusters",
        "cluster_entropy": "metrics.clusters",
    },
)
