"""Rounds of reciprocal-nearest-neighbour merges, in memory O(N d).

Average linkage is reducible: merging two clusters that are each other's nearest brings neither
closer to anything else. So all such pairs merge in one round, whatever their heights, and only
clusters whose neighbour merged look for a new one. See nearest.py for the search.
"""

import numpy as np
from numba import njit

from . import nearest, space_tree
from .forest import Forest, coarse, join

REBUILD = 0.1  # share of the clusters merged since the tree was built that is worth a new one


@njit(cache=True)
def pending(forest, order, most, out):
    """Clusters whose neighbour is unknown and may lie within `most`; returns how many."""
    count = 0
    for slot in order:
        if forest.alive[slot] and forest.near[slot] < 0 and forest.floor[slot] <= most:
            out[count] = slot
            count += 1
    return count


@njit(cache=True)
def merge_pairs(forest, order, queries, most, pairs, heights):
    """Merge the reciprocal pairs among `queries` up to height `most`, and forget lost neighbours.

    Args:
        pairs: (M, 2) int64, filled with the slots (kept, gone) of each merge.
        heights: (M, 3) filled with the smallest members of both clusters and the height.

    Returns:
        how many pairs merged.
    """
    count = 0
    for query in queries:
        other = forest.near[query]
        if not forest.alive[query] or other < 0 or forest.near[other] != query:
            continue
        a, b = (query, other) if forest.first[query] < forest.first[other] else (other, query)
        if forest.floor[a] > most:
            continue
        pairs[count, 0], pairs[count, 1] = a, b
        heights[count, 0], heights[count, 1] = forest.first[a], forest.first[b]
        heights[count, 2] = forest.floor[a]
        count += 1
        join(forest, a, b)
        forest.near[a], forest.hint[a], forest.grown[a] = -1, -1, True
        forest.near[b], forest.grown[b] = a, True
    for slot in order:
        other = forest.near[slot]
        if forest.alive[slot] and other >= 0 and forest.grown[other]:
            forest.near[slot] = -1
            forest.hint[slot] = other if forest.alive[other] else forest.near[other]
    for i in range(count):
        forest.grown[pairs[i, 0]] = forest.grown[pairs[i, 1]] = False
    return count


@njit(cache=True)
def refit(forest, pairs, blocks, spreads, slots, place, low, high):
    """Move the merged clusters inside the tree instead of building a new one."""
    leaves = blocks.shape[0]
    for i in range(pairs.shape[0]):
        a, b = pairs[i]
        leaf, column = divmod(place[b], nearest.LEAF)
        slots[leaf, column] = -1
        for k in range(blocks.shape[1]):
            blocks[leaf, k, column] = np.inf
        space_tree.fit_leaf(blocks[leaf], low[leaves + leaf], high[leaves + leaf])
        leaf, column = divmod(place[a], nearest.LEAF)
        spreads[leaf, column] = forest.variance[a]
        for k in range(blocks.shape[1]):
            blocks[leaf, k, column] = forest.mean[a, k]
        space_tree.fit_leaf(blocks[leaf], low[leaves + leaf], high[leaves + leaf])
    space_tree.fit_inner(low, high)


def _closest_pair(forest: Forest, order: np.ndarray) -> np.ndarray:
    """One query whose pair is the closest of all, made reciprocal.

    Rounding can make three tied clusters point in a circle; then the smallest pair merges.
    """
    living = order[forest.alive[order]]
    floors = np.array([coarse(value) for value in forest.floor[living]])
    query = living[np.lexsort((forest.first[living], floors))[0]]
    other = forest.near[query]
    forest.near[other], forest.floor[other] = query, forest.floor[query]
    return np.array([query])


class Limit:
    """The height above which no merge can matter when only the lowest `wanted` are asked for.

    Every merge found is one of the full tree, so the `wanted`-th lowest so far bounds them all.
    """

    def __init__(self, wanted: int):
        self.wanted, self.found, self.value = wanted, np.empty(0), np.inf

    def add(self, heights: np.ndarray) -> None:
        """Take in the heights of a round."""
        self.found = np.concatenate([self.found, heights])
        if len(self.found) >= self.wanted:
            self.found = np.partition(self.found, self.wanted - 1)[: self.wanted]
            self.value = self.found[-1] * (1 + nearest.SLACK)


def run(forest: Forest, until: int, wanted: int, euclidean: bool, advance) -> np.ndarray:
    """Merge until at most `until` clusters are left, or the `wanted` lowest merges are certain.

    Args:
        forest: changed in place.
        advance: called with the number of merges of each round.

    Returns:
        (merges, 3) float64: smallest members of the two clusters, height; not sorted.
    """
    order = np.arange(len(forest.rows))
    limit, done, stale = Limit(wanted), [np.empty((0, 3))], np.inf
    living = len(order)
    blur = 1e-13 * float(np.abs(forest.rows).max()) * forest.rows.shape[1] ** 0.5
    queries, pairs = np.empty(living, np.int64), np.empty((living, 2), np.int64)
    while living > until:
        if stale > REBUILD * living:
            order = order[forest.alive[order]]
            blocks, spreads, slots, place, low, high = space_tree.build(
                forest.mean, forest.variance, order
            )
            stale = 0
        count = pending(forest, order, limit.value, queries)
        asked = queries[:count]
        tree = (blocks, spreads, slots, low, high)
        nearest.search(forest, tree, asked, limit.value, blur, euclidean)
        heights = np.empty((count + 1, 3))
        merged = merge_pairs(forest, order, asked, limit.value, pairs, heights)
        if merged == 0 and count == 0:
            if limit.value < np.inf:
                break
            asked = _closest_pair(forest, order)
            merged = merge_pairs(forest, order, asked, limit.value, pairs, heights)
        refit(forest, pairs[:merged], blocks, spreads, slots, place, low, high)
        limit.add(heights[:merged, 2])
        done.append(heights[:merged])
        living, stale = living - merged, stale + merged
        advance(merged)
    return np.concatenate(done)
