"""A balanced tree of boxes over cluster means: the index of the nearest-neighbor search.

Leaves are blocks of up to LEAF means stored column by column, so that one query meets a whole leaf
in a few vector instructions. When clusters merge, means move and vanish in place and the boxes are
refitted; the tree is built anew only when many have. Nodes are numbered as in a heap: the root is
1, the children of i are 2i and 2i + 1, the leaves are L .. 2L - 1.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

LEAF = 32  # means per leaf: four 512-bit vectors of float64
SERIAL_LEVELS = 5  # levels split before the 2**SERIAL_LEVELS subtrees go to the threads
PARALLEL = 8192  # means below which waking the threads costs more than it saves
SAMPLE = 128  # means looked at to find the widest axis of a node


class SpaceTree(NamedTuple):
    """L leaves over slots of `Clusters`; empty places hold infinity and slot -1."""

    blocks: np.ndarray  # (L, d, LEAF) means, one column each
    variances: np.ndarray  # (L, LEAF) of the same clusters
    slots: np.ndarray  # (L, LEAF) int64
    position: np.ndarray  # (C,) int64 of each slot: leaf * LEAF + column
    low: np.ndarray  # (2L, d) lower corner of the box of each node
    high: np.ndarray  # (2L, d) upper corner


@njit(cache=True)
def _widest_axis(means, order, low, high):
    """Axis along which the means order[low:high] spread most (looked at in a sample)."""
    # a sample will do: the axis decides how well boxes prune, never what is found
    step = max(1, (high - low) // SAMPLE)
    best, axis = -1.0, 0
    for k in range(means.shape[1]):
        least, most = np.inf, -np.inf
        for i in range(low, high, step):
            value = means[order[i], k]
            least, most = min(least, value), max(most, value)
        if most - least > best:
            best, axis = most - least, k
    return axis


@njit(cache=True)
def _select(keys, order, low, high, middle):
    """Reorder [low, high) so that no key before `middle` is above any key from it on (quickselect:
    linear time on average)."""
    left, right = low, high - 1
    while left < right:
        pivot = keys[(left + right) >> 1]
        i, j = left, right
        # keys equal to the pivot are exchanged too: many equal ones still fall into halves
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        # go on in the part that the middle lies in; between the parts it is in its place already
        if middle <= j:
            right = j
        elif middle >= i:
            left = i
        else:
            return


@njit(cache=True)
def _split(means, order, keys, level, node):
    """Halve one node of a level: the lower half of its means along its widest axis comes first."""
    count = order.shape[0]
    low, high = (node * count) >> level, ((node + 1) * count) >> level
    axis = _widest_axis(means, order, low, high)
    for i in range(low, high):
        keys[i] = means[order[i], axis]
    _select(keys, order, low, high, ((2 * node + 1) * count) >> (level + 1))


@njit(cache=True)
def _split_below(means, order, keys, level, node, levels):
    """Halve a node and everything below it."""
    for deeper in range(levels - level):
        for part in range(1 << deeper):
            _split(means, order, keys, level + deeper, (node << deeper) + part)


@njit(parallel=True, cache=True)
def _split_in_parallel(means, order, keys, level, levels):
    for part in prange(1 << level):
        # subtrees are disjoint ranges of `order` and `keys`: the threads share nothing
        node = np.int64(part)  # prange counts unsigned, and mixing signs makes floats
        _split_below(means, order, keys, level, node, levels)


def sort_in_space(means, order, levels):
    """Sort `order`, in place, so that its 2**levels equal parts are the leaves of the tree.

    O(M d levels) for M means.
    """
    keys = np.empty(len(order))
    top = min(levels, SERIAL_LEVELS) if len(order) >= PARALLEL else 0
    _split_below(means, order, keys, 0, 0, top or levels)
    if top:
        _split_in_parallel(means, order, keys, top, levels)


@njit(cache=True)
def _fit_leaf(block, low, high):
    """Box (low, high), each (d,), around the finite columns of a leaf block (d, LEAF)."""
    for k in range(block.shape[0]):
        # a leaf without means gets the box (infinity, -infinity), infinitely far from every point,
        # and leaves the boxes above it as they are
        least, most = np.inf, -np.inf
        for c in range(block.shape[1]):
            value = block[k, c]
            if value < np.inf:
                least, most = min(least, value), max(most, value)
        low[k], high[k] = least, most


@njit(cache=True)
def _fit_inner(low, high):
    """Boxes of the inner nodes from the boxes of the leaves."""
    # children have larger numbers, so they are done before their parent
    for node in range(low.shape[0] // 2 - 1, 0, -1):
        for k in range(low.shape[1]):
            low[node, k] = min(low[2 * node, k], low[2 * node + 1, k])
            high[node, k] = max(high[2 * node, k], high[2 * node + 1, k])


@njit(cache=True)
def _fill(means, variances, order, tree):
    """Copy the means of `order` into the leaves and fit every box."""
    # leaves get equal shares of the order; slots that stay empty are marked, not filled
    leaves, count = tree.blocks.shape[0], order.shape[0]
    for leaf in range(leaves):
        start, end = (leaf * count) // leaves, ((leaf + 1) * count) // leaves
        for c in range(LEAF):
            slot = order[start + c] if start + c < end else -1
            tree.slots[leaf, c] = slot
            if slot < 0:
                continue
            tree.position[slot] = leaf * LEAF + c
            tree.variances[leaf, c] = variances[slot]
            for k in range(means.shape[1]):
                tree.blocks[leaf, k, c] = means[slot, k]
        _fit_leaf(tree.blocks[leaf], tree.low[leaves + leaf], tree.high[leaves + leaf])
    _fit_inner(tree.low, tree.high)


def levels_for(count: int) -> int:
    """Depth at which equal parts of `count` means hold at most LEAF of them."""
    levels = 0
    while -(-count >> levels) > LEAF:
        levels += 1
    return levels


def build(means: np.ndarray, variances: np.ndarray, order: np.ndarray) -> SpaceTree:
    """Tree over the means of the clusters `order`, which is sorted in place.

    Args:
        means: (C, d) float64; variances: (C,) float64; order: (M,) int64 rows of both.
    """
    levels = levels_for(len(order))
    sort_in_space(means, order, levels)
    leaves, d = 1 << levels, means.shape[1]
    tree = SpaceTree(
        blocks=np.full((leaves, d, LEAF), np.inf),
        variances=np.zeros((leaves, LEAF)),
        slots=np.empty((leaves, LEAF), dtype=np.int64),
        position=np.full(len(means), -1, dtype=np.int64),
        low=np.empty((2 * leaves, d)),
        high=np.empty((2 * leaves, d)),
    )
    _fill(means, variances, order, tree)
    return tree


@njit(cache=True)
def move_merged(means, variances, pairs, tree):
    """Move merged clusters inside the tree instead of building a new one.

    For every pair (kept, gone) of slots the mean of `kept` is replaced and that of `gone` removed.
    Boxes stay tight around what is there, so the search stays exact; only their shape gets worse.
    """
    # O(LEAF d) a merge and one pass over the inner nodes for the whole round. The union stays in
    # the leaf of `kept` wherever its mean went: the box grows, which costs time alone
    leaves = tree.blocks.shape[0]
    for i in range(pairs.shape[0]):
        kept, gone = pairs[i]
        leaf, column = divmod(tree.position[gone], LEAF)
        tree.slots[leaf, column] = -1
        for k in range(tree.blocks.shape[1]):
            tree.blocks[leaf, k, column] = np.inf
        _fit_leaf(tree.blocks[leaf], tree.low[leaves + leaf], tree.high[leaves + leaf])
        leaf, column = divmod(tree.position[kept], LEAF)
        tree.variances[leaf, column] = variances[kept]
        for k in range(tree.blocks.shape[1]):
            tree.blocks[leaf, k, column] = means[kept, k]
        _fit_leaf(tree.blocks[leaf], tree.low[leaves + leaf], tree.high[leaves + leaf])
    _fit_inner(tree.low, tree.high)
