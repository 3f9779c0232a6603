"""The matrix of all mean distances between the clusters that are left.

With M clusters it takes M^2 numbers and N^2 d / 2 operations, whatever the data: where the search
by bounds no longer pays, `_neighbor_chain` finishes the tree on it.
"""

import numpy as np
from numba import get_num_threads, njit, prange

from .._arithmetic import LANES, add_squared_distances
from ._clusters import Clusters, members_by_cluster
from ._neighbor_chain import width_for
from ._products import add_mean_distances, blocks_of_products, set_squared_distances

MIRROR_TILE = 64  # side of the tiles in which the matrix is mirrored
BUNDLE = 8  # clusters whose rows of the matrix are made together
MEMBERS = 8  # points whose distances to a tile are summed together
TILE = 512  # points per inner loop: what it touches stays in the first-level cache
PRODUCTS = 24  # columns from which products in BLAS beat differences
SLICE = 2048  # members per call into compiled code, so that an interrupt is heard


@njit(cache=True, fastmath={"reassoc", "contract"})
def _add_distances_of_eight(columns, start, first, last, weight, out):
    """out[j] += sum over i in first..last of weight[i] |columns[:, start + j] - columns[:, i]|.

    For LANES columns, the common case: unrolled, so that only the roots cost time.
    """
    # slices with names, not one two-dimensional block: so that the compiler sees eight streams that
    # it can load side by side
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
def _add_distances(columns, start, end, first, owners, weight, squares, out):
    """out[owners[i], j] += weight[first + i] |columns[:, start + j] - columns[:, first + i]|.

    For any multiple of LANES columns; `out` begins at the point `start`.
    """
    count = owners.shape[0]
    squares[:] = 0.0
    for k in range(0, columns.shape[0], LANES):
        add_squared_distances(columns, columns, k, start, end, first, count, squares)
    for i in range(count):
        part, share, line = squares[i], weight[first + i], out[owners[i]]
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
def _average_row(weight, starts, size, i, sums, out):
    """Mean distances from cluster i to the clusters after it, from sums over points after it."""
    line = out[i, i + 1 : size.shape[0]]
    _sum_over(weight, sums, starts[i + 1 :], line)
    out[i, i] = np.inf
    for j in range(line.shape[0]):
        line[j] /= size[i] * size[i + 1 + j]


@njit(cache=True)
def _average_bundle(columns, weight, starts, size, low, high, sums, squares, out):
    """Mean distances from each of the clusters low..high to the clusters after it."""
    # sums[i, j]: of the distances from the members of cluster low + i to point j
    first, last, count = starts[low], starts[high], columns.shape[1]
    sums[:, first:] = 0.0
    # a bundle of clusters shares each tile of points: the tile is read once for all of them
    owners = np.empty(last - first, np.int64)
    for i in range(low, high):
        owners[starts[i] - first : starts[i + 1] - first] = i - low
    # tile after tile of points, so that coordinates are read from the cache
    for left in range(first, count, TILE):
        right = min(left + TILE, count)
        if columns.shape[0] == LANES:
            for i in range(low, high):
                line = sums[i - low, left:right]
                _add_distances_of_eight(columns, left, starts[i], starts[i + 1], weight, line)
            continue
        for begin in range(first, last, MEMBERS):
            some = owners[begin - first : begin - first + MEMBERS]
            _add_distances(columns, left, right, begin, some, weight, squares, sums[:, left:right])
    # points of one cluster lie side by side: sum them and divide by the number of pairs
    for i in range(low, high):
        _average_row(weight, starts, size, i, sums[i - low], out)


@njit(cache=True)
def _average_bundles(columns, weight, starts, size, bundle, top, step, out):
    """Bundles top, top + step, ... of rows, for one thread."""
    sums, squares = np.empty((bundle, columns.shape[1])), np.empty((MEMBERS, TILE))
    for low in range(bundle * top, size.shape[0], bundle * step):
        high = min(low + bundle, size.shape[0])
        _average_bundle(columns, weight, starts, size, low, high, sums, squares, out)


@njit(parallel=True, cache=True)
def _average_rows(columns, weight, starts, size, threads, top, step, out):
    """Mean Euclidean distances, right of the diagonal, of bundles top, top + step, ... of rows.

    Args:
        columns: (d, C) points sorted by cluster, d a multiple of LANES; weight: (C,).
        starts: (M + 1,) first point of each cluster; size: (M,) its weight.
        out: (M, M or wider).
    """
    # every thread makes rows of its own, so no two add to one number
    bundle = 1 if columns.shape[0] == LANES else BUNDLE  # one row at a time stays in the cache
    for part in prange(threads):
        mine = top + step * np.int64(part)  # prange counts unsigned, and mixing signs makes floats
        _average_bundles(columns, weight, starts, size, bundle, mine, step * threads, out)


