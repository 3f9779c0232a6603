"""The top of the tree: a matrix of exact averages and the nearest-neighbour chain.

With few clusters left a matrix of all their mean distances is small; Lance-Williams updates keep
it exact, and the chain (Benzecri 1982) finds the merges in quadratic time whatever the data.
"""

import numpy as np
from numba import njit, prange

from .forest import WIDE, add_squares, coarse

SIDE = 64  # of the tiles in which the matrix is mirrored
MEMBERS = 8  # of a cluster whose distances to a tile are summed together
TILE = 512  # points per inner loop: what it touches stays in the first-level cache


@njit(cache=True, fastmath={"reassoc", "contract"})
def _tile_of_eight(columns, start, first, last, weight, out):
    """out[j] += sum over i in first..last of weight[i] |columns[:, start + j] - columns[:, i]|.

    For WIDE columns, the common case: unrolled, so that only the roots cost time.
    """
    end = start + out.shape[0]
    c0, c1 = columns[0, start:end], columns[1, start:end]
    c2, c3 = columns[2, start:end], columns[3, start:end]
    c4, c5 = columns[4, start:end], columns[5, start:end]
    c6, c7 = columns[6, start:end], columns[7, start:end]
    for i in range(first, last):
        p0, p1, p2, p3 = columns[0, i], columns[1, i], columns[2, i], columns[3, i]
        p4, p5, p6, p7 = columns[4, i], columns[5, i], columns[6, i], columns[7, i]
        share = weight[i]
        for j in range(out.shape[0]):
            a, b, c, d = c0[j] - p0, c1[j] - p1, c2[j] - p2, c3[j] - p3
            e, f, g, h = c4[j] - p4, c5[j] - p5, c6[j] - p6, c7[j] - p7
            total = (a * a + b * b) + (c * c + d * d) + (e * e + f * f) + (g * g + h * h)
            out[j] += share * np.sqrt(total)


@njit(cache=True, fastmath={"reassoc", "contract"})
def _tile(columns, start, first, last, weight, gaps, out):
    """`_tile_of_eight` for any multiple of WIDE columns."""
    length = out.shape[0]
    for low in range(first, last, gaps.shape[0]):
        count = min(gaps.shape[0], last - low)
        gaps[:count] = 0.0
        for k in range(0, columns.shape[0], WIDE):
            eight = columns[k : k + WIDE, start : start + length]
            add_squares(eight, columns[k : k + WIDE, low : low + count], gaps[:count, :length])
        for i in range(count):
            part, share = gaps[i], weight[low + i]
            for j in range(length):
                out[j] += share * np.sqrt(part[j])


@njit(cache=True)
def _sum_over(weight, values, starts, out):
    """Weighted sums of `values` between consecutive `starts`."""
    for j in range(out.shape[0]):
        total = 0.0
        for i in range(starts[j], starts[j + 1]):
            total += weight[i] * values[i]
        out[j] = total


@njit(cache=True)
def _average_row(columns, weight, starts, size, i, out):
    """Mean distances (M,) from cluster i to the clusters after it; the others are left alone."""
    offset = starts[i]
    sums, gaps = np.zeros(columns.shape[1] - offset), np.empty((MEMBERS, TILE))
    for low in range(0, sums.shape[0], TILE):
        part = sums[low : low + TILE]
        if columns.shape[0] == WIDE:
            _tile_of_eight(columns, offset + low, offset, starts[i + 1], weight, part)
        else:
            _tile(columns, offset + low, offset, starts[i + 1], weight, gaps, part)
    _sum_over(weight[offset:], sums, starts[i + 1 :] - offset, out[i + 1 :])
    out[i] = np.inf
    for j in range(i + 1, out.shape[0]):
        out[j] /= size[i] * size[j]


@njit(parallel=True, cache=True)
def average_rows(columns, weight, starts, size, top, step, out):
    """Rows top, top + step, ... of the matrix of mean Euclidean distances, right of the diagonal.

    Args:
        columns: (d, C) points sorted by cluster, d a multiple of WIDE; weight: (C,).
        starts: (M + 1,) first point of each cluster; size: (M,) its weight.
        out: (M, M).
    """
    for part in prange((out.shape[0] - top + step - 1) // step):
        i = top + step * np.int64(part)  # prange counts unsigned, and mixing signs makes floats
        _average_row(columns, weight, starts, size, i, out[i])


@njit(parallel=True, cache=True)
def mirror(matrix):
    """Copy what is right of the diagonal to the left of it, tile by tile."""
    m = matrix.shape[0]
    for part in prange((m + SIDE - 1) // SIDE):
        low = np.int64(part) * SIDE
        for left in range(0, low + SIDE, SIDE):
            for i in range(low, min(low + SIDE, m)):
                for j in range(left, min(left + SIDE, i)):
                    matrix[i, j] = matrix[j, i]


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
