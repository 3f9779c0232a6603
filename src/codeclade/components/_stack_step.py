"""A decoding step of few rows through all blocks, as one compiled call with the CPU's threads; and
the attention of one block, for steps of more rows.

With one image at a time a step reads every weight for two products: the memory is the limit, and
calls between products cost as much as what they compute. Here threads share the output rows of a
product, and nothing returns to Python before the last block is done. All arithmetic and what lies
between products is float32; weights are bfloat16 (their bits), float32, or int8 with a scale for
every output row. A row has the same numbers whatever the others are.

Shapes: M rows of vectors, R rows of the batch, n new positions (M = R n), S positions in the cache,
H heads, h width of a head, D = H h, F width of the feed-forward layer, N outputs and K inputs of a
product.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import numba
import numpy as np
from numba import njit, prange, types
from numba.core import config
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from codeclade.components._small_steps import (
    VECTORS,
    _add_rows,
    _attend_one,
    _normalize_row,
    _turn,
    exp,
    put,
    widen,
)

# Columns of `places`: addresses of a block's norms, weights and their scales.
NORM, QKV, QKV_SCALE, OUT, OUT_SCALE, NORM_2, BOTH, BOTH_SCALE, DOWN, DOWN_SCALE = range(10)
BLOCK = 8192  # weights that all vectors meet before the next ones: they stay in the nearest cache
ONE_AT_A_TIME = threading.Lock()  # numba's simplest pool of threads does not take two callers


def _typed(typingctx, address, like):
    """The pointer to numbers of an array's dtype that an address stands for."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), generate


_pointer: Any = intrinsic(_typed)


