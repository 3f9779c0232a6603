"""The active clusters of a linkage in progress: means, variances, members, nearest neighbors.

Average linkage needs sums over members, so each cluster keeps a linked list of them; its mean and
variance give bounds that make most of these sums unnecessary (see `_neighbor_search`).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .._arithmetic import LANES, squared_distance


class Clusters(NamedTuple):
    """Arrays over slots. A slot is a distinct row; a cluster lives in the slot of one member.

    `lower_bound` is the distance to `nearest` where that is known. Where it is not (-1), it is a
    lower bound of the distance to every other cluster: what the cluster's last search found, which
    reducibility keeps valid while other clusters merge.
    """

    rows: np.ndarray  # (C, d) distinct rows, d padded to a multiple of LANES
    weight: np.ndarray  # (C,) how often each row occurs, or its weight
    mean: np.ndarray  # (C, d) of each cluster
    variance: np.ndarray  # (C,) mean squared distance of the members to the mean
    size: np.ndarray  # (C,) rows in the cluster, repeats counted: the sum of their weights
    first: np.ndarray  # (C,) int64 smallest original row number in the cluster
    head: np.ndarray  # (C,) int64 first member
    tail: np.ndarray  # (C,) int64 last member
    next_member: np.ndarray  # (C,) int64 next member of the same cluster, -1 at the end
    nearest: np.ndarray  # (C,) int64 nearest neighbor, -1 where not known
    lower_bound: np.ndarray  # (C,) of the distance to the nearest neighbor
    candidate: np.ndarray  # (C,) int64 where a search starts: a cluster likely near, or -1
    active: np.ndarray  # (C,) bool, False once merged into another
    just_merged: np.ndarray  # (C,) bool, only True within a round


def singletons(rows: np.ndarray, weight: np.ndarray, first: np.ndarray) -> Clusters:
    """One cluster per distinct row (C, d) with its weight (C,) and first original row (C,)."""
    # every row is its own cluster, of variance zero: both bounds are then the distance itself.
    # Neighbors are unknown, and zero is a lower bound that claims nothing
    count = len(rows)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % LANES)))
    own = np.arange(count, dtype=np.int64)
    none = np.full(count, -1, dtype=np.int64)
    return Clusters(
        rows=rows,
        weight=weight,
        mean=rows.copy(),
        variance=np.zeros(count),
        size=weight.copy(),
        first=first.copy(),
        head=own.copy(),
        tail=own.copy(),
        next_member=none.copy(),
        nearest=none.copy(),
        lower_bound=np.zeros(count),
        candidate=none.copy(),
        active=np.ones(count, dtype=np.bool_),
        just_merged=np.zeros(count, dtype=np.bool_),
    )


@njit(cache=True)
def mean_distance(clusters, a, b, above):
    """Mean Euclidean distance between the members of a and b; infinity once it exceeds `above`.

    All terms are positive, so a partial sum beyond `above` proves that the mean is beyond it too.
    Costs |a| |b| d at most.
    """
    if clusters.first[a] > clusters.first[b]:
        a, b = b, a  # one order of summation, so that D(a, b) and D(b, a) are the same bits
    # `above` is compared as a sum, once for each member of a: the loop divides nothing
    pairs = clusters.size[a] * clusters.size[b]
    total, most = 0.0, above * pairs
    i = clusters.head[a]
    while i >= 0:
        part = 0.0
        j = clusters.head[b]
        while j >= 0:
            squared = squared_distance(clusters.rows[i], clusters.rows[j])
            part += clusters.weight[j] * np.sqrt(squared)
            j = clusters.next_member[j]
        total += clusters.weight[i] * part
        if total > most:
            return np.inf
        i = clusters.next_member[i]
    return total / pairs


@njit(cache=True)
def merge(clusters, a, b):
    """Merge cluster b into the slot of cluster a; the caller sets the nearest neighbors."""
    # variance of a union: the weighted variances and the spread of the two means (Chan et al.)
    size = clusters.size[a] + clusters.size[b]
    share = clusters.size[b] / size
    clusters.variance[a] = (
        (1 - share) * clusters.variance[a]
        + share * clusters.variance[b]
        + share * (1 - share) * squared_distance(clusters.mean[a], clusters.mean[b])
    )
    # the mean moves by a share of the difference, in O(d) without a look at the members; what
    # rounding this costs, `_reciprocal_pairs` adds to every bound
    for k in range(clusters.mean.shape[1]):
        clusters.mean[a, k] += share * (clusters.mean[b, k] - clusters.mean[a, k])
    clusters.size[a] = size
    clusters.first[a] = min(clusters.first[a], clusters.first[b])
    # members of b behind those of a, in constant time
    clusters.next_member[clusters.tail[a]] = clusters.head[b]
    clusters.tail[a] = clusters.tail[b]
    clusters.active[b] = False


@njit(cache=True)
def members_by_cluster(clusters, slots):
    """Members of the clusters `slots` one after the other (C,), and where each starts (M + 1,)."""
    # the linked lists are walked once, in O(C), so that the sums over members read memory in order
    members = np.empty(clusters.head.shape[0], np.int64)
    starts = np.empty(slots.shape[0] + 1, np.int64)
    count = 0
    for i in range(slots.shape[0]):
        starts[i] = count
        j = clusters.head[slots[i]]
        while j >= 0:
            members[count] = j
            count += 1
            j = clusters.next_member[j]
    starts[-1] = count
    return members[:count], starts
