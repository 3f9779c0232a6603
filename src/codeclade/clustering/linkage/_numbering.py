"""Merges as pairs of members turned into SciPy's numbering and into labels, by union-find."""

import numpy as np
from numba import njit


@njit(cache=True)
def _find(parent, i):
    """Root of i, halving the path on the way: near constant time on average."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True)
def scipy_linkage(pairs, heights, n):
    """SciPy's (M, 4) linkage matrix of merges given as pairs of members, in order of height."""
    # a cluster's number is n + the row that made it, so the root of a member is the number that
    # SciPy gives to its cluster: near O(n) for the whole tree
    out = np.empty((pairs.shape[0], 4))
    parent, size = np.arange(2 * n), np.ones(2 * n)
    for i in range(pairs.shape[0]):
        a, b = _find(parent, pairs[i, 0]), _find(parent, pairs[i, 1])
        parent[a] = parent[b] = n + i
        size[n + i] = size[a] + size[b]
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = min(a, b), max(a, b), heights[i], size[n + i]
    return out


@njit(cache=True)
def labels_of_pairs(pairs, n):
    """Labels (n,) of the partition that joins the given pairs of members.

    The root of a set is its smallest member, so one pass numbers the clusters by smallest member.
    """
    parent = np.arange(n)
    for i in range(pairs.shape[0]):
        a, b = _find(parent, pairs[i, 0]), _find(parent, pairs[i, 1])
        parent[max(a, b)] = min(a, b)
    labels, count = np.empty(n, np.int64), 0
    for i in range(n):
        # a root is never above its members, so it has its label by now
        root = _find(parent, i)
        if root == i:
            labels[i] = count
            count += 1
        else:
            labels[i] = labels[root]
    return labels


@njit(cache=True)
def labels_of_linkage(children, n, merges):
    """Labels (n,) after the first `merges` rows of a linkage matrix."""
    member = np.arange(n + merges)  # some member of every node of the tree
    pairs = np.empty((merges, 2), np.int64)
    for i in range(merges):
        pairs[i, 0], pairs[i, 1] = member[children[i, 0]], member[children[i, 1]]
        member[n + i] = pairs[i, 0]
    return labels_of_pairs(pairs, n)
