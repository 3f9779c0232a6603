"""Clustering methods by name, for command lines and recipes."""

from .balanced import BalancedKMeans
from .codebook import choose
from .kmeans import KMeans
from .random_partition import RandomPartition
from .trees import Dcpe, Masc

METHODS = {
    "masc": Masc,
    "dcpe": Dcpe,
    "kmeans": KMeans,
    "balanced": BalancedKMeans,
    "random": RandomPartition,
}


def make(name: str, **options):
    """The estimator registered as `name`, with its constructor's options.

    Raises:
        ValueError: no method has that name.
    """
    return METHODS[choose("method", name, METHODS)](**options)
