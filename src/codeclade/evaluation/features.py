"""Moved to codeclade.metrics."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "frechet_distance": "metrics.distances.frechet_distance",
        "kernel_distance": "metrics.distances.kernel_distance",
    },
)
