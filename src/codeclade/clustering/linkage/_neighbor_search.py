"""Exact nearest neighbors under average linkage, by bounds on a tree of boxes.

D(A, B) is the mean of |a - b| over all pairs of members. With the mean m and the variance v (mean
squared distance of the members to m) of each cluster,

    |mA - mB|  <=  D(A, B)  <=  sqrt(|mA - mB|^2 + vA + vB).

Left: |mA - mB| is the norm of the mean of a - b, which the mean norm cannot be below (triangle
inequality). Right: the radicand is the mean of |a - b|^2, and a mean is never above the root of
the mean square (Jensen). So the nearest neighbor of A is among the clusters whose lower bound is
not above the least of all upper bounds, and only their members have to be summed.

Under squared Euclidean distances the radicand is the distance itself, and nothing is summed.
"""

import numpy as np
from numba import njit, prange

from .._arithmetic import LANES, TIE, squared_distance
from ._clusters import mean_distance
from ._space_tree import LEAF

CHUNK = 32  # queries that share their scratch space
SERIAL = 256  # queries below which waking the threads costs more than it saves
CANDIDATES = 512  # candidates held before they are evaluated
DEPTH = 64  # room on the stack: deeper than any tree
RELATIVE_TOLERANCE = 1e-11  # rounding allowed in a bound


@njit(cache=True, fastmath={"reassoc", "contract"})
def _squared_distance_to_box(point, low, high):
    """Squared distance from a point to a box, zero inside."""
    total = 0.0
    for k in range(point.shape[0]):
        outside = max(low[k] - point[k], point[k] - high[k], 0.0)
        total += outside * outside
    return total


@njit(cache=True, fastmath={"reassoc", "contract"})
def _squared_distances_to_leaf(point, block, out):
    """Squared distances from a point to the LEAF columns of a block; unrolled by LANES rows."""
    for j in range(LEAF):
        out[j] = 0.0
    for k in range(0, point.shape[0], LANES):
        p0, p1, p2, p3 = point[k], point[k + 1], point[k + 2], point[k + 3]
        p4, p5, p6, p7 = point[k + 4], point[k + 5], point[k + 6], point[k + 7]
        for j in range(LEAF):
            a, b = block[k, j] - p0, block[k + 1, j] - p1
            c, d = block[k + 2, j] - p2, block[k + 3, j] - p3
            e, f = block[k + 4, j] - p4, block[k + 5, j] - p5
            g, h = block[k + 6, j] - p6, block[k + 7, j] - p7
            out[j] += (a * a + b * b) + (c * c + d * d) + (e * e + f * f) + (g * g + h * h)


@njit(cache=True)
def _prune_above(upper_bound, tolerance):
    """Squared lower bounds up to this may belong to a true distance of sqrt(upper_bound).

    Means carry rounding errors of `tolerance`, relative to the largest coordinate: two computed
    means may be that much farther apart than the true ones.
    """
    radius = np.sqrt(upper_bound) * (1 + RELATIVE_TOLERANCE) + tolerance
    return radius * radius


@njit(cache=True)
def _drop_above(slots, lower_bounds, count, prune_above):
    """Drop candidates whose lower bound is above; returns how many are left."""
    kept = 0
    for c in range(count):
        if lower_bounds[c] <= prune_above:
            slots[kept], lower_bounds[kept] = slots[c], lower_bounds[c]
            kept += 1
    return kept


@njit(cache=True)
def _evaluate(clusters, query, slots, lower_bounds, count, best, best_slot, euclidean):
    """The nearest of `best_slot` and the candidates: (distance, slot).

    Candidates are taken in the order of their lower bounds; the first whose lower bound exceeds the
    best distance ends the loop, for all others are farther still. Of distances that agree to 12
    digits the cluster with the smallest member wins.
    """
    while count > 0:
        # a plain scan for the least lower bound: candidates are few, mostly 2 to 50, and a heap of
        # them would cost more than it saves
        pick = 0
        for c in range(1, count):
            if lower_bounds[c] < lower_bounds[pick]:
                pick = c
        if euclidean and np.sqrt(lower_bounds[pick]) > best * (1 + RELATIVE_TOLERANCE):
            break
        slot = slots[pick]
        if euclidean:
            # the sum over members stops as soon as it exceeds the best so far
            distance = mean_distance(clusters, query, slot, best * (1 + RELATIVE_TOLERANCE))
        else:
            distance = lower_bounds[pick]  # already the mean squared distance
        # a bound without a slot is a limit, which a distance may reach; against a slot the ties
        # decide, so that the result does not depend on the order of visits
        if best_slot < 0:
            nearer = distance <= best
        else:
            smaller = clusters.first[slot] < clusters.first[best_slot]
            nearer = distance <= best * (1 + TIE if smaller else 1 - TIE)
        if nearer:
            best, best_slot = distance, slot
        # the last one fills the gap: order does not matter to the scan
        count -= 1
        slots[pick], lower_bounds[pick] = slots[count], lower_bounds[count]
    return best, best_slot


