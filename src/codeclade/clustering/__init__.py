"""Clustering of codebooks: arrays in, labels and trees out.

Names load on first use, so that importing the package compiles nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker and an editor see
    from .balanced import BalancedKMeans
    from .kmeans import KMeans
    from .linkage import average_labels, average_linkage, cut
    from .random_partition import RandomPartition
    from .registry import METHODS, make
    from .trees import Dcpe, Masc

__all__ = [
    "METHODS",
    "BalancedKMeans",
    "Dcpe",
    "KMeans",
    "Masc",
    "RandomPartition",
    "average_labels",
    "average_linkage",
    "cut",
    "make",
]

_MODULES = {
    "METHODS": "registry",
    "BalancedKMeans": "balanced",
    "Dcpe": "trees",
    "KMeans": "kmeans",
    "Masc": "trees",
    "RandomPartition": "random_partition",
    "average_labels": "linkage",
    "average_linkage": "linkage",
    "cut": "linkage",
    "make": "registry",
}


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
