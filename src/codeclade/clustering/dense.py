"""The top of the tree: a matrix of exact averages and the nearest-neighbour chain.

With few clusters left a matrix of all their mean distances is small; Lance-Williams updates keep
it exact, and the chain (Benzecri 1982) finds the merges in quadratic time whatever the data.
"""

import numpy as np
from numba import njit, prange

from .forest import coarse

TILE = 256  # points per inner loop: their distances stay in the first-level cache


@njit(cache=True, fastmath={"reassoc", "contract"})
def _add_distances(columns, start, point, weight, out):
    """out[j] += weight * |columns[:, start + j] - point| for all j."""
    gaps = np.empty(TILE)
    for low in range(0, out.shape[0], TILE):
        length = min(TILE, out.shape[0] - low)
        part = gaps[:length]
        part[:] = 0.0
        for k in range(columns.shape[0]):
            value = point[k]
            column = columns[k, start + low : start + low + length]
            for j in range(length):
                difference = column[j] - value
                part[j] += difference * difference
        for j in range(length):
            out[low + j] += weight * np.sqrt(part[j])


@njit(parallel=True, cache=True)
def average_rows(columns, weight, starts, size, top, bottom, out):
    """Rows top..bottom of the matrix of mean Euclidean distances between clusters.

    Args:
        columns: (d, C) points sorted by cluster; weight: (C,).
        starts: (M + 1,) first point of each cluster; size: (M,) its weight.
        out: (M, M), filled on both sides of the diagonal.
    """
    clusters = starts.shape[0] - 1
    for row in prange(top, bottom):
        i = np.int64(row)
        offset = starts[i]
        sums = np.zeros(columns.shape[1] - offset)
        for member in range(offset, starts[i + 1]):
            point = columns[:, member].copy()
            _add_distances(columns, offset, point, weight[member], sums)
        out[i, i] = np.inf
        for j in range(i + 1, clusters):
            total = 0.0
            for other in range(starts[j] - offset, starts[j + 1] - offset):
                total += weight[offset + other] * sums[other]
            out[i, j] = out[j, i] = total / (size[i] * size[j])


@njit(parallel=True, cache=True)
def squared_rows(mean, variance, out):
    """Matrix of mean squared distances between clusters, from their means and variances."""
    for row in prange(mean.shape[0]):
        i = np.int64(row)  # prange counts unsigned, and mixing signs makes floats
        out[i, i] = np.inf
        for j in range(mean.shape[0]):
            if i != j:
                a, b = min(i, j), max(i, j)
                total = variance[a] + variance[b]
                for k in range(mean.shape[1]):
                    total += (mean[a, k] - mean[b, k]) ** 2
                out[i, j] = total


@njit(cache=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def _least(row):
    least = row[0]
    for value in row:
        least = min(least, value)
    return least


@njit(cache=True)
def _nearest(row):
    """First column that holds the least value, to 12 digits."""
    enough = coarse(_least(row))
    for j in range(row.shape[0]):
        if coarse(row[j]) <= enough:
            return j
    return -1


@njit(cache=True)
def _absorb(matrix, size, a, b, living):
    """Lance-Williams: cluster a takes in cluster b."""
    total = size[a] + size[b]
    share_a, share_b = size[a] / total, size[b] / total
    for j in range(matrix.shape[0]):
        matrix[a, j] = share_a * matrix[a, j] + share_b * matrix[b, j]
    for j in living:
        if j >= 0 and j != a and j != b:
            matrix[j, a] = matrix[a, j]
            matrix[j, b] = np.inf
    matrix[a, a] = matrix[a, b] = np.inf
    size[a] = total


@njit(cache=True)
def chain(matrix, size, living, links, heights, steps):
    """Merge `steps` pairs by the nearest-neighbour chain.

    Args:
        matrix: (M, M) mean distances, infinite on the diagonal; changed in place.
        size: (M,) weights; living: (M,) int64 row numbers, -1 where merged; both changed.
        links: (M + 1,) int64, the chain and at the end its length; changed.
        heights: (steps, 3) filled with lower row, higher row, height.
    """
    length = links[-1]
    for step in range(steps):
        while True:
            if length == 0:
                for j in living:
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
        length -= 2
        a, b = min(tip, other), max(tip, other)
        heights[step, 0], heights[step, 1], heights[step, 2] = a, b, matrix[a, b]
        living[b] = -1
        _absorb(matrix, size, a, b, living)
    links[-1] = length
