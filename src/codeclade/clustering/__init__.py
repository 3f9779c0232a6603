"""Clustering of codebooks: arrays in, labels and trees out.

Names load on first use, so that importing the package compiles nothing.
"""

import importlib

_PUBLIC = {
    "average_linkage": "linkage",
    "average_labels": "linkage",
    "cut": "linkage",
    "Masc": "trees",
    "Dcpe": "trees",
    "KMeans": "kmeans",
    "BalancedKMeans": "balanced",
    "RandomPartition": "random_partition",
    "METHODS": "registry",
    "make": "registry",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
