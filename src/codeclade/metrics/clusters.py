"""How good a partition of a codebook is, from the codebook and counts of codes alone.

Shapes: N codes, K clusters, d code width. Rows and labels are NumPy arrays.
"""

import numpy as np

PARTNERS = 64  # other members a code is compared with
PAIRS = 200_000  # pairs the cophenetic correlation is taken over


def random_like(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """A random partition (N,) with the cluster sizes of `labels` (N,)."""
    return np.random.default_rng(seed).permutation(labels)


def size_spread(labels: np.ndarray) -> dict[str, float]:
    """Smallest, median and largest cluster size, and the number of clusters of one code."""
    sizes = np.bincount(labels)
    return {
        "smallest": int(sizes.min()),
        "median": float(np.median(sizes)),
        "largest": int(sizes.max()),
        "alone": int((sizes == 1).sum()),
    }


def in_cluster_distance(rows: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Mean Euclidean distance from a code to the other members of its cluster.

    Averaged over all codes, so that partitions are compared over the same ones; a code that is
    alone counts as 0, since nothing can take its place. Exact for clusters of up to 65 codes; in
    larger ones every code is compared with 64 members drawn at random.
    """
    # Codes sorted by cluster, shuffled inside: a cluster is one run, and the code `shift` places
    # further in it, counted around the run, is a random other member. So one vector operation
    # serves all codes of all clusters.
    shuffle = np.random.default_rng(seed).random(len(labels))
    order = np.lexsort((shuffle, labels))
    sizes = np.bincount(labels)
    size = sizes[labels[order]]
    start = (np.cumsum(sizes) - sizes)[labels[order]]
    place = np.arange(len(labels)) - start
    total = np.zeros(len(labels))
    # At most 64 steps on (N, d); all pairs of one large cluster would take its size squared.
    for shift in range(1, min(PARTNERS, size.max() - 1) + 1):
        some = np.flatnonzero(size > shift)
        partner = start[some] + (place[some] + shift) % size[some]
        total[some] += np.linalg.norm(rows[order[some]] - rows[order[partner]], axis=1)
    # A cluster of s codes has met s - 1 partners if that is less than 64.
    return float((total / np.clip(size - 1, 1, PARTNERS)).mean())


def leaf_order(children: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves (N,) of a full tree from left to right, and the heights (N-1,) between neighbors.

    The height at which two leaves meet is the largest one between them.
    """
    n = len(children) + 1
    # Every subtree is a linked list of its leaves, and a merge links the last leaf of one to the
    # first of the other. That is linear in N and needs no recursion, which a tree shaped like a
    # chain would take too deep.
    head, tail = list(range(2 * n - 1)), list(range(2 * n - 1))
    after, gap = [-1] * n, [0.0] * n
    for i, ((a, b), height) in enumerate(zip(children.tolist(), heights.tolist(), strict=True)):
        last = tail[a]
        after[last], gap[last] = head[b], height
        head[n + i], tail[n + i] = head[a], tail[b]
    leaf, order = head[-1], []
    while leaf >= 0:
        order.append(leaf)
        leaf = after[leaf]
    return np.array(order), np.array([gap[leaf] for leaf in order[:-1]])


def cophenetic_correlation(
    rows: np.ndarray, children: np.ndarray, heights: np.ndarray, seed: int = 0, pairs: int = PAIRS
) -> float:
    """Correlation of the distance of two codes with the height at which the tree joins them.

    1 is a tree that tells all distances. Over all pairs where there are at most `pairs`, else over
    that many drawn at random.

    Args:
        rows: (N, d) what was clustered.
        children, heights: (N-1, 2) and (N-1,), a full tree as SciPy numbers it.
    """
    # Pairs: all, or a sample without pairs of a code with itself.
    n = len(rows)
    if n * (n - 1) // 2 <= pairs:
        a, b = np.triu_indices(n, 1)
    else:
        random = np.random.default_rng(seed)
        a = random.integers(n, size=pairs)
        b = (a + random.integers(1, n, size=pairs)) % n

    # Two leaves are joined at the largest height between them in leaf order.
    order, gaps = leaf_order(children, heights)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    low, high = np.minimum(place[a], place[b]), np.maximum(place[a], place[b])
    joined = _range_max(gaps, low, high)
    distance = np.linalg.norm(rows[a] - rows[b], axis=1)
    return float(np.corrcoef(distance, joined)[0, 1])


def _range_max(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """max(values[low:high]) for many ranges, through a table of maxima over powers of two."""
    # table[p][i] is the largest of the 2^p values from i on: N log N numbers once, not a search for
    # every pair.
    table = [values]
    while 2 ** len(table) <= len(values):
        half = 2 ** (len(table) - 1)
        table.append(np.maximum(table[-1][:-half], table[-1][half:]))
    # The largest power that fits, by the exact exponent (a logarithm may round across a power). Two
    # windows of that width cover a range; where they overlap a maximum may count twice.
    level = np.frexp(high - low)[1] - 1
    answer = np.empty(len(low))
    for power in np.unique(level):
        some = level == power
        row, width = table[power], 2**power
        answer[some] = np.maximum(row[low[some]], row[high[some] - width])
    return answer


def cluster_entropy(counts: np.ndarray, labels: np.ndarray) -> float:
    """Entropy in bits of the clusters of codes seen `counts` (N,) times: what one token tells the
    generator that knows nothing but frequencies; log2 K would be clusters used equally."""
    seen = np.bincount(labels, weights=counts)
    share = seen[seen > 0] / seen.sum()
    return float(-(share * np.log2(share)).sum())
