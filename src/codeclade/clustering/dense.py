"""The top of the tree: a matrix of exact averages and the nearest-neighbour chain.

With few clusters left a matrix of all their mean distances is small; Lance-Williams updates keep
it exact, and the chain (Benzecri 1982) finds the merges in quadratic time whatever the data.
"""

import numpy as np
from numba import njit, prange

from .forest import WIDE, add_squares, coarse

SIDE = 64  # of the tiles in which the matrix is mirrored
BUNDLE = 8  # clusters whose rows of the matrix are made together
MEMBERS = 8  # points whose distances to a tile are summed together
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
def _tile(columns, start, end, first, owners, weight, gaps, out):
    """out[owners[i], j] += weight[first + i] |columns[:, start + j] - columns[:, first + i]|.

    For any multiple of WIDE columns; `out` begins at the point `start`.
    """
    count = owners.shape[0]
    gaps[:] = 0.0
    for k in range(0, columns.shape[0], WIDE):
        add_squares(columns, columns, k, start, end, first, count, gaps)
    for i in range(count):
        part, share, line = gaps[i], weight[first + i], out[owners[i]]
        for j in range(end - start):
            line[j] += share * np.sqrt(part[j])


@njit(cache=True)
def _sum_over(weight, values, starts, out):
    """Weighted sums of `values` between consecutive `starts`."""
    for j in range(out.shape[0]):
        total = 0.0
        for i in range(starts[j], starts[j + 1]):
            total += weight[i] * values[i]
        out[j] = total


@njit(cache=True)
def _average_row(columns, weight, starts, size, i, sums, out):
    """Mean distances from cluster i to the clusters after it, from sums over points after it."""
    line = out[i, i + 1 : size.shape[0]]
    _sum_over(weight, sums, starts[i + 1 :], line)
    out[i, i] = np.inf
    for j in range(line.shape[0]):
        line[j] /= size[i] * size[i + 1 + j]


@njit(cache=True)
def _average_bundle(columns, weight, starts, size, low, high, sums, gaps, out):
    """Mean distances from each of the clusters low..high to the clusters after it."""
    first, last, count = starts[low], starts[high], columns.shape[1]
    sums[:, first:] = 0.0
    owners = np.empty(last - first, np.int64)
    for i in range(low, high):
        owners[starts[i] - first : starts[i + 1] - first] = i - low
    for left in range(first, count, TILE):
        right = min(left + TILE, count)
        if columns.shape[0] == WIDE:
            for i in range(low, high):
                line = sums[i - low, left:right]
                _tile_of_eight(columns, left, starts[i], starts[i + 1], weight, line)
            continue
        for begin in range(first, last, MEMBERS):
            some = owners[begin - first : begin - first + MEMBERS]
            _tile(columns, left, right, begin, some, weight, gaps, sums[:, left:right])
    for i in range(low, high):
        _average_row(columns, weight, starts, size, i, sums[i - low], out)


@njit(cache=True)
def _average_bundles(columns, weight, starts, size, bundle, top, step, out):
    """Bundles top, top + step, ... of rows, for one thread."""
    sums, gaps = np.empty((bundle, columns.shape[1])), np.empty((MEMBERS, TILE))
    for low in range(bundle * top, size.shape[0], bundle * step):
        high = min(low + bundle, size.shape[0])
        _average_bundle(columns, weight, starts, size, low, high, sums, gaps, out)


def empty_matrix(count: int) -> np.ndarray:
    """Room for a count x count matrix; infinite columns keep its rows off powers of two apart,
    where walking down a column would use a single set of the cache."""
    width = -(-count // 8) * 8
    width += 8 if width % 64 == 0 else 0
    matrix = np.empty((count, width))
    matrix[:, count:] = np.inf
    return matrix


@njit(parallel=True, cache=True)
def average_rows(columns, weight, starts, size, threads, top, step, out):
    """Mean Euclidean distances, right of the diagonal, of bundles top, top + step, ... of rows.

    Args:
        columns: (d, C) points sorted by cluster, d a multiple of WIDE; weight: (C,).
        starts: (M + 1,) first point of each cluster; size: (M,) its weight.
        out: (M, M or wider).
    """
    bundle = 1 if columns.shape[0] == WIDE else BUNDLE  # one row at a time stays in the cache
    for part in prange(threads):
        mine = top + step * np.int64(part)  # prange counts unsigned, and mixing signs makes floats
        _average_bundles(columns, weight, starts, size, bundle, mine, step * threads, out)


@njit(parallel=True, cache=True)
def mirror(matrix):
    """Copy what is right of the diagonal to the left of it, tile by tile."""
    m = matrix.shape[0]
    for part in prange((m + SIDE - 1) // SIDE):
        low = np.int64(part) * SIDE
        for left in range(0, low + 1, SIDE):
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
    for j in range(matrix.shape[1]):
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
        matrix: (M, M or wider) mean distances, infinite elsewhere; changed in place.
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
