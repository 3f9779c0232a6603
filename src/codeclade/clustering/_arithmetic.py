"""Squared distances in vector instructions, and what counts as a tie."""

from numba import njit

LANES = 8  # columns are padded with zeros to a multiple of this, for the unrolled loops
TIE = 2.0**-40  # distances that differ by less, relatively, are a tie: 12 digits


# reassociation lets a sum run in vector lanes, contraction fuses multiply and add; full fastmath
# would also assume that nothing is infinite, which empty places and dead columns are
@njit(cache=True, fastmath={"reassoc", "contract"})
def squared_distance(a, b):
    """|a - b|^2 of two vectors."""
    total = 0.0
    for k in range(a.shape[0]):
        difference = a[k] - b[k]
        total += difference * difference
    return total


@njit(cache=True, fastmath={"reassoc", "contract"})
def add_squared_distances(columns, points, k, start, end, first, count, out):
    """out[i, j] += |columns[:, start + j] - points[:, first + i]|^2 over rows k..k + LANES.

    Unrolled, with each row a slice of its own, so that it compiles to vector instructions.
    """
    c0, c1 = columns[k, start:end], columns[k + 1, start:end]
    c2, c3 = columns[k + 2, start:end], columns[k + 3, start:end]
    c4, c5 = columns[k + 4, start:end], columns[k + 5, start:end]
    c6, c7 = columns[k + 6, start:end], columns[k + 7, start:end]
    for i in range(count):
        point = points[k : k + LANES, first + i]
        p0, p1, p2, p3 = point[0], point[1], point[2], point[3]
        p4, p5, p6, p7 = point[4], point[5], point[6], point[7]
        line = out[i]
        for j in range(end - start):
            a, b, c, d = c0[j] - p0, c1[j] - p1, c2[j] - p2, c3[j] - p3
            e, f, g, h = c4[j] - p4, c5[j] - p5, c6[j] - p6, c7[j] - p7
            line[j] += (a * a + b * b) + (c * c + d * d) + (e * e + f * f) + (g * g + h * h)
