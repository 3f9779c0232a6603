"""Rounds of merges of reciprocal nearest neighbors, in memory O(N d).

Average linkage is reducible: D(A + B, C) >= min(D(A, C), D(B, C)). So when A and B are each
other's nearest neighbors, nothing that happens elsewhere can bring either closer to anything, and
they merge in the final tree whatever the order. All such pairs merge in one round; only clusters
whose neighbor merged look for a new one, and D to their old neighbor stays a lower bound. Merges
are found out of order and sorted by height at the end.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from .._arithmetic import TIE
from . import _space_tree
from ._clusters import Clusters, merge
from ._neighbor_search import RELATIVE_TOLERANCE, find_nearest

REBUILD = 0.1  # share of the clusters merged since the tree was built that is worth a new one
MEAN_ROUNDING = 1e-13  # of the largest coordinate: what means lose over a million merges


@njit(cache=True)
def _without_neighbor(clusters, order, max_height, out):
    """Clusters whose neighbor is unknown and may lie within `max_height`; returns how many."""
    count = 0
    for slot in order:
        unknown = clusters.active[slot] and clusters.nearest[slot] < 0
        if unknown and clusters.lower_bound[slot] <= max_height:
            out[count] = slot
            count += 1
    return count


@njit(cache=True)
def _merge_pairs(clusters, order, queries, max_height, pairs, merges):
    """Merge the reciprocal pairs among `queries` up to a height, and forget lost neighbors.

    A pair is new only if one of its clusters searched in this round, so looking at the queries
    finds them all.

    Args:
        pairs: (M, 2) int64, filled with the slots (kept, gone) of each merge.
        merges: (M, 3) filled with the smallest members of both clusters and the height.

    Returns:
        how many pairs merged.
    """
    # merge each pair into the slot that holds the smaller member
    count = 0
    for query in queries:
        other = clusters.nearest[query]
        if not clusters.active[query] or other < 0 or clusters.nearest[other] != query:
            continue
        query_first = clusters.first[query] < clusters.first[other]
        a, b = (query, other) if query_first else (other, query)
        if clusters.lower_bound[a] > max_height:
            continue
        pairs[count, 0], pairs[count, 1] = a, b
        merges[count, 0], merges[count, 1] = clusters.first[a], clusters.first[b]
        merges[count, 2] = clusters.lower_bound[a]
        count += 1
        merge(clusters, a, b)
        # D(a, b) stays as lower bound: both had nothing nearer than each other (reducibility)
        clusters.nearest[a], clusters.candidate[a], clusters.just_merged[a] = -1, -1, True
        clusters.nearest[b], clusters.just_merged[b] = a, True
    # clusters whose neighbor merged search again, starting from the cluster it went into
    for slot in order:
        other = clusters.nearest[slot]
        if clusters.active[slot] and other >= 0 and clusters.just_merged[other]:
            clusters.nearest[slot] = -1
            gone = not clusters.active[other]
            clusters.candidate[slot] = clusters.nearest[other] if gone else other
    # only the flags that were set: O(merges), not O(C)
    for i in range(count):
        clusters.just_merged[pairs[i, 0]] = clusters.just_merged[pairs[i, 1]] = False
    return count


def _closest_pair(clusters: Clusters, order: np.ndarray) -> np.ndarray:
    """One query (1,) whose pair is the closest of all, made reciprocal.

    Without rounding some pair is always reciprocal. Rounding can make three tied clusters point in
    a circle; then the pair that the order of ties names merges.
    """
    active = order[clusters.active[order]]
    heights = clusters.lower_bound[active]
    closest = active[heights <= heights.min() * (1 + TIE)]
    query = closest[np.argmin(clusters.first[closest])]
    other = clusters.nearest[query]
    clusters.nearest[other], clusters.lower_bound[other] = query, clusters.lower_bound[query]
    return np.array([query])


class MaxHeight:
    """The height above which no merge can matter when only the lowest `wanted` are asked for.

    Every merge found is one of the full tree, so the `wanted`-th lowest so far bounds them all.
    """

    def __init__(self, wanted: int):
        self.wanted, self.lowest, self.value = wanted, np.empty(0), np.inf

    def add(self, heights: np.ndarray) -> None:
        """Take in the heights of a round."""
        self.lowest = np.concatenate([self.lowest, heights])
        if len(self.lowest) >= self.wanted:
            self.lowest = np.partition(self.lowest, self.wanted - 1)[: self.wanted]
            self.value = self.lowest[-1] * (1 + RELATIVE_TOLERANCE)


def merge_in_rounds(
    clusters: Clusters,
    until: int,
    wanted: int,
    euclidean: bool,
    advance: Callable[[int], object],
) -> np.ndarray:
    """Merge until at most `until` clusters are left, or the `wanted` lowest merges are certain.

    A round costs one search for each cluster that lost its neighbor. Codebooks take some tens of
    rounds; the worst case, a chain of growing gaps, takes one round for each merge.

    Args:
        clusters: changed in place.
        euclidean: mean Euclidean distance, else mean squared distance.
        advance: called with the number of merges of each round.

    Returns:
        (merges, 3) float64: smallest members of the two clusters, height; not sorted.
    """
    # what is known before the first round: singletons, no neighbors, no height above which merges
    # are not wanted. All state is O(N d); no distance is stored but one for each cluster
    active = len(clusters.rows)
    order = np.arange(active)  # active slots, neighbors in space beside each other
    max_height = MaxHeight(wanted)
    tree, moved = _space_tree.build(clusters.mean, clusters.variance, order), 0
    done = [np.empty((0, 3))]
    largest = float(np.abs(clusters.rows).max())
    # means carry rounding from merge to merge, and a bound may be off by as much: it is widened by
    # this, so that pruning never drops the true neighbor
    tolerance = MEAN_ROUNDING * largest * clusters.rows.shape[1] ** 0.5
    queries, pairs = np.empty(active, np.int64), np.empty((active, 2), np.int64)
    while active > until:
        # the tree is exact however old, but its boxes grow as means move
        if moved > REBUILD * active:
            order = order[clusters.active[order]]
            tree = _space_tree.build(clusters.mean, clusters.variance, order)
            moved = 0

        # every cluster that may still merge below the wanted height gets its nearest neighbor
        # (the others still know theirs: it did not merge, and by reducibility nothing has come
        # nearer; a cluster whose lower bound is above the limit need not search at all)
        count = _without_neighbor(clusters, order, max_height.value, queries)
        asked = queries[:count]
        find_nearest(clusters, tree, asked, max_height.value, tolerance, euclidean)

        # all reciprocal pairs merge at once
        # (each is a merge of the final tree, as nothing outside the pair can come nearer to it)
        merges = np.empty((count + 1, 3))
        merged = _merge_pairs(clusters, order, asked, max_height.value, pairs, merges)
        # the closest pair of all is reciprocal, so a round without search or merge has two causes:
        # the limit, or rounding among ties
        if merged == 0 and count == 0:
            if max_height.value < np.inf:
                break  # what is left lies above the wanted merges
            asked = _closest_pair(clusters, order)
            merged = _merge_pairs(clusters, order, asked, max_height.value, pairs, merges)
        # the limit can only fall with the merges found; the lower it is, the fewer clusters search
        _space_tree.move_merged(clusters.mean, clusters.variance, pairs[:merged], tree)
        max_height.add(merges[:merged, 2])
        done.append(merges[:merged])
        active, moved = active - merged, moved + merged
        advance(merged)
    return np.concatenate(done)