@njit(error_model="numpy", fastmath=VECTORS)
def _rows(x, weight, scale, out, start, stop):
    """out[:, start:stop] of x (M, K) and those rows of W (N, K)."""
    count, width = x.shape
    block = max(1, BLOCK // width)
    for low in range(start, stop, block):
        # Two vectors at once, for which a weight is read and widened once. The last one of an odd
        # number is its own partner: sums in another order would make another image of it.
        for m in range(0, count, 2):
            partner = min(m + 1, count - 1)
            first, second = x[m], x[partner]
            for n in range(low, min(low + block, stop)):
                row = weight[n]
                a = b = np.float32(0)
                for k in range(width):
                    number = widen(row[k])
                    a += number * first[k]
                    b += number * second[k]
                out[m, n], out[partner, n] = a * scale[n], b * scale[n]


@njit(error_model="numpy", fastmath=VECTORS, parallel=True)
def _product(x, weight, scale, out, parts):
    """out (M, N) = x W^T of x (M, K), W (N, K) times scales (N,)."""
    count = weight.shape[0]
    for part in prange(parts):
        _rows(x, weight, scale, out, part * count // parts, (part + 1) * count // parts)


@njit(error_model="numpy", fastmath=VECTORS, parallel=True)
def _gated_product(x, weight, scale, both, out, parts):
    """out (M, F) = silu(x G^T) * x U^T of W (2 F, K), whose halves are G and U.

    Args:
        both: (M, 2 F) scratch.
    """
    width = out.shape[1]
    for part in prange(parts):
        start, stop = part * width // parts, (part + 1) * width // parts
        _rows(x, weight, scale, both, start, stop)
        _rows(x, weight, scale, both, width + start, width + stop)
        for m in range(x.shape[0]):
            gate, up, row = both[m, :width], both[m, width:], out[m]
            for n in range(start, stop):
                row[n] = gate[n] / (np.float32(1) + exp(-gate[n])) * up[n]


@njit(error_model="numpy", fastmath=VECTORS, parallel=True)
def _attention(mixed, cos, sin, keys, values, bias, out, past, parts):
    """Attention of n new positions, whose keys and values enter the cache at `past`.

    Args:
        mixed: (R, n, 3, H, h) queries, keys and values before they are turned.
        cos, sin: (n, h) of the new positions.
        keys, values: (R, H, room, h).
        bias: (R, room), -inf where a position is hidden, else 0.
        out: (R, n, H, h).
    """
    rows, heads, room, width = keys.shape
    new, count = mixed.shape[1], rows * heads
    one, factor = np.float32(1), np.float32(1 / np.sqrt(width))
    for part in prange(parts):
        query, total = np.empty(width, np.float32), np.empty(width, np.float32)
        scores = np.empty(room, np.float32)
        for item in range(part * count // parts, (part + 1) * count // parts):
            r, head = item // heads, item % heads
            for i in range(new):
                _turn(mixed[r, i, 1, head], cos[i], sin[i], one, keys[r, head, past + i])
                for k in range(width):
                    put(values[r, head, past + i], k, widen(mixed[r, i, 2, head, k]))
            for i in range(new):
                _turn(mixed[r, i, 0, head], cos[i], sin[i], factor, query)
                seen = past + i + 1
                kept = keys[r, head, :seen], values[r, head, :seen], bias[r, :seen]
                _attend_one(query, kept[0], kept[1], kept[2], scores, total, out[r, i, head])


@njit(error_model="numpy", fastmath=VECTORS, cache=True, nogil=True)
def _attend(number, addresses, sizes, parts):
    """See `attend`."""
    mixed_at, cos_at, sin_at, keys_at, values_at, bias_at, out_at = addresses
    rows, new, heads, width, past, room = sizes
    like = np.empty(0, np.float32)
    _attention(
        carray(_pointer(mixed_at, number), (rows, new, 3, heads, width)),
        carray(_pointer(cos_at, like), (new, width)),
        carray(_pointer(sin_at, like), (new, width)),
        carray(_pointer(keys_at, number), (rows, heads, room, width)),
        carray(_pointer(values_at, number), (rows, heads, room, width)),
        carray(_pointer(bias_at, like), (rows, room)),
        carray(_pointer(out_at, number), (rows, new, heads, width)),
        past,
        parts,
    )


@njit(error_model="numpy", fastmath=VECTORS, cache=True, nogil=True)
def _all_blocks(number, weight, places, caches, given, sizes, epsilon, parts):
    """See `all_blocks`."""
    x_at, out_at, cos_at, sin_at, bias_at = given
    rows, new, heads, width, inner, past, room = sizes
    count, size = rows * new, heads * width
    like = np.empty(0, np.float32)
    x_in = carray(_pointer(x_at, number), (count, size))
    out = carray(_pointer(out_at, number), (count, size))
    cos = carray(_pointer(cos_at, like), (new, width))
    sin = carray(_pointer(sin_at, like), (new, width))
    bias = carray(_pointer(bias_at, like), (rows, room))
    x = np.empty((count, size), np.float32)
    normed, added = np.empty_like(x), np.empty_like(x)
    mixed = np.empty((count, 3 * size), np.float32)
    both = np.empty((count, 2 * inner), np.float32)
    gated = np.empty((count, inner), np.float32)
    for m in range(count):
        for k in range(size):
            x[m, k] = widen(x_in[m, k])
    for layer in range(places.shape[0]):
        at = places[layer]
        # Attention.
        norm = carray(_pointer(at[NORM], number), (size,))
        for m in range(count):
            _normalize_row(x[m], norm, epsilon, normed[m])
        _product(
            normed,
            carray(_pointer(at[QKV], weight), (3 * size, size)),
            carray(_pointer(at[QKV_SCALE], like), (3 * size,)),
            mixed,
            parts,
        )
        _attention(
            mixed.reshape((rows, new, 3, heads, width)),
            cos,
            sin,
            carray(_pointer(caches[layer, 0], number), (rows, heads, room, width)),
            carray(_pointer(caches[layer, 1], number), (rows, heads, room, width)),
            bias,
            normed.reshape((rows, new, heads, width)),
            past,
            parts,
        )
        _product(
            normed,
            carray(_pointer(at[OUT], weight), (size, size)),
            carray(_pointer(at[OUT_SCALE], like), (size,)),
            added,
            parts,
        )
        # Feed-forward.
        norm = carray(_pointer(at[NORM_2], number), (size,))
        for m in range(count):
            _add_rows(x[m], added[m], x[m])
            _normalize_row(x[m], norm, epsilon, normed[m])
        _gated_product(
            normed,
            carray(_pointer(at[BOTH], weight), (2 * inner, size)),
            carray(_pointer(at[BOTH_SCALE], like), (2 * inner,)),
            both,
            gated,
            parts,
        )
        _product(
            gated,
            carray(_pointer(at[DOWN], weight), (size, inner)),
            carray(_pointer(at[DOWN_SCALE], like), (size,)),
            added,
            parts,
        )
        for m in range(count):
            _add_rows(x[m], added[m], x[m])
    for m in range(count):
        for k in range(size):
            put(out[m], k, x[m, k])


def all_blocks(
    number: Any,
    weight: Any,
    places: np.ndarray,
    caches: np.ndarray,
    given: tuple[int, ...],
    sizes: tuple[int, ...],
    epsilon: float,
    threads: int,
) -> None:
    """The output of the last block for n new positions, which enter the caches.

    Args:
        number, weight: empty arrays with the dtype of vectors and caches, and of weights; uint16
            stands for bfloat16.
        places: (layers, 10) addresses of what a block has, by the columns named above.
        caches: (layers, 2) addresses of its keys and its values (R, H, room, h).
        given: addresses of x and of the output (M, D), of cosines and sines (n, h) float32, and of
            what is added to scores (R, room) float32.
        sizes: R, n, H, h, F, positions in the cache so far, and room.
        epsilon: of the norms.
        threads: at most as many work.
    """
    with working(threads) as parts:
        _all_blocks(number, weight, places, caches, given, sizes, np.float32(epsilon), parts)


def attend(number: Any, addresses: tuple[int, ...], sizes: tuple[int, ...], threads: int) -> None:
    """`_attention` of one block.

    Args:
        number: as in `all_blocks`; also the dtype of `mixed` and the output.
        addresses: of `mixed`, cosines, sines, keys, values, bias and the output.
        sizes: R, n, H, h, positions in the cache so far, and room.
        threads: at most as many work.
    """
    with working(threads) as parts:
        _attend(number, addresses, sizes, parts)


@contextlib.contextmanager
def working(threads: int) -> Iterator[int]:
    """How many threads share the work inside, which are not shared with other callers."""
    parts = min(threads, cast(Any, config).NUMBA_NUM_THREADS)
    with ONE_AT_A_TIME:
        numba.set_num_threads(parts)
        yield parts
