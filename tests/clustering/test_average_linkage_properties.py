"""Average linkage against its definition in extended precision, on rows that hypothesis makes up.

Examples are derandomized: every run tries the same ones, in bounded time.
"""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import is_valid_linkage

from codeclade.clustering import average_labels, average_linkage, cut
from codeclade.clustering.linkage import average as average_module

SQUARES = pytest.param("sqeuclidean", marks=pytest.mark.slow)  # shares its code with cosine
METRICS = ["euclidean", SQUARES, "cosine"]
BOUNDED = settings(derandomize=True, max_examples=40, deadline=None)
WIDE = np.longdouble  # 64 bits of mantissa, exponents to 1e4932
needs_long_double = pytest.mark.skipif(
    np.finfo(WIDE).nmant < 63, reason="this machine has no longer float than float64"
)


def definition(rows: np.ndarray, metric: str) -> list[tuple[float, np.ndarray]]:
    """Height and labels after every merge, by the greedy loop over all pairs of clusters.

    Ties to 12 digits go to the smallest members.
    """
    x = rows.astype(WIDE)
    if metric == "cosine":
        x = x / np.abs(x).max(1, keepdims=True)
        x = x / np.sqrt((x * x).sum(1, keepdims=True))
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    sums = {"euclidean": np.sqrt(squares), "sqeuclidean": squares, "cosine": squares / 2}[metric]
    labels, sizes, active = np.arange(len(x)), np.ones(len(x)), np.ones(len(x), bool)
    found = []
    for _ in range(len(x) - 1):
        mean = sums / np.outer(sizes, sizes)
        mean[~active] = mean[:, ~active] = np.inf
        mean[np.tril_indices(len(x))] = np.inf
        s, t = np.argwhere(mean <= mean.min() * (1 + WIDE(2.0**-40)))[0]
        height = mean[s, t]
        sums[s] += sums[t]
        sums[:, s] += sums[:, t]
        sizes[s] += sizes[t]
        active[t] = False
        labels = np.where(labels == t, s, labels)
        found.append((height, np.unique(labels, return_inverse=True)[1]))
    return found


def agrees(rows: np.ndarray, metric: str, rtol: float = 1e-9) -> None:
    """Heights and every cut are the definition's."""
    tree, found = average_linkage(rows, metric), definition(rows, metric)
    heights = np.array([height for height, _ in found])
    assert is_valid_linkage(tree)
    error = np.abs(tree[:, 2].astype(WIDE) - np.maximum.accumulate(heights))
    assert (error <= rtol * np.maximum.accumulate(heights)).all()
    for merges, (_, labels) in enumerate(found, start=1):
        k = len(rows) - merges
        assert (cut(tree, k) == labels).all(), k
        if merges % 5 == 0:
            assert (average_labels(rows, k, metric) == labels).all(), k


@st.composite
def codebooks(draw, values):
    """(2..18, 1..5) rows of the given values."""
    n, d = draw(st.integers(2, 18)), draw(st.integers(1, 5))
    return np.array(draw(st.lists(values, min_size=n * d, max_size=n * d))).reshape(n, d)


@pytest.fixture(autouse=True, params=[2, 4096], ids=["rounds", "matrix"])
def matrix(request, monkeypatch):
    """Run once with rounds of merges to the top, once with the matrix from the start."""
    monkeypatch.setattr(average_module, "MATRIX", request.param)


@needs_long_double
@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 2**32), n=st.integers(2, 40), d=st.integers(1, 6))
@BOUNDED
def test_rows_at_random(metric, seed, n, d):
    agrees(np.random.default_rng(seed).standard_normal((n, d)), metric, 1e-8)


