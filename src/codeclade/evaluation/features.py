"""Features and distances moved to codeclade.metrics."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "Features": "metrics.features",
        "FEATURE_SIZE": "metrics.features",
        "frechet_distance": "metrics.distances",
        "kernel_distance": "metrics.distances",
    },
)