@njit(parallel=True, cache=True)
def _mirror(matrix):
    """Copy what is right of the diagonal to the left of it, tile by tile."""
    # tiles, for a walk down a column uses one number of each line of cache; what is written lies
    # left of the diagonal, what is read right of it, so the threads do not meet
    m = matrix.shape[0]
    for part in prange((m + MIRROR_TILE - 1) // MIRROR_TILE):
        low = np.int64(part) * MIRROR_TILE
        for left in range(0, low + 1, MIRROR_TILE):
            for i in range(low, min(low + MIRROR_TILE, m)):
                for j in range(left, min(left + MIRROR_TILE, i)):
                    matrix[i, j] = matrix[j, i]


@njit(parallel=True, cache=True)
def _squared_rows(mean, variance, out):
    """Matrix of mean squared distances between clusters, from their means and variances."""
    for row in prange(mean.shape[0]):
        # |mA - mB|^2 + vA + vB is the mean squared distance itself: M^2 d operations, no members.
        # Either half of the matrix adds in the same order and so has the same bits
        i = np.int64(row)  # prange counts unsigned, and mixing signs makes floats
        out[i, i] = np.inf
        for j in range(mean.shape[0]):
            if i != j:
                a, b = min(i, j), max(i, j)
                total = variance[a] + variance[b]
                for k in range(mean.shape[1]):
                    total += (mean[a, k] - mean[b, k]) ** 2
                out[i, j] = total


def distance_matrix(clusters: Clusters, slots: np.ndarray, euclidean: bool) -> np.ndarray:
    """Mean distances between the clusters `slots` (M,), infinite on the diagonal.

    Returns:
        (M, width_for(M)) float64; the columns from M on are room for `merge_all`.
    """
    matrix = np.empty((len(slots), width_for(len(slots))))
    # in many dimensions BLAS wins, although rounding makes it compute close pairs again
    if clusters.rows.shape[1] >= PRODUCTS:
        _fill_by_products(clusters, slots, euclidean, matrix)
        _mirror(matrix)
        return matrix
    # means and variances give mean squared distances exactly: nothing is summed over members
    if not euclidean:
        _squared_rows(clusters.mean[slots], clusters.variance[slots], matrix)
        return matrix
    # half of the pairs of points, sorted by cluster; thread by thread, slice by slice
    members, starts = members_by_cluster(clusters, slots)
    columns = np.ascontiguousarray(clusters.rows[members].T)
    weight, size = clusters.weight[members], clusters.size[slots]
    # rows shorten from top to bottom, so each slice takes every step-th bundle: all take about as
    # long
    step = -(-len(members) // SLICE)
    for top in range(step):
        _average_rows(columns, weight, starts, size, 4 * get_num_threads(), top, step, matrix)
    _mirror(matrix)
    return matrix


def _fill_by_products(
    clusters: Clusters, slots: np.ndarray, euclidean: bool, matrix: np.ndarray
) -> None:
    """Fill the matrix right of the diagonal, which becomes infinite, by matrix products."""
    if not euclidean:
        means, variance = clusters.mean[slots], clusters.variance[slots]
        for first, norms, products in blocks_of_products(means):
            set_squared_distances(means, norms, variance, first, products, matrix)
    else:
        matrix[:, : len(slots)] = 0.0
        members, starts = members_by_cluster(clusters, slots)
        points, weight = clusters.rows[members], clusters.weight[members]
        # blocks of points cut through clusters, so sums grow from block to block and are divided
        # once, at the end; N^2 d / 2 multiplications
        owner = np.repeat(np.arange(len(slots)), np.diff(starts))
        for first, norms, products in blocks_of_products(points):
            low, high = owner[first], owner[first + len(products) - 1] + 1
            add_mean_distances(
                points, norms, weight, owner, starts, first, low, high, products, matrix
            )
        _divide_by_pairs(clusters.size[slots], matrix)
    np.fill_diagonal(matrix, np.inf)


@njit(parallel=True, cache=True)
def _divide_by_pairs(size, matrix):
    """Sums right of the diagonal become means."""
    for row in prange(size.shape[0]):
        i = np.int64(row)
        for j in range(i + 1, size.shape[0]):
            matrix[i, j] /= size[i] * size[j]
