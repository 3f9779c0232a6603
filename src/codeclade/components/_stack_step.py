"""A decoding step of few rows through all blocks, as one compiled call with the CPU's threads; a
stage of IAR2's head likewise; and the attention of one block, for steps of more rows.

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
import math
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
# Rows of `layers`, the linear ones of a head; each has addresses of weights, scales and biases.
COMPRESS, COMPRESS_2, COMBINE, COMBINE_2, WIDE, LOGITS = range(6)
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


@njit(error_model="numpy", fastmath=VECTORS)
def _blocks(x, turns, number, weight, places, caches, sizes, epsilon, parts):
    """x (M, D) becomes the output of the last block.

    Args:
        turns: cosines and sines (n, h), and what is added to scores (R, room).

    The other arguments are those of `all_blocks`.
    """
    cos, sin, bias = turns
    rows, new, heads, width, inner, past, room = sizes
    count, size = x.shape
    like = np.empty(0, np.float32)
    normed, added = np.empty_like(x), np.empty_like(x)
    mixed = np.empty((count, 3 * size), np.float32)
    both = np.empty((count, 2 * inner), np.float32)
    gated = np.empty((count, inner), np.float32)
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


@njit(error_model="numpy", fastmath=VECTORS, cache=True, nogil=True)
def _all_blocks(number, weight, places, caches, given, sizes, epsilon, parts):
    """See `all_blocks`."""
    x_at, out_at, cos_at, sin_at, bias_at = given
    rows, new, heads, width, _, _, room = sizes
    count, size = rows * new, heads * width
    like = np.empty(0, np.float32)
    x_in = carray(_pointer(x_at, number), (count, size))
    out = carray(_pointer(out_at, number), (count, size))
    turns = (
        carray(_pointer(cos_at, like), (new, width)),
        carray(_pointer(sin_at, like), (new, width)),
        carray(_pointer(bias_at, like), (rows, room)),
    )
    x = np.empty((count, size), np.float32)
    for m in range(count):
        for k in range(size):
            x[m, k] = widen(x_in[m, k])
    _blocks(x, turns, number, weight, places, caches, sizes, epsilon, parts)
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


@njit(error_model="numpy", fastmath=VECTORS)
def _linear(x, number, weight, at, width, curved, parts):
    """x W^T + b (M, N) of x (M, K), or its GELU; `at` has addresses of W, scales and b, or 0."""
    like = np.empty(0, np.float32)
    out = np.empty((x.shape[0], width), np.float32)
    matrix = carray(_pointer(at[0], weight), (width, x.shape[1]))
    _product(x, matrix, carray(_pointer(at[1], like), (width,)), out, parts)
    half, root = np.float32(0.5), np.float32(np.sqrt(0.5))
    if at[2]:
        bias = carray(_pointer(at[2], number), (width,))
        for m in range(out.shape[0]):
            for k in range(width):
                out[m, k] += widen(bias[k])
    if curved:
        for m in range(out.shape[0]):
            for k in range(width):
                one = out[m, k]
                out[m, k] = half * one * (np.float32(1) + np.float32(math.erf(one * root)))
    return out


@njit(error_model="numpy", fastmath=VECTORS)
def _local_context(hidden, index, number, weight, layers, widths, parts):
    """Contexts (R n, D) of n cells, of the states (R, T, D) of the cells around them (n, 12)."""
    rows, _, size = hidden.shape
    cells, around = index.shape
    states = np.zeros((rows * cells * around, size), np.float32)  # zero where there is no cell
    for r in range(rows):
        for i in range(cells):
            for j in range(around):
                if index[i, j] >= 0:
                    state, row = hidden[r, index[i, j]], states[(r * cells + i) * around + j]
                    for k in range(size):
                        row[k] = widen(state[k])
    narrow = _linear(states, number, weight, layers[COMPRESS], widths[0], True, parts)
    narrow = _linear(narrow, number, weight, layers[COMPRESS_2], widths[1], False, parts)
    joined = narrow.reshape((rows * cells, around * widths[1]))
    wide = _linear(joined, number, weight, layers[COMBINE], widths[2], True, parts)
    return _linear(wide, number, weight, layers[COMBINE_2], size, False, parts)


@njit(error_model="numpy", fastmath=VECTORS, cache=True, nogil=True)
def _pair_stage(number, weight, places, caches, layers, given, sizes, widths, epsilon, parts):
    """See `pair_stage`."""
    x_at, index_at, norm_at, out_at = given
    rows, cells, total, first, around, heads, width, inner = sizes
    count, size, vocabulary = rows * cells, heads * width, widths[4]
    if count == 0:
        return
    # The first stage has two tokens, the context and the state; the second one has the third.
    two = index_at != 0
    new, past, room = (2, 0, 3) if two else (1, 2, 3)
    x = np.empty((count * new, size), np.float32)
    if two:
        hidden = carray(_pointer(x_at, number), (rows, total, size))
        index = carray(_pointer(index_at, np.empty(0, np.int64)), (cells, around))
        local = _local_context(hidden, index, number, weight, layers, widths, parts)
        for m in range(count):
            state = hidden[m // cells, first + m % cells]
            for k in range(size):
                x[2 * m, k], x[2 * m + 1, k] = local[m, k], widen(state[k])
    else:
        chosen = carray(_pointer(x_at, number), (count, size))
        for m in range(count):
            for k in range(size):
                x[m, k] = widen(chosen[m, k])
    # The first token has no rotation at all, the others an angle of zero.
    cos, sin = np.ones((new, width), np.float32), np.zeros((new, width), np.float32)
    if two:
        cos[0] = 0
    turns = cos, sin, np.zeros((count, room), np.float32)
    lengths = count, new, heads, width, inner, past, room
    _blocks(x, turns, number, weight, places, caches, lengths, epsilon, parts)
    # Each sequence's last token predicts.
    norm = carray(_pointer(norm_at, number), (size,))
    last = np.empty((count, size), np.float32)
    for m in range(count):
        _normalize_row(x[(m + 1) * new - 1], norm, epsilon, last[m])
    if widths[3]:
        last = _linear(last, number, weight, layers[WIDE], widths[3], True, parts)
    logits = _linear(last, number, weight, layers[LOGITS], vocabulary, False, parts)
    out = carray(_pointer(out_at, np.empty(0, np.float32)), (count, vocabulary))
    out[:] = logits


def pair_stage(
    number: Any,
    weight: Any,
    places: np.ndarray,
    caches: np.ndarray,
    layers: np.ndarray,
    given: tuple[int, ...],
    sizes: tuple[int, ...],
    widths: tuple[int, ...],
    epsilon: float,
    threads: int,
) -> None:
    """Logits of one stage of IAR2's head (heads.py's `SemanticDetailHead`) for n cells of R rows.

    Args:
        number, weight, places, caches: as in `all_blocks`, of the head's blocks; a cell is a
            sequence of its own, with room for three tokens.
        layers: (6, 3) addresses by the rows named above; those of WIDE and LOGITS are this stage's.
        given: addresses of hidden states (R, T, D) and of numbers of cells around (n, 12) int64;
            or, in the second stage, of vectors of semantic codes (R n, D) and 0; then of the last
            norm and of the logits (R n, V) float32.
        sizes: R, n, T, number of the first cell, cells around, H, h, F.
        widths: outputs of `layers` in turn, without COMBINE_2, which has D; WIDE has 0 where the
            output stands alone.
        epsilon: of the norms.
        threads: at most as many work.
    """
    with working(threads) as parts:
        _pair_stage(
            number, weight, places, caches, layers, given, sizes, widths, np.float32(epsilon), parts
        )


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
