"""The end of a linkage on a graphics processor: mean distances and their merges in torch.

The same merges as `_distance_matrix` and `_neighbor_chain`, by another way: a chain takes one merge
after the other, which leaves a graphics processor idle, so all reciprocal nearest neighbors merge
at once, as in `_reciprocal_pairs`, but on a matrix. Everything is float64 and sums in a fixed
order, so a run repeats bit for bit.

Shapes: C distinct rows of d columns, M clusters that are left.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._arithmetic import TIE
from ..codebook import available_memory
from ._clusters import Clusters, members_by_cluster
from ._neighbor_chain import merge_all, width_for

FEW = 2048  # clusters left that the processor's chain merges sooner than rounds of small kernels
BLOCK = 2**26  # numbers in what is made of the matrix at once: 512 MiB
ROOM = 12  # bytes for each entry of the matrix: 8, a quarter more to make it smaller, and blocks


def open_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: there is no such device here, or it has no float64.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device must be cpu or a device with float64 that is here, such as cuda; got {name!r}."
        ) from error
    return device


def matrix_side(device: torch.device) -> int:
    """Clusters whose matrix finds room on the device now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    return int((0.9 * max(0, free - 24 * BLOCK) / ROOM) ** 0.5)


@torch.no_grad()
def distance_matrix(
    clusters: Clusters, slots: np.ndarray, euclidean: bool, device: torch.device
) -> Tensor:
    """Mean distances (M, M) of the clusters `slots`, infinite on the diagonal.

    Args:
        slots: (M,) in the order of the clusters' smallest members.
        euclidean: mean Euclidean distance, else mean squared distance.
    """

    def moved(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    count = len(slots)
    matrix = torch.empty(count, count, dtype=torch.float64, device=device)
    if euclidean:
        members, starts = members_by_cluster(clusters, slots)
        _fill_with_means(
            moved(clusters.rows[members]),
            moved(clusters.weight[members]),
            moved(np.diff(starts)),
            moved(clusters.size[slots]),
            matrix,
        )
    else:
        # means and variances give mean squared distances exactly
        means, variance = moved(clusters.mean[slots]), moved(clusters.variance[slots])
        for rows in torch.arange(count, device=device).split(max(1, BLOCK // count)):
            squares = _distances(means[rows], means).square_()
            matrix[rows] = squares.add_(variance).add_(variance[rows, None])
    _mirror(matrix)
    return matrix


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (A, B), each from the difference of two rows: no digit is lost."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _fill_with_means(
    points: Tensor, weight: Tensor, lengths: Tensor, size: Tensor, matrix: Tensor
) -> None:
    """Fill the matrix with sums over pairs of members, divided by the pairs.

    Args:
        points: (C, d) sorted by cluster; weight: (C,) of each.
        lengths: (M,) int64 points of each cluster; size: (M,) their weights' sums.
    """
    count = len(lengths)
    owner = torch.repeat_interleave(torch.arange(count, device=points.device), lengths)
    matrix.zero_()
    # blocks of points cut through clusters, so sums grow from block to block, always in the same
    # order: C^2 d operations
    for block in torch.arange(len(points), device=points.device).split(BLOCK // len(points) or 1):
        low, high = int(owner[block[0]]), int(owner[block[-1]]) + 1
        sums = _distances(points, points[block]).mul_(weight[:, None])
        if count < len(points):
            sums = torch.segment_reduce(sums, "sum", lengths=lengths, axis=0)
        sums = sums.mul_(weight[block]).T.contiguous()
        if high - low < len(block):
            own = torch.bincount(owner[block] - low, minlength=high - low)
            sums = torch.segment_reduce(sums, "sum", lengths=own, axis=0)
        matrix[low:high] += sums
    matrix.div_(size).div_(size[:, None])


def _mirror(matrix: Tensor) -> None:
    """What stands left of the diagonal becomes what stands right of it; the diagonal infinite."""
    side = 1024
    for low in range(0, len(matrix), side):
        square = matrix[low : low + side, low : low + side]
        square.copy_(square.triu(1) + square.triu(1).T)
        matrix[low + side :, low : low + side] = matrix[low : low + side, low + side :].T
    matrix.fill_diagonal_(torch.inf)


@torch.no_grad()
def merge_in_rounds(matrix: Tensor, size: Tensor, advance: Callable[[int], object]) -> np.ndarray:
    """All merges (M - 1, 3) of the clusters of a distance matrix: rows, lower first, and height.

    Args:
        matrix: (M, M) symmetric, infinite on the diagonal; changed in place.
        size: (M,) weights of the clusters, which are in the order of their smallest members.
        advance: called with numbers of merges as they are made.
    """
    # rows of the matrix are numbered anew when it shrinks; `name` has the numbers of the start
    name = torch.arange(len(matrix), device=matrix.device)
    active = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    nearest = name.clone()
    queries, left, done = name, len(matrix), [np.empty((0, 3))]
    while left > FEW:
        # clusters that merged, or whose neighbor did, look for their neighbor; all others still
        # have it, for nothing came nearer (reducibility)
        _look(matrix, queries, nearest)

        # each pair of nearest neighbors is one of the final tree
        rows = torch.arange(len(matrix), device=matrix.device)
        kept = ((nearest[nearest] == rows) & (rows < nearest) & active).nonzero()[:, 0]
        if len(kept) == 0:
            kept = _closest(matrix, nearest, active)
        gone = nearest[kept]
        pairs = torch.stack([name[kept].double(), name[gone].double(), matrix[kept, gone]], 1)
        done.append(pairs.cpu().numpy())
        # the rows of a part of the pairs stand beside the matrix for a moment
        for a, b in zip(*(x.split(max(1, BLOCK // len(matrix))) for x in (kept, gone)),
                        strict=True):  # fmt: skip
            _merge(matrix, size, a, b)
        advance(len(kept))
        left -= len(kept)
        active[gone] = False
        changed = torch.zeros_like(active)
        changed[kept] = changed[gone] = True
        queries = (active & (changed | changed[nearest])).nonzero()[:, 0]

        # once half of the rows are of no use, the rest moves together
        if left <= len(matrix) // 2 and left > FEW:
            inside = active.nonzero()[:, 0]
            place = active.cumsum(0) - 1
            matrix, size, name = _smaller(matrix, inside), size[inside], name[inside]
            nearest, queries = place[nearest[inside]], place[queries]
            active = torch.ones_like(inside, dtype=torch.bool)
    if left > 1:
        done.append(_finish(matrix, size, name, active, advance))
    return np.concatenate(done)


def _look(matrix: Tensor, queries: Tensor, nearest: Tensor) -> None:
    """Set the nearest neighbor of the rows `queries`: of all that tie, the lowest."""
    rows = torch.arange(len(matrix), device=matrix.device)
    for part in queries.split(max(1, BLOCK // len(matrix))):
        values = matrix[part]
        tied = values <= values.amin(1, keepdim=True) * (1 + TIE)
        nearest[part] = torch.where(tied, rows, len(matrix)).amin(1)


def _closest(matrix: Tensor, nearest: Tensor, active: Tensor) -> Tensor:
    """The lower row (1,) of the closest pair, made reciprocal.

    Without rounding some pair always is. Rounding can make three tied clusters point in a circle;
    then the pair that the order of ties names merges.
    """
    rows = active.nonzero()[:, 0]
    heights = matrix[rows, nearest[rows]]
    query = rows[heights <= heights.min() * (1 + TIE)].min()
    low, high = torch.minimum(query, nearest[query]), torch.maximum(query, nearest[query])
    nearest[low], nearest[high] = high, low
    return low[None]


def _merge(matrix: Tensor, size: Tensor, a: Tensor, b: Tensor) -> None:
    """Clusters a (P,) take in clusters b (P,): D(a + b, j) = (|a| D(a, j) + |b| D(b, j)) / both."""
    both = size[a] + size[b]
    share_a, share_b = size[a] / both, size[b] / both
    rows = matrix[a].mul_(share_a[:, None]).add_(matrix[b].mul_(share_b[:, None]))
    # pairs that merge together are at each other's new distance, the same bits both ways
    square = rows[:, a] * share_a + rows[:, b] * share_b
    rows[:, a] = (square + square.T) / 2
    rows[:, b] = torch.inf
    matrix[a], matrix[b] = rows, torch.inf
    matrix[:, a], matrix[:, b] = rows.T, torch.inf
    size[a] = both


def _smaller(matrix: Tensor, inside: Tensor) -> Tensor:
    """The matrix of the rows `inside` alone."""
    out = matrix.new_empty(len(inside), len(inside))
    step = max(1, BLOCK // len(matrix))
    for first in range(0, len(inside), step):
        out[first : first + step] = matrix[inside[first : first + step]][:, inside]
    return out


def _finish(
    matrix: Tensor, size: Tensor, name: Tensor, active: Tensor, advance: Callable[[int], object]
) -> np.ndarray:
    """The merges of what is left, by the chain on the processor."""
    inside = active.nonzero()[:, 0]
    count = len(inside)
    values = np.empty((count, width_for(count)))
    values[:, :count] = _smaller(matrix, inside).cpu().numpy()
    merges = merge_all(values, size[inside].cpu().numpy(), advance)
    merges[:, :2] = name[inside].cpu().numpy()[merges[:, :2].astype(np.int64)]
    return merges
