"""Clustering methods by name, for command lines and recipes."""

from typing import Any

from .balanced import BalancedKMeans
from .codebook import choose
from .estimator import CodebookClusterer
from .kmeans import KMeans
from .random_partition import RandomPartition
from .trees import Dcpe, Masc

METHODS: dict[str, type[CodebookClusterer]] = {
    "masc": Masc,
    "dcpe": Dcpe,
    "kmeans": KMeans,
    "balanced": BalancedKMeans,
    "random": RandomPartition,
}


def make(name: str, **settings: Any) -> CodebookClusterer:
    """The estimator registered as `name`, with settings of its constructor.

    Raises:
        ValueError: no method has that name, or the method has no such setting.
    """
    method = METHODS[choose("method", name, METHODS)]
    for setting in settings:
        choose(f"setting of the method {name}", setting, method._get_param_names())
    return method(**settings)
