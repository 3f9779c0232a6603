"""Exact nearest clusters under average linkage, by bounds on a space tree.

With mean m and variance v of each cluster, the mean distance D of two clusters obeys
    |mA - mB|  <=  D(A, B)  <=  sqrt(|mA - mB|^2 + vA + vB)
(triangle inequality; Jensen). The right side is the root of the mean squared distance, exactly.
So a walk through the tree keeps the few clusters whose lower bound is under the least upper bound,
and only their members are summed. Under squared Euclidean the upper bound is the distance itself.
"""

import numpy as np
from numba import njit, prange

from .forest import WIDE, coarse, mean_distance, squared
from .space_tree import LEAF

CHUNK = 32  # queries that share their scratch space
ALONE = 256  # queries below which waking the threads costs more than it saves
KEPT = 512  # candidates held before they are decided
SLACK = 1e-11  # relative rounding allowed in a bound


@njit(cache=True, fastmath={"reassoc", "contract"})
def _box_distance(point, low, high):
    """Squared distance from a point to a box."""
    total = 0.0
    for k in range(point.shape[0]):
        outside = max(low[k] - point[k], point[k] - high[k], 0.0)
        total += outside * outside
    return total


@njit(cache=True, fastmath={"reassoc", "contract"})
def _leaf_distances(point, block, out):
    """Squared distances from a point to the LEAF columns of a block; unrolled by WIDE rows."""
    for j in range(LEAF):
        out[j] = 0.0
    for k in range(0, point.shape[0], WIDE):
        p0, p1, p2, p3 = point[k], point[k + 1], point[k + 2], point[k + 3]
        p4, p5, p6, p7 = point[k + 4], point[k + 5], point[k + 6], point[k + 7]
        for j in range(LEAF):
            a, b = block[k, j] - p0, block[k + 1, j] - p1
            c, d = block[k + 2, j] - p2, block[k + 3, j] - p3
            e, f = block[k + 4, j] - p4, block[k + 5, j] - p5
            g, h = block[k + 6, j] - p6, block[k + 7, j] - p7
            out[j] += (a * a + b * b) + (c * c + d * d) + (e * e + f * f) + (g * g + h * h)


@njit(cache=True)
def _reach(bound, blur):
    """Squared lower bounds up to this may still hide a distance of sqrt(bound)."""
    radius = np.sqrt(bound) * (1 + SLACK) + blur
    return radius * radius


@njit(cache=True)
def _decide(forest, query, found, lower, count, best, best_near, euclidean):
    """Evaluate candidates in the order of their lower bounds; returns (distance, nearest)."""
    while count > 0:
        pick = 0
        for c in range(1, count):
            if lower[c] < lower[pick]:
                pick = c
        if euclidean and np.sqrt(lower[pick]) > best * (1 + SLACK):
            break
        slot = found[pick]
        if euclidean:
            distance = mean_distance(forest, query, slot, best * (1 + SLACK))
        else:
            distance = lower[pick]
        a, b = coarse(distance), coarse(best)
        if a < b or (a == b and best_near >= 0 and forest.first[slot] < forest.first[best_near]):
            best, best_near = distance, slot
        count -= 1
        found[pick], lower[pick] = found[count], lower[count]
    return best, best_near


@njit(cache=True)
def _keep_within(found, lower, count, reach):
    """Drop candidates whose lower bound is beyond reach; returns how many are left."""
    kept = 0
    for c in range(count):
        if lower[c] <= reach:
            found[kept], lower[kept] = found[c], lower[c]
            kept += 1
    return kept


@njit(cache=True)
def _search_one(forest, tree, query, limit, blur, euclidean, scratch):
    """Nearest cluster of `query` within `limit`: (distance, slot), or (limit, -1) if none."""
    blocks, spreads, slots, low, high = tree
    found, lower, stack, gaps, line = scratch
    point, own = forest.mean[query], forest.variance[query]
    leaves, count = blocks.shape[0], 0
    best, best_near = limit * (1 + SLACK), -1
    bound = best * best if euclidean else best  # least upper bound so far, squared
    hint = forest.hint[query]
    if hint >= 0 and forest.alive[hint]:
        upper = squared(point, forest.mean[hint]) + own + forest.variance[hint]
        bound = min(bound, upper * (1 + SLACK))
    reach = _reach(bound, blur)
    base = 0.0 if euclidean else own
    stack[0], gaps[0], top = 1, 0.0, 1
    while top > 0:
        top -= 1
        node = stack[top]
        if gaps[top] + base > reach:
            continue
        while node < leaves:
            left = _box_distance(point, low[2 * node], high[2 * node])
            right = _box_distance(point, low[2 * node + 1], high[2 * node + 1])
            swap = right < left
            stack[top] = 2 * node if swap else 2 * node + 1
            gaps[top] = left if swap else right
            if gaps[top] + base <= reach:
                top += 1
            node = 2 * node + 1 if swap else 2 * node
            if min(left, right) + base > reach:
                node = 0
                break
        if node == 0:
            continue
        leaf = node - leaves
        _leaf_distances(point, blocks[leaf], line)
        for c in range(LEAF):
            gap, slot = line[c], slots[leaf, c]
            if gap + base > reach or slot < 0 or slot == query:
                continue
            upper = gap + own + spreads[leaf, c]
            if not euclidean:
                gap = upper
                if gap > reach:
                    continue
            if count == KEPT:
                count = _keep_within(found, lower, count, reach)
            if count == KEPT:
                best, best_near = _decide(
                    forest, query, found, lower, count, best, best_near, euclidean
                )
                bound = min(bound, best * best if euclidean else best)
                count = 0
            found[count], lower[count] = slot, gap
            count += 1
            if upper < bound:
                bound = upper
            reach = _reach(bound, blur)
    count = _keep_within(found, lower, count, reach)
    best, best_near = _decide(forest, query, found, lower, count, best, best_near, euclidean)
    return (best, best_near) if best_near >= 0 else (limit * (1 + SLACK), -1)


@njit(cache=True)
def _search_some(forest, tree, queries, limit, blur, euclidean):
    """`search` for one thread."""
    scratch = (
        np.empty(KEPT, np.int64),
        np.empty(KEPT),
        np.empty(64, np.int64),
        np.empty(64),
        np.empty(LEAF),
    )
    for query in queries:
        distance, slot = _search_one(forest, tree, query, limit, blur, euclidean, scratch)
        forest.near[query], forest.floor[query] = slot, distance


@njit(parallel=True, cache=True)
def _search_in_parallel(forest, tree, queries, limit, blur, euclidean):
    for part in prange((queries.shape[0] + CHUNK - 1) // CHUNK):
        start = np.int64(part) * CHUNK
        some = queries[start : start + CHUNK]
        _search_some(forest, tree, some, limit, blur, euclidean)


def search(forest, tree, queries, limit, blur, euclidean):
    """Set `near` and `floor` of the clusters `queries`.

    Args:
        forest: the clusters; tree: (blocks, spreads, slots, low, high) over the living ones.
        limit: distances above it are not wanted: `near` stays -1 and `floor` rises above the limit.
        blur: absolute rounding of a distance between two means.
        euclidean: mean Euclidean distance, else mean squared distance.
    """
    run = _search_in_parallel if len(queries) > ALONE else _search_some
    run(forest, tree, queries, limit, blur, euclidean)
