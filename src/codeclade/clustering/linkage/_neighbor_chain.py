"""The nearest-neighbor chain on a matrix of distances.

The chain (Benzecri 1982) walks from cluster to nearest neighbor until two are each other's, merges
these and goes on from the rest of the walk, which reducibility keeps valid. Every merge adds at
most two links, so M clusters take at most 3 M looks at a row: O(M^2) whatever the data.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from .._arithmetic import TIE

MERGES = 512  # per call into compiled code, so that an interrupt is heard


@njit(cache=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def _least(row):
    """The least value of a row."""
    least = row[0]
    for value in row:
        least = min(least, value)
    return least


@njit(cache=True)
def _nearest(row):
    """First column that holds the least value, to 12 digits: clusters are in the order of their
    smallest members, so this is the documented order of ties."""
    tied = _least(row) * (1 + TIE)
    for j in range(row.shape[0]):
        if row[j] <= tied:
            return j
    return -1


@njit(cache=True)
def _lance_williams(matrix, size, a, b, active):
    """Cluster a takes in cluster b: D(a + b, j) = (|a| D(a, j) + |b| D(b, j)) / (|a| + |b|)."""
    total = size[a] + size[b]
    share_a, share_b = size[a] / total, size[b] / total
    for j in range(matrix.shape[1]):
        matrix[a, j] = share_a * matrix[a, j] + share_b * matrix[b, j]
    for j in active:
        if j >= 0 and j != a and j != b:
            matrix[j, a] = matrix[a, j]
            matrix[j, b] = np.inf
    matrix[a, a] = matrix[a, b] = np.inf
    size[a] = total


@njit(cache=True)
def _chain(matrix, size, active, links, merges):
    """Fill `merges` (some, 3) with the next pairs of rows, lower first, and their distance.

    Args:
        matrix: (M, M or wider) mean distances, infinite elsewhere; changed in place.
        size: (M,) weights; active: (M,) int64 row numbers, -1 where merged; both changed.
        links: (M + 1,) int64, the chain and at the end its length; changed.
    """
    length = links[-1]
    for step in range(merges.shape[0]):
        # extend the chain until its last two links are each other's nearest neighbor
        while True:
            if length == 0:
                for j in active:
                    if j >= 0:
                        links[0], length = j, 1
                        break
            tip = links[length - 1]
            other = _nearest(matrix[tip])
            if length > 1 and other == links[length - 2]:
                break
            if length == links.shape[0] - 1:
                length = 0  # rounding closed a circle: start again from the tip
                links[0] = tip
            links[length] = other
            length += 1
        # merge them; distances along the chain fell, so what is left of it is still a chain
        length -= 2
        a, b = min(tip, other), max(tip, other)
        merges[step, 0], merges[step, 1], merges[step, 2] = a, b, matrix[a, b]
        active[b] = -1
        _lance_williams(matrix, size, a, b, active)
    links[-1] = length


def merge_all(matrix: np.ndarray, size: np.ndarray, advance: Callable[[int], object]) -> np.ndarray:
    """All merges (M - 1, 3) of the clusters of a distance matrix: rows, lower first, and height.

    Args:
        matrix: (M, M or wider) mean distances, infinite elsewhere; changed in place.
        size: (M,) weights of the clusters, which are in the order of their smallest members.
        advance: called with numbers of merges as they are made.
    """
    merges = np.empty((len(size) - 1, 3))
    size, active = size.copy(), np.arange(len(size))
    links = np.zeros(len(size) + 1, np.int64)
    for start in range(0, len(merges), MERGES):
        part = merges[start : start + MERGES]
        _chain(matrix, size, active, links, part)
        advance(len(part))
    return merges