@needs_long_double
@pytest.mark.parametrize("metric", ["euclidean", SQUARES])
@given(rows=codebooks(st.integers(-3, 3)))
@BOUNDED
def test_grids_full_of_ties_and_repeats(metric, rows):
    assume(len(np.unique(rows, axis=0)) > 1)
    tree, found = average_linkage(rows, metric), definition(rows, metric)
    for merges, (height, labels) in enumerate(found, start=1):
        np.testing.assert_allclose(tree[merges - 1, 2], float(height), rtol=1e-9)
        if height > 0:  # between equal rows every order of merges is right
            assert (cut(tree, len(rows) - merges) == labels).all()


@needs_long_double
@pytest.mark.parametrize("metric", ["euclidean", SQUARES])
@given(n=st.integers(3, 40), turn=st.floats(0, 6.3), radius=st.floats(1e-3, 1e3))
@BOUNDED
def test_points_on_a_circle_tie_up_to_rounding(metric, n, turn, radius):
    angles = turn + 2 * np.pi * np.arange(n) / n
    rows = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    agrees(rows, metric)


@needs_long_double
@pytest.mark.parametrize("metric", METRICS)
@given(
    seed=st.integers(0, 2**32),
    exponent=st.integers(-1000, 1022),
    spread=st.integers(0, 60),
)
@example(seed=0, exponent=-997, spread=0)  # 1e-300
@example(seed=0, exponent=997, spread=0)  # 1e300
@example(seed=0, exponent=1020, spread=60)
@BOUNDED
def test_every_scale_of_float64(metric, seed, exponent, spread):
    rng = np.random.default_rng(seed)
    rows = np.ldexp(rng.uniform(-1, 1, (14, 3)), exponent - rng.integers(0, spread + 1, (14, 1)))
    heights = [height for height, _ in definition(rows, metric)]
    if min(heights) < np.finfo(float).tiny or max(heights) > np.finfo(float).max:
        with pytest.raises(ValueError, match="heights must lie within float64's"):
            average_linkage(rows, metric)
    else:
        agrees(rows, metric)
    labels = average_labels(rows, 5, metric)  # partitions need no heights
    assert (labels == average_labels(np.ldexp(rows, -exponent), 5, metric)).all()


def test_heights_scale_exactly():
    rows = np.random.default_rng(0).standard_normal((50, 4))
    tree = average_linkage(rows)
    for exponent in (-900, -300, 300, 1000):
        scaled = average_linkage(np.ldexp(rows, exponent))
        assert (scaled[:, 2] == np.ldexp(tree[:, 2], exponent)).all()
        assert (scaled[:, :2] == tree[:, :2]).all()


def test_denormal_heights_and_gaps_without_digits_are_refused():
    rows = np.ldexp(np.arange(12.0)[:, None] ** 2, -1074)
    with pytest.raises(ValueError, match=r"within float64's 2.2e-308 to 1.8e\+308, but 11 of"):
        average_linkage(rows)
    assert (average_labels(rows, 4) == average_labels(np.arange(12.0)[:, None] ** 2, 4)).all()
    with pytest.raises(ValueError, match=r"at least 1e-264 of its largest.*got rows 1 and 2"):
        average_linkage(np.array([[1e300], [1e-10], [0.0]]))
    tree = average_linkage(np.array([[1e200], [1e-30], [0.0]]))
    np.testing.assert_allclose(tree[:, 2], [1e-30, 1e200], rtol=1e-12)


@needs_long_double
@given(seed=st.integers(0, 2**32), offset=st.sampled_from([1e2, 1e4, 1e6]))
@BOUNDED
def test_cosine_heights_of_nearly_parallel_rows_keep_the_promised_digits(seed, offset):
    """Angles t are about 1 / offset: heights are right to 2e-16 / t, where 1 - cos is not."""
    rows = np.random.default_rng(seed).standard_normal((12, 6)) + offset
    tree, found = average_linkage(rows, "cosine"), definition(rows, "cosine")
    heights = np.array([float(height) for height, _ in found])
    np.testing.assert_allclose(tree[:, 2], np.sort(heights), rtol=1e-15 * offset)
