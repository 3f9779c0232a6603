"""Moved to codeclade.metrics.clusters."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "random_like": "metrics.clusters.random_like",
        "size_spread": "metrics.clusters.size_spread",
        "in_cluster_distance": "metrics.clusters.in_cluster_distance",
        "leaf_order": "metrics.clusters.leaf_order",
        "cophenetic_correlation": "metrics.clusters.cophenetic_correlation",
        "cluster_entropy": "metrics.clusters.cluster_entropy",
    },
)
