"""The nearest-neighbor chain on a matrix of distances.

The chain (Benzecri 1982) walks from cluster to nearest neighbor until two are each other's, merges
these and goes on from the rest of the walk, which reducibility keeps valid. Every merge adds at
most two links, so M clusters take at most 3 M looks at a row: O(M^2) whatever the data.

What costs time is memory traffic, so three things avoid it:

- A merge changes a row and a column. The row is written at once; the column, which would touch M
  lines of cache for 8 bytes each, is put at the end of the matrix, and 64 columns are written
  together. Until then `recent` tells which entries a row lacks, and looking at a row fetches them.
- The neighbor of a new cluster is found while its row is computed.
- A look also finds the second least distance. When the neighbor merges, no distance falls below
  it (reducibility), so if the merged cluster is still nearer than that, it is the neighbor.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from .._arithmetic import TIE

RECENT = 64  # merges whose columns are written together
SEGMENT = 256  # entries whose least is kept while looking at a row
SPARE = 4  # one column more for every so many: room for new columns until the dead are dropped
PARALLEL = 2048  # clusters below which waking the threads costs more than it saves


class Matrix(NamedTuple):
    """Distances of M clusters and what is known of their neighbors.

    A cluster is numbered by the row it lives in, a merged one by the smaller of two rows; rows are
    in the order of the smallest members, and so are clusters. Its column moves.
    """

    distance: np.ndarray  # (M, W) mean distances, infinite on the diagonal
    size: np.ndarray  # (M,) rows of the codebook in each cluster
    column: np.ndarray  # (M,) int64 where the distances to a cluster stand
    cluster: np.ndarray  # (W,) int64 whose distances stand in a column
    dead: np.ndarray  # (W,) 0 where a column is in use, else infinity: added to a row before a look
    into: np.ndarray  # (M,) int64 the cluster itself while active, else what it merged into
    merges: np.ndarray  # (M,) int64 in which a cluster took part: a neighbor of old is told by it
    nearest: np.ndarray  # (M,) int64 nearest neighbor at the last look, -1 before
    nearest_merges: np.ndarray  # (M,) int64 `merges` of the nearest neighbor at the last look
    second: np.ndarray  # (M,) lower bound of the distance to every other cluster
    recent: np.ndarray  # (RECENT, 2) int64 cluster and column of merges not written to all rows
    written: np.ndarray  # (M,) int64 how many of them a row has
    least: np.ndarray  # scratch: least entry of each segment
    counts: np.ndarray  # (4,) int64: columns, recent merges, links of the chain, where to start it


def width_for(count: int) -> int:
    """Columns of the matrix for `count` clusters; never a multiple of 512 bytes, where walking
    down a column would use few sets of the cache."""
    width = count + max(2 * RECENT, count // SPARE)
    width += -width % 8
    return width + 8 if width % 64 == 0 else width


@njit(cache=True)
def _active(matrix, cluster):
    """The cluster that a cluster of old is in now."""
    while matrix.into[cluster] != cluster:
        cluster = matrix.into[cluster]
    return cluster


@njit(cache=True)
def _fetch(distance, recent, row, own, first, last):
    """Distances of a row, whose column is `own`, to the recent clusters first..last."""
    for k in range(first, last):
        distance[row, recent[k, 1]] = distance[recent[k, 0], own]


@njit(cache=True)
def _complete(matrix, row):
    """Fetch the distances to recently merged clusters that a row lacks.

    The recent cluster's own row has them: it was computed from complete rows, when `row` was
    already what it is.
    """
    _fetch(
        matrix.distance,
        matrix.recent,
        row,
        matrix.column[row],
        matrix.written[row],
        matrix.counts[1],
    )
    matrix.written[row] = matrix.counts[1]


@njit(cache=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def _least(values, dead):
    """The least value in a column that is in use."""
    least = np.inf
    for j in range(values.shape[0]):
        least = min(least, values[j] + dead[j])
    return least


@njit(cache=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def _average_into(a, b, share_a, share_b, dead):
    """a becomes the weighted average of a and b; its least value in a column that is in use."""
    least = np.inf
    for j in range(a.shape[0]):
        a[j] = share_a * a[j] + share_b * b[j]
        least = min(least, a[j] + dead[j])
    return least


@njit(cache=True)
def _settle(matrix, row):
    """Set the neighbor of a row, and the second least distance, from the least of each segment."""
    # M / SEGMENT numbers tell the least; the row itself is read only where they point
    columns, segments = matrix.counts[0], matrix.least
    count = (columns + SEGMENT - 1) // SEGMENT
    values, dead = matrix.distance[row], matrix.dead
    least = np.inf
    for s in range(count):
        least = min(least, segments[s])
    # of all that tie, the cluster with the smallest member; few segments hold any
    tied, nearest = least * (1 + TIE), -1
    for s in range(count):
        if segments[s] <= tied:
            for j in range(s * SEGMENT, min((s + 1) * SEGMENT, columns)):
                if values[j] + dead[j] <= tied and (nearest < 0 or matrix.cluster[j] < nearest):
                    nearest = matrix.cluster[j]
    # the least of the others: only the neighbor's own segment has to be read again
    own = matrix.column[nearest]
    second = np.inf
    for s in range(count):
        if s != own // SEGMENT:
            second = min(second, segments[s])
    for j in range(own // SEGMENT * SEGMENT, min((own // SEGMENT + 1) * SEGMENT, columns)):
        if j != own:
            second = min(second, values[j] + dead[j])
    matrix.nearest[row], matrix.nearest_merges[row] = nearest, matrix.merges[nearest]
    matrix.second[row] = second


@njit(cache=True)
def _nearest(matrix, row):
    """Nearest neighbor of an active cluster."""
    known = matrix.nearest[row]
    if known >= 0:
        # nothing has come nearer since the last look, so a neighbor that did not merge still is
        if matrix.into[known] == known and matrix.merges[known] == matrix.nearest_merges[row]:
            return known
        # one that merged still is, if what it is in now is nearer than all others were
        union = _active(matrix, known)
        _complete(matrix, row)
        if matrix.distance[row, matrix.column[union]] < matrix.second[row] * (1 - TIE):
            matrix.nearest[row], matrix.nearest_merges[row] = union, matrix.merges[union]
            return union
    # look at the whole row
    _complete(matrix, row)
    columns = matrix.counts[0]
    for s in range((columns + SEGMENT - 1) // SEGMENT):
        low, high = s * SEGMENT, min((s + 1) * SEGMENT, columns)
        matrix.least[s] = _least(matrix.distance[row, low:high], matrix.dead[low:high])
    _settle(matrix, row)
    return matrix.nearest[row]


@njit(cache=True)
def _merge(matrix, a, b):
    """Cluster a takes in cluster b: D(a + b, j) = (|a| D(a, j) + |b| D(b, j)) / (|a| + |b|)."""
    # both rows must be whole, or the average would take in distances to clusters of old
    _complete(matrix, a)
    _complete(matrix, b)
    total = matrix.size[a] + matrix.size[b]
    share_a, share_b = matrix.size[a] / total, matrix.size[b] / total
    columns = matrix.counts[0]
    # both columns are out of use, a new one stands at the end
    matrix.dead[matrix.column[a]] = matrix.dead[matrix.column[b]] = np.inf
    # Lance-Williams, and the least of each segment while it is in the cache
    for s in range((columns + SEGMENT - 1) // SEGMENT):
        low, high = s * SEGMENT, min((s + 1) * SEGMENT, columns)
        matrix.least[s] = _average_into(
            matrix.distance[a, low:high],
            matrix.distance[b, low:high],
            share_a,
            share_b,
            matrix.dead[low:high],
        )
    matrix.size[a], matrix.into[b] = total, a
    matrix.merges[a] += 1
    _settle(matrix, a)
    matrix.column[a], matrix.cluster[columns], matrix.dead[columns] = columns, a, 0.0
    matrix.distance[a, columns] = np.inf
    matrix.counts[0] += 1
    # other rows get the new column later
    matrix.recent[matrix.counts[1], 0], matrix.recent[matrix.counts[1], 1] = a, columns
    matrix.counts[1] += 1
    matrix.written[a] = matrix.counts[1]


@njit(cache=True)
def _chain(matrix, links, merges):
    """Fill `merges` (some, 3) with the next pairs of clusters, lower first, and their distance.

    Args:
        links: (M,) int64, the chain; changed.
    """
    length, start = matrix.counts[2], matrix.counts[3]
    for step in range(merges.shape[0]):
        # extend the chain until its last two links are each other's nearest neighbor
        while True:
            if length == 0:
                # `start` never goes back, so all these looks together are O(M)
                while matrix.into[start] != start:
                    start += 1
                links[0], length = start, 1
            tip = links[length - 1]
            other = _nearest(matrix, tip)
            if length > 1 and other == links[length - 2]:
                break
            if length == links.shape[0]:
                length = 1  # rounding closed a circle: start again from the tip
                links[0] = tip
            links[length] = other
            length += 1
        # merge them; distances along the chain fell, so what is left of it is still a chain
        length -= 2
        a, b = min(tip, other), max(tip, other)
        # the height may stand in a column that row a has not fetched yet
        _complete(matrix, a)
        merges[step, 0], merges[step, 1] = a, b
        merges[step, 2] = matrix.distance[a, matrix.column[b]]
        _merge(matrix, a, b)
    matrix.counts[2], matrix.counts[3] = length, start


@njit(cache=True)
def _write_rows(distance, into, column, recent, written, count, low, high):
    """Give the rows low..high their distances to all `count` recent clusters."""
    for row in range(low, high):
        if into[row] == row:
            _fetch(distance, recent, row, column[row], written[row], count)


@njit(cache=True)
def _move_columns(distance, into, kept, low, high):
    """Move the columns `kept`, ascending, to the front of the rows low..high."""
    for row in range(low, high):
        if into[row] == row:
            values = distance[row]
            for j in range(kept.shape[0]):  # nothing is overwritten before its own move
                values[j] = values[kept[j]]


@njit(parallel=True, cache=True)
def _write_rows_in_parallel(distance, into, column, recent, written, count):
    rows = into.shape[0]
    for part in prange((rows + SEGMENT - 1) // SEGMENT):
        low = np.int64(part) * SEGMENT  # prange counts unsigned, and mixing signs makes floats
        high = min(low + SEGMENT, rows)
        _write_rows(distance, into, column, recent, written, count, low, high)


@njit(parallel=True, cache=True)
def _move_columns_in_parallel(distance, into, kept):
    rows = into.shape[0]
    for part in prange((rows + SEGMENT - 1) // SEGMENT):
        low = np.int64(part) * SEGMENT
        _move_columns(distance, into, kept, low, min(low + SEGMENT, rows))


def _write_recent(matrix: Matrix) -> None:
    """Write the columns of recent merges to all rows; drop those out of use if room is short."""
    # what is known: rows are whole up to `written`, and each recent cluster's own row is whole
    columns, width = matrix.counts[0], matrix.distance.shape[1]
    in_use = np.flatnonzero(matrix.dead[:columns] == 0)

    parallel = len(in_use) > PARALLEL
    # recent clusters that merged again have no column in use
    recent = matrix.recent[: matrix.counts[1]]
    current = matrix.dead[recent[:, 1]] == 0
    written = np.concatenate([[0], np.cumsum(current)])[matrix.written]
    recent = recent[current]
    # all rows must be complete before columns move: they complete each other
    distance, into, rows = matrix.distance, matrix.into, len(matrix.size)
    known = (distance, into, matrix.column, recent, written, len(recent))
    if parallel:
        _write_rows_in_parallel(*known)
    else:
        _write_rows(*known, 0, rows)
    matrix.written[:] = matrix.counts[1] = 0
    # room runs out once in about M / SPARE merges, and dead columns, which a look reads too, soon
    # go once they outnumber the live: moving costs each merge O(M) on average
    if columns + RECENT > width or 2 * len(in_use) < columns:
        if parallel:
            _move_columns_in_parallel(distance, into, in_use)
        else:
            _move_columns(distance, into, in_use, 0, rows)
        clusters = matrix.cluster[in_use]
        matrix.cluster[: len(in_use)], matrix.dead[: len(in_use)] = clusters, 0
        matrix.column[clusters] = np.arange(len(in_use))
        matrix.counts[0] = len(in_use)


def merge_all(
    distance: np.ndarray, size: np.ndarray, advance: Callable[[int], object]
) -> np.ndarray:
    """All merges (M - 1, 3) of the clusters of a distance matrix: rows, lower first, and height.

    Args:
        distance: (M, width_for(M)) mean distances in the first M columns, infinite on the diagonal;
            changed in place.
        size: (M,) weights of the clusters, which are in the order of their smallest members.
        advance: called with numbers of merges as they are made.
    """
    # nothing is known of any neighbor; Lance-Williams updates overwrite the matrix, since a second
    # one would double what is by far the most memory of the whole linkage
    count, width = distance.shape
    matrix = Matrix(
        distance=distance,
        size=size.copy(),
        column=np.arange(count),
        cluster=np.arange(width),
        dead=np.zeros(width),
        into=np.arange(count),
        merges=np.zeros(count, np.int64),
        nearest=np.full(count, -1),
        nearest_merges=np.zeros(count, np.int64),
        second=np.zeros(count),
        recent=np.empty((RECENT, 2), np.int64),
        written=np.zeros(count, np.int64),
        least=np.empty(-(-width // SEGMENT)),
        counts=np.array([count, 0, 0, 0]),
    )
    merges, links = np.empty((count - 1, 3)), np.empty(count, np.int64)
    # at most 3 M looks at a row in all, whatever the data. After each batch Python has a turn: it
    # hears an interrupt, and the columns of the batch are written
    for start in range(0, len(merges), RECENT):
        part = merges[start : start + RECENT]
        _chain(matrix, links, part)
        _write_recent(matrix)
        advance(len(part))
    return merges
