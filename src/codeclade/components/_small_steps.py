"""What lies between the matrix products of a decoding step, compiled for a CPU.

A step adds a few positions to the cache of every image: its vectors are short, so that dozens of
calls of general operators cost more than the numbers they compute. Here a block has three calls
beside its attention (see _stack_step.py): `normalize`, `add_and_normalize` and `gate`. Inputs and
outputs are bfloat16, whose bits are a uint16 here, or float32; all arithmetic is float32.

Shapes: M rows of vectors, R rows of the batch, n new positions, S positions in the cache, H heads,
h width of a head, D = H h, F width of the feed-forward layer.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numba import cfunc, njit, types
from numba.extending import overload
from numba.np.numpy_support import carray

VECTORS = {"reassoc", "contract", "nsz"}  # what lets sums run in vector lanes


def widen(number: Any) -> Any:
    """A stored number as float32."""
    raise NotImplementedError


def put(array: Any, index: int, value: Any) -> None:
    """Store float32 at a place, rounded to the nearest number that can be stored there."""
    raise NotImplementedError


@overload(widen)
def _widen(number):
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    if number == types.int8:
        return lambda number: np.float32(number)
    return lambda number: number


@overload(put)
def _put(array, index, value):
    if array.dtype == types.uint16:

        def rounded(array, index, value):
            bits = np.float32(value).view(np.uint32)
            half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            array[index] = np.uint16((bits + half) >> np.uint32(16))

        return rounded

    def plain(array, index, value):
        array[index] = value

    return plain


@njit(error_model="numpy", fastmath=VECTORS)
def exp(x):
    """e^x of float32 to 2e-7, in operations that run in vector lanes; e^87 at most."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 in two parts, so that the rest keeps its digits
    rest = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    series = series * rest * rest + rest + np.float32(1.0)
    return series * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(error_model="numpy", fastmath=VECTORS)
def _normalize_row(row, weight, epsilon, out):
    total = np.float32(0)
    for k in range(row.shape[0]):
        total += widen(row[k]) * widen(row[k])
    factor = np.float32(1) / np.sqrt(total / np.float32(row.shape[0]) + epsilon)
    for k in range(row.shape[0]):
        put(out, k, widen(row[k]) * factor * widen(weight[k]))


@njit(error_model="numpy", fastmath=VECTORS)
def _add_rows(row, other, out):
    for k in range(row.shape[0]):
        put(out, k, widen(row[k]) + widen(other[k]))


def normalize(x, weight, out, rows, width, epsilon):
    """RMSNorm of x (M, D)."""
    x, out = carray(x, (rows, width)), carray(out, (rows, width))
    weight = carray(weight, (width,))
    for i in range(rows):
        _normalize_row(x[i], weight, epsilon, out[i])


def add_and_normalize(x, more, weight, total, out, rows, width, epsilon):
    """total = x + more, (M, D) all, and its RMSNorm."""
    x, more = carray(x, (rows, width)), carray(more, (rows, width))
    total, out = carray(total, (rows, width)), carray(out, (rows, width))
    weight = carray(weight, (width,))
    for i in range(rows):
        _add_rows(x[i], more[i], total[i])
        _normalize_row(total[i], weight, epsilon, out[i])


def gate(mixed, out, rows, width):
    """silu(a) * b of mixed (M, 2 F), whose first half is a and whose second one is b."""
    mixed, out = carray(mixed, (rows, 2 * width)), carray(out, (rows, width))
    for i in range(rows):
        first, second, line = mixed[i, :width], mixed[i, width:], out[i]
        for k in range(width):
            a = widen(first[k])
            put(line, k, a / (np.float32(1) + exp(-a)) * widen(second[k]))


@njit(error_model="numpy", fastmath=VECTORS)
def _turn(vector, cos, sin, factor, out):
    """Turn the pairs of a vector (h,), as `rotate` does, times a factor."""
    for k in range(vector.shape[0] // 2):
        a, b = widen(vector[2 * k]), widen(vector[2 * k + 1])
        put(out, 2 * k, (a * cos[2 * k] + b * sin[2 * k]) * factor)
        put(out, 2 * k + 1, (b * cos[2 * k + 1] + a * sin[2 * k + 1]) * factor)


@njit(error_model="numpy", fastmath=VECTORS)
def _attend_one(query, keys, values, bias, scores, total, out):
    """Attention of one query (h,) to keys and values (S, h).

    Args:
        bias: (S,) added to the scores.
        scores, total: (S,) and (h,) scratch.
    """
    seen, width = keys.shape
    best = np.float32(-np.inf)
    for s in range(seen):
        key, product = keys[s], np.float32(0)
        for k in range(width):
            product += query[k] * widen(key[k])
        scores[s] = product + bias[s]
        best = max(best, scores[s])
    weights = np.float32(0)
    for s in range(seen):
        scores[s] = exp(scores[s] - best)
        weights += scores[s]
    total[:] = 0
    for s in range(seen):
        value, weight = values[s], scores[s]
        for k in range(width):
            total[k] += weight * widen(value[k])
    for k in range(width):
        put(out, k, total[k] / weights)


FORMS: dict[Callable, str] = {  # a letter an argument: numbers, size, one float32
    normalize: "nnnss1",
    add_and_normalize: "nnnnnss1",
    gate: "nnss",
}


@functools.cache
def compiled_for(dtype: torch.dtype) -> dict[str, Callable]:
    """The functions of this file by name; they take the addresses of tensors of one dtype."""
    number = types.uint16 if dtype == torch.bfloat16 else types.float32
    inner = {"n": types.CPointer(number), "s": types.int64}
    outer = {"n": ctypes.c_void_p, "s": ctypes.c_int64}
    inner["1"], outer["1"] = types.float32, ctypes.c_float
    found = {}
    for function, form in FORMS.items():
        signature = types.void(*(inner[letter] for letter in form))
        code = cfunc(signature, cache=True, error_model="numpy", fastmath=VECTORS)(function)
        call = ctypes.CFUNCTYPE(None, *(outer[letter] for letter in form))
        found[function.__name__] = call(cast(Any, code).address)
    return found
