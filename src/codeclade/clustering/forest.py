"""The clusters on the way up the tree: means, variances, members and nearest neighbours.

Average linkage needs sums over members, so each cluster keeps a linked list of them; its mean and
variance give bounds that make most sums unnecessary.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

WIDE = 8  # columns are padded with zeros to a multiple of this, for the unrolled loops
GRAIN = 4097.0  # 2**12 + 1: splitting a float64 here keeps 41 bits


class Forest(NamedTuple):
    """Arrays over slots; a slot is a distinct row, and a cluster lives in one of its members."""

    rows: np.ndarray  # (C, d) distinct rows, d padded to a multiple of WIDE
    weight: np.ndarray  # (C,) how often each row occurs
    mean: np.ndarray  # (C, d) of each cluster
    variance: np.ndarray  # (C,) mean squared distance to the mean
    size: np.ndarray  # (C,) rows in the cluster, repeats counted
    first: np.ndarray  # (C,) int64 smallest original row number in the cluster
    head: np.ndarray  # (C,) int64 first member
    tail: np.ndarray  # (C,) int64 last member
    after: np.ndarray  # (C,) int64 next member in the same cluster, -1 at the end
    near: np.ndarray  # (C,) int64 nearest cluster, -1 not known
    floor: np.ndarray  # (C,) distance to it, or if it is not known a lower bound of that
    hint: np.ndarray  # (C,) int64 a cluster likely to be near, -1 none
    alive: np.ndarray  # (C,) bool
    grown: np.ndarray  # (C,) bool merged in the present round


def plant(rows: np.ndarray, weight: np.ndarray, first: np.ndarray) -> Forest:
    """One cluster per distinct row."""
    count = len(rows)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % WIDE)))
    own = np.arange(count, dtype=np.int64)
    none = np.full(count, -1, dtype=np.int64)
    return Forest(
        rows=rows,
        weight=weight,
        mean=rows.copy(),
        variance=np.zeros(count),
        size=weight.copy(),
        first=first.copy(),
        head=own.copy(),
        tail=own.copy(),
        after=none.copy(),
        near=none.copy(),
        floor=np.zeros(count),
        hint=none.copy(),
        alive=np.ones(count, dtype=np.bool_),
        grown=np.zeros(count, dtype=np.bool_),
    )


@njit(cache=True)
def coarse(distance):
    """The distance to 41 bits (12 digits): what differs only by rounding becomes a tie."""
    if distance == np.inf:
        return distance
    scaled = distance * GRAIN
    return scaled - (scaled - distance)


@njit(cache=True, fastmath={"reassoc", "contract"})
def add_squares(columns, points, k, start, end, first, count, gaps):
    """gaps[i, j] += |columns[:, start + j] - points[:, first + i]|^2 over rows k..k + WIDE.

    Unrolled, with each row a slice of its own, so that it compiles to vector instructions.
    """
    c0, c1 = columns[k, start:end], columns[k + 1, start:end]
    c2, c3 = columns[k + 2, start:end], columns[k + 3, start:end]
    c4, c5 = columns[k + 4, start:end], columns[k + 5, start:end]
    c6, c7 = columns[k + 6, start:end], columns[k + 7, start:end]
    for i in range(count):
        point = points[k : k + WIDE, first + i]
        p0, p1, p2, p3 = point[0], point[1], point[2], point[3]
        p4, p5, p6, p7 = point[4], point[5], point[6], point[7]
        line = gaps[i]
        for j in range(end - start):
            a, b, c, d = c0[j] - p0, c1[j] - p1, c2[j] - p2, c3[j] - p3
            e, f, g, h = c4[j] - p4, c5[j] - p5, c6[j] - p6, c7[j] - p7
            line[j] += (a * a + b * b) + (c * c + d * d) + (e * e + f * f) + (g * g + h * h)


@njit(cache=True, fastmath={"reassoc", "contract"})
def squared(a, b):
    """Squared distance of two vectors."""
    total = 0.0
    for k in range(a.shape[0]):
        difference = a[k] - b[k]
        total += difference * difference
    return total


@njit(cache=True)
def mean_distance(forest, a, b, most):
    """Mean Euclidean distance between the members of a and b; infinity once it exceeds `most`."""
    if forest.first[a] > forest.first[b]:
        a, b = b, a  # one order of summation, so that D(a, b) and D(b, a) are the same bits
    pairs = forest.size[a] * forest.size[b]
    total, enough = 0.0, most * pairs
    i = forest.head[a]
    while i >= 0:
        part = 0.0
        j = forest.head[b]
        while j >= 0:
            part += forest.weight[j] * np.sqrt(squared(forest.rows[i], forest.rows[j]))
            j = forest.after[j]
        total += forest.weight[i] * part
        if total > enough:
            return np.inf
        i = forest.after[i]
    return total / pairs


@njit(cache=True)
def join(forest, a, b):
    """Merge cluster b into cluster a; the caller sets the neighbours."""
    size = forest.size[a] + forest.size[b]
    share = forest.size[b] / size
    forest.variance[a] = (
        (1 - share) * forest.variance[a]
        + share * forest.variance[b]
        + share * (1 - share) * squared(forest.mean[a], forest.mean[b])
    )
    for k in range(forest.mean.shape[1]):
        forest.mean[a, k] += share * (forest.mean[b, k] - forest.mean[a, k])
    forest.size[a] = size
    forest.first[a] = min(forest.first[a], forest.first[b])
    forest.after[forest.tail[a]] = forest.head[b]
    forest.tail[a] = forest.tail[b]
    forest.alive[b] = False