@njit(cache=True)
def _search_one(clusters, tree, query, max_distance, tolerance, euclidean, scratch):
    """Nearest neighbor of `query` within `max_distance`: (distance, slot), or (more, -1) if none.

    All comparisons are between squares. Invariant: the nearest neighbor is never farther than
    sqrt(upper_bound), and it is among the candidates, is `best_slot`, or is not visited yet.
    """
    candidates, lower_bounds, stack, stack_bounds, leaf_distances = scratch
    mean, variance = clusters.mean[query], clusters.variance[query]
    leaves = tree.blocks.shape[0]
    count = 0  # candidates held
    # What the query adds to every squared lower bound: under Euclidean distances nothing, under
    # squared ones its variance, for D = |mA - mB|^2 + vA + vB.
    base = 0.0 if euclidean else variance

    # Phase 1: a first upper bound. Nothing beyond max_distance is wanted, and the neighbor that was
    # near before the last merge is probably still near: its upper bound costs d multiplications.
    best, best_slot = max_distance * (1 + RELATIVE_TOLERANCE), -1
    upper_bound = best * best if euclidean else best
    start = clusters.candidate[query]
    if start >= 0 and clusters.active[start]:
        between = squared_distance(mean, clusters.mean[start])
        upper = between + variance + clusters.variance[start]
        upper_bound = min(upper_bound, upper * (1 + RELATIVE_TOLERANCE))
    prune_above = _prune_above(upper_bound, tolerance)

    # Phase 2: walk down the tree, nearer child first. A box whose distance to the mean exceeds the
    # upper bound holds no cluster that could be nearest: every lower bound inside is larger still.
    stack[0], stack_bounds[0], stack_size = 1, 0.0, 1
    while stack_size > 0:
        stack_size -= 1
        node = stack[stack_size]
        if stack_bounds[stack_size] + base > prune_above:
            continue  # the upper bound has come down since the node was put here
        while node < leaves:
            left = _squared_distance_to_box(mean, tree.low[2 * node], tree.high[2 * node])
            right = _squared_distance_to_box(mean, tree.low[2 * node + 1], tree.high[2 * node + 1])
            swap = right < left
            stack[stack_size] = 2 * node if swap else 2 * node + 1
            stack_bounds[stack_size] = left if swap else right
            if stack_bounds[stack_size] + base <= prune_above:
                stack_size += 1
            node = 2 * node + 1 if swap else 2 * node
            if min(left, right) + base > prune_above:
                node = 0  # neither child can hold the nearest neighbor
                break
        if node == 0:
            continue

        # Phase 3: a leaf. Clusters whose lower bound passes become candidates, and the least upper
        # bound seen tightens what follows.
        leaf = node - leaves
        _squared_distances_to_leaf(mean, tree.blocks[leaf], leaf_distances)
        for c in range(LEAF):
            lower, slot = leaf_distances[c], tree.slots[leaf, c]
            if lower + base > prune_above or slot < 0 or slot == query:
                continue
            upper = lower + variance + tree.variances[leaf, c]
            if not euclidean:
                lower = upper  # both bounds are the distance
                if lower > prune_above:
                    continue
            if count == CANDIDATES:
                # bounds came down since many were taken: most drop out without evaluation
                count = _drop_above(candidates, lower_bounds, count, prune_above)
            if count == CANDIDATES:
                best, best_slot = _evaluate(
                    clusters, query, candidates, lower_bounds, count, best, best_slot, euclidean
                )
                upper_bound = min(upper_bound, best * best if euclidean else best)
                count = 0
            candidates[count], lower_bounds[count] = slot, lower
            count += 1
            if upper < upper_bound:
                upper_bound = upper
            prune_above = _prune_above(upper_bound, tolerance)

    # Phase 4: exact distances of the few that are left decide.
    # Each costs |A| |B| d at most. On 8192 points in 8 dimensions 2 to 3 are left while half of the
    # clusters are, 20 to 48 once a 64th is, each with more members: there the matrix takes over.
    count = _drop_above(candidates, lower_bounds, count, prune_above)
    best, best_slot = _evaluate(
        clusters, query, candidates, lower_bounds, count, best, best_slot, euclidean
    )
    if best_slot < 0:
        return max_distance * (1 + RELATIVE_TOLERANCE), -1
    return best, best_slot


@njit(cache=True)
def _search_some(clusters, tree, queries, max_distance, tolerance, euclidean):
    """`find_nearest` for one thread."""
    # one allocation for many queries, and none shared between threads
    scratch = (
        np.empty(CANDIDATES, np.int64),
        np.empty(CANDIDATES),
        np.empty(DEPTH, np.int64),
        np.empty(DEPTH),
        np.empty(LEAF),
    )
    for query in queries:
        distance, slot = _search_one(
            clusters, tree, query, max_distance, tolerance, euclidean, scratch
        )
        clusters.nearest[query], clusters.lower_bound[query] = slot, distance


@njit(parallel=True, cache=True)
def _search_in_parallel(clusters, tree, queries, max_distance, tolerance, euclidean):
    for part in prange((queries.shape[0] + CHUNK - 1) // CHUNK):
        start = np.int64(part) * CHUNK  # prange counts unsigned, and mixing signs makes floats
        some = queries[start : start + CHUNK]
        _search_some(clusters, tree, some, max_distance, tolerance, euclidean)


def find_nearest(clusters, tree, queries, max_distance, tolerance, euclidean) -> None:
    """Set `nearest` and `lower_bound` of the clusters `queries`.

    Args:
        clusters: the store, whose arrays are changed in place.
        tree: SpaceTree over the active clusters.
        queries: (Q,) int64 slots.
        max_distance: larger distances are not wanted: `nearest` stays -1 and `lower_bound` rises
            above it.
        tolerance: absolute rounding error of a distance between two means.
        euclidean: mean Euclidean distance, else mean squared distance.
    """
    run = _search_in_parallel if len(queries) > SERIAL else _search_some
    run(clusters, tree, queries, max_distance, tolerance, euclidean)
