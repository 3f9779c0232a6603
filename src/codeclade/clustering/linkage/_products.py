"""Distances between many points in many dimensions, from matrix products.

|a - b|^2 = |a|^2 + |b|^2 - 2 a.b leaves nearly all the work to BLAS. Rounding is relative to
|a|^2 + |b|^2, so rows are centered first, and where a distance is small beside the norms it is
computed anew from the difference: what remains is off by less than 1e-13, below what a tie is.
"""

from collections.abc import Iterator

import numpy as np
from numba import njit, prange

from .._arithmetic import squared_distance

CLOSE = 2.0**-6  # squared distances below this part of |a|^2 + |b|^2 are computed anew
BLOCK = 256  # points whose products with all later points are made together


@njit(cache=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def _from_products(norm, norms, products, out):
    """Squared distances (C,) in place of products; the least part of the norms any of them is."""
    # a small difference of large norms has lost digits; whether any has is found in the same sweep
    # of vector instructions, and only then are pairs looked at one by one
    margin = np.inf
    for j in range(out.shape[0]):
        total = norm + norms[j]
        out[j] = total - 2 * products[j]
        margin = min(margin, out[j] - CLOSE * total)
    return margin


@njit(cache=True)
def squared_line(points, norms, i, start, products, out):
    """Squared distances from point i to the points start, start + 1, ...

    Args:
        products: of point i with the same points.
        out: (C - start,) filled.
    """
    margin = _from_products(norms[i], norms[start:], products, out)
    if margin < 0:
        for j in range(out.shape[0]):
            if out[j] < CLOSE * (norms[i] + norms[start + j]):
                out[j] = squared_distance(points[i], points[start + j])


@njit(parallel=True, cache=True)
def add_mean_distances(points, norms, weight, owner, starts, first, low, high, products, out):
    """out[i, k] += weighted distances from members of cluster i to those of cluster k > i.

    Args:
        points: (C, d) sorted by cluster; norms: (C,) squared, of the points as multiplied.
        owner: (C,) int64 cluster of each point; starts: (M + 1,) int64 first point of each.
        first: first point of the block; low, high: the clusters that it meets.
        products: (BLOCK or fewer, C - first) of the block with the points from `first` on.
    """
    for part in prange(high - low):
        # one cluster a thread, hence one row of `out`: no two add to the same number
        i = low + np.int64(part)  # prange counts unsigned, and mixing signs makes floats
        after = starts[i + 1]
        line = np.empty(points.shape[0] - after)
        for point in range(max(starts[i], first), min(after, first + products.shape[0])):
            squared_line(
                points, norms, point, after, products[point - first, after - first :], line
            )
            for j in range(line.shape[0]):
                out[i, owner[after + j]] += weight[point] * weight[after + j] * np.sqrt(line[j])


@njit(parallel=True, cache=True)
def set_squared_distances(points, norms, variance, first, products, out):
    """out[i, k] = |mean_i - mean_k|^2 + v_i + v_k for the block from `first` and all k > i."""
    for part in prange(products.shape[0]):
        i = first + np.int64(part)
        line = out[i, i + 1 : points.shape[0]]
        squared_line(points, norms, i, i + 1, products[part, part + 1 :], line)
        for j in range(line.shape[0]):
            line[j] += variance[i] + variance[i + 1 + j]


def blocks_of_products(points: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For blocks of points (C, d): first point, norms (C,), products (BLOCK, C - first)."""
    # the norms become as small as they can be, and rounding with them; only products with later
    # points are made, BLOCK x N numbers at a time
    centered = points - points.mean(axis=0)
    norms = np.einsum("ij,ij->i", centered, centered)
    for first in range(0, len(points), BLOCK):
        yield first, norms, centered[first : first + BLOCK] @ centered[first:].T
