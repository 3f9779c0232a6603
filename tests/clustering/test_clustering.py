"""Average linkage against SciPy, the greedy loop and the golden labels."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.cluster.hierarchy import is_valid_linkage, linkage

from codebooks import METRICS, codebook
from codeclade import clustering
from codeclade.clustering.linkage import average as average_module

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=[16, 4096], ids=["rounds", "matrix"])
def dense(request, monkeypatch):
    """Run once with merge rounds nearly to the top, once with the matrix from the start."""
    monkeypatch.setattr(average_module, "MATRIX", request.param)
    return request.param


def greedy(rows: np.ndarray, n_clusters: int) -> np.ndarray:
    """MASC's algorithm 1: merge the row-major first minimum of the distance matrix.

    Distances are rounded to 12 digits where they are compared, so that a tie is a tie.
    """
    x = rows.astype(np.float64)
    sums = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    sizes = np.ones(len(x))
    labels, living = np.arange(len(x)), np.ones(len(x), bool)
    for _ in range(len(x) - n_clusters):
        mean = sums / np.outer(sizes, sizes)
        mean[~living] = mean[:, ~living] = np.inf
        np.fill_diagonal(mean, np.inf)
        finite = np.isfinite(mean)
        scale = 10 ** (11 - np.floor(np.log10(np.maximum(mean[finite], 1e-30))))
        mean[finite] = np.round(mean[finite] * scale) / scale
        s, t = divmod(int(mean.argmin()), len(x))
        sums[s] += sums[t]
        sums[:, s] += sums[:, t]
        sizes[s] += sizes[t]
        living[t] = False
        labels[labels == t] = s
    return np.unique(labels, return_inverse=True)[1]


def weighted_tree(rows: np.ndarray, weights: np.ndarray, metric: str) -> list[tuple]:
    """Merges (members of both, height) by the definition, all pairs looked at every time."""
    x = rows.astype(np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    distance = {"euclidean": np.sqrt(squares), "cosine": squares / 2}.get(metric, squares)
    clusters, merges = [[i] for i in range(len(x))], []
    while len(clusters) > 1:
        best = (np.inf, 0, 0)
        for i, a in enumerate(clusters):
            for j, b in enumerate(clusters[:i]):
                pairs = np.outer(weights[a], weights[b])
                height = (pairs * distance[np.ix_(a, b)]).sum() / pairs.sum()
                best = min(best, (height, j, i))
        height, j, i = best
        merges.append((frozenset(clusters[j]), frozenset(clusters[i]), height))
        clusters[j] = clusters[j] + clusters.pop(i)
    return merges


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [3, 40])
def test_weighted_trees_are_those_of_the_definition(metric, d, monkeypatch):
    """With the search, with the matrix, and with weights from 1 to a million."""
    rng = np.random.default_rng(d)
    rows = rng.standard_normal((36, d)).astype(np.float32)
    weights = np.round(10 ** rng.uniform(0, 6, 36))
    expected = weighted_tree(rows, weights, metric)
    for matrix in (2, 4096):
        monkeypatch.setattr(average_module, "MATRIX", matrix)
        tree = clustering.average_linkage(rows, metric, weights=weights)
        assert is_valid_linkage(tree)
        np.testing.assert_allclose(tree[:, 2], [height for *_, height in expected], rtol=1e-9)
        members = [frozenset([i]) for i in range(36)]
        for row, (a, b, _) in zip(tree, expected, strict=True):
            pair = members[int(row[0])], members[int(row[1])]
            assert set(pair) == {a, b}
            members.append(a | b)
        labels = clustering.average_labels(rows, 7, metric, weights=weights)
        assert np.array_equal(labels, clustering.cut(tree, 7))


def test_a_weight_is_a_number_of_repeats():
    rows = codebook("gaussian", 50, 4)
    weights = np.random.default_rng(0).integers(1, 5, 50)
    repeated = np.repeat(rows, weights, axis=0)
    tree = clustering.average_linkage(repeated)
    heights = clustering.average_linkage(rows, weights=weights)[:, 2]
    np.testing.assert_allclose(tree[-49:, 2], heights, rtol=1e-12)
    assert (tree[:-49, 2] == 0).all()
    # Equal rows add up their weights.
    twice = np.concatenate([rows, rows[:10]])
    again = clustering.average_linkage(twice, weights=np.r_[weights, np.ones(10)])
    weights[:10] += 1
    expected = clustering.average_linkage(rows, weights=weights)[:, 2]
    np.testing.assert_allclose(again[10:, 2], expected, rtol=1e-12)


def test_equal_weights_are_none():
    rows = codebook("sphere", 300, 8)
    plain = clustering.Masc(20).fit(rows)
    weighted = clustering.Masc(20).fit(rows, weights=np.full(300, 7.0))
    assert np.array_equal(plain.labels_, weighted.labels_)
    np.testing.assert_allclose(plain.distances_, weighted.distances_, rtol=1e-12)
    usage = np.arange(1, 301.0)
    assert not np.array_equal(
        plain.labels_, clustering.Masc(20, compute_full_tree=False).fit(rows, weights=usage).labels_
    )
    dcpe = clustering.Dcpe(n_clusters=20).fit(rows, weights=usage)
    assert np.array_equal(dcpe.labels_, clustering.Masc(20).fit(rows, weights=usage).labels_)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(4), r"weights has shape \(4,\), but there are 5 rows"),
        ([1, 1, 0, 1, 1], r"above 0, but 1 are not \(first: row 2, 0\)"),
        ([1, np.nan, 1, 1, 1], r"finite and above 0, but 1 are not \(first: row 1, nan\)"),
    ],
)
def test_weights_that_are_no_weights_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        clustering.average_linkage(np.eye(5), weights=weights)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("kind", "n", "d"),
    [
        ("sphere", 1000, 8),
        ("gaussian", 900, 3),
        ("clustered", 1000, 8),
        ("repeated", 800, 8),
        ("heavy", 600, 8),
        ("far", 400, 5),
        ("gaussian", 300, 64),
        ("clustered", 700, 40),
        ("repeated", 400, 32),
        ("far", 300, 32),
        ("real", 512, 128),
    ],
)
def test_tree_is_scipys(kind, n, d, metric, dense):
    rows = codebook(kind, n, d)
    ours = clustering.average_linkage(rows, metric=metric)
    theirs = linkage(rows.astype(np.float64), "average", metric=metric)
    assert ours.dtype == np.float64 and ours.shape == (n - 1, 4)
    assert is_valid_linkage(ours)
    # SciPy's 1 - cos loses digits of tiny cosine distances; ours is then the more exact one
    loss = 1e-14 if metric == "cosine" else 0
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-9, atol=loss)
    distinct = len(np.unique(rows, axis=0))
    for k in (1, 2, 7, distinct // 8, distinct // 4, distinct // 2):
        assert (clustering.cut(ours, k) == clustering.cut(theirs, k)).all(), k


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "clustered"])
def test_thousands_of_rows_in_many_dimensions_are_scipys(kind, metric):
    """Distances by matrix products, columns moved by several threads."""
    rows = codebook(kind, 2600, 28)
    ours = clustering.average_linkage(rows, metric=metric)
    theirs = linkage(rows.astype(np.float64), "average", metric=metric)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-9)
    for k in (1300, 325, 20):
        assert (clustering.cut(ours, k) == clustering.cut(theirs, k)).all()


def test_products_of_close_rows_are_computed_anew():
    """Far from the middle of all rows, |a|^2 + |b|^2 - 2 a.b has no digit of |a - b|^2 left."""
    rng = np.random.default_rng(0)
    rows = np.repeat(1e6 * rng.standard_normal((4, 32)), 40, axis=0)
    rows += rng.standard_normal(rows.shape)
    ours, theirs = clustering.average_linkage(rows), linkage(rows, "average")
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-11)
    assert (clustering.cut(ours, 40) == clustering.cut(theirs, 40)).all()


def test_the_matrix_takes_over_earlier_where_the_search_prunes_badly():
    sides = {}
    for kind, d in (("gaussian", 8), ("heavy", 8), ("gaussian", 40)):
        rows = codebook(kind, 10000, d).astype(np.float64)
        _, clusters, _ = average_module._distinct(rows, np.ones(len(rows)))
        sides[kind, d] = average_module._matrix_side(clusters)
    assert sides == {("gaussian", 8): 1250, ("heavy", 8): 2500, ("gaussian", 40): 10000}


@pytest.mark.parametrize("kind", ["sphere", "clustered", "repeated", "heavy", "real"])
def test_early_stop_is_the_cut_of_the_full_tree(kind, dense):
    rows = codebook(kind, 700, 8)
    n = len(rows)
    full = clustering.average_linkage(rows)
    for k in [1, 2, 3, 10, 15, 17, *range(20, n, 131), n - 1, n]:
        labels = clustering.average_labels(rows, k)
        assert (labels == clustering.cut(full, k)).all(), k
        part = clustering.average_linkage(rows, n_clusters=k)
        np.testing.assert_allclose(part, full[: n - k], rtol=1e-12)
        assert len(np.unique(labels)) == k


@pytest.mark.parametrize("side", [2, 3])
def test_ties_follow_the_greedy_loop(side, dense):
    grid = np.stack(np.meshgrid(*[np.arange(side)] * (6 - side)), -1).reshape(-1, 6 - side)
    for seed in range(4):
        rows = np.random.default_rng(seed).permutation(grid).astype(np.float32)
        for k in range(1, len(rows), 3):
            assert (clustering.average_labels(rows, k) == greedy(rows, k)).all(), (seed, k)


def test_repeated_rows_follow_the_greedy_loop(dense):
    rows = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(np.float32)
    for k in range(1, 60):
        assert (clustering.average_labels(rows, k) == greedy(rows, k)).all(), k


def test_random_rows_follow_the_greedy_loop(dense):
    rows = codebook("gaussian", 90, 4)
    for k in (1, 5, 30, 45, 80):
        assert (clustering.average_labels(rows, k) == greedy(rows, k)).all()


def test_golden_labels(dense):
    golden = load_file(GOLDEN / "clustering.safetensors")
    tree = clustering.average_linkage(golden["codebook"])
    for k in (256, 128, 64, 16):
        assert (clustering.cut(tree, k) == golden[f"average_linkage_{k}"]).all()
        labels = clustering.average_labels(golden["codebook"], k)
        assert (labels == golden[f"average_linkage_{k}"]).all()


def test_thousands_of_equal_rows():
    rows = codebook("gaussian", 6000, 8)
    rows[500:] = rows[7]
    tree = clustering.average_linkage(rows)
    assert (tree[:5500, 2] == 0).all() and (tree[5500:, 2] > 0).all()
    labels = clustering.cut(tree, 500)
    assert (labels[500:] == labels[7]).all() and len(np.unique(labels)) == 500
    theirs = linkage(rows[::3].astype(np.float64), "average")
    ours = clustering.average_linkage(rows[::3])
    for k in (1, 10, 100):
        assert (clustering.cut(ours, k) == clustering.cut(theirs, k)).all()


def test_all_rows_equal_and_single_row():
    assert (clustering.average_linkage(np.ones((5, 3)))[:, 2] == 0).all()
    assert clustering.average_labels(np.ones((5, 3)), 3).tolist() == [0, 0, 0, 1, 2]
    assert clustering.average_linkage(np.ones((1, 3))).shape == (0, 4)
    assert clustering.average_labels(np.ones((1, 3)), 1).tolist() == [0]


def test_a_chain_of_growing_gaps(dense):
    """The worst case for rounds: one merge in each."""
    rows = np.cumsum(1.02 ** np.arange(400))[:, None]
    theirs = linkage(rows, "average")
    ours = clustering.average_linkage(rows)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-9)
    assert (clustering.cut(ours, 50) == clustering.cut(theirs, 50)).all()


def test_deterministic_and_blind_to_dtype():
    rows = codebook("sphere", 5000, 8).astype(np.float16)
    first = clustering.average_linkage(rows)
    assert (first == clustering.average_linkage(rows)).all()
    assert (first == clustering.average_linkage(rows.astype(np.float32))).all()
    assert (first == clustering.average_linkage(np.asfortranarray(rows, dtype=np.float64))).all()


def test_torch_tensors_of_every_dtype():
    torch = pytest.importorskip("torch")
    rows = torch.nn.Parameter(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    want = clustering.average_labels(rows.detach().numpy(), 9)
    assert (clustering.average_labels(rows, 9) == want).all()
    half = rows.to(torch.bfloat16)
    want = clustering.average_labels(half.float().detach().numpy(), 9)
    assert (clustering.average_labels(half, 9) == want).all()


def test_labels_are_numbered_by_smallest_member():
    labels = clustering.average_labels(codebook("sphere", 500, 8), 100)
    first = [int(np.flatnonzero(labels == c)[0]) for c in range(100)]
    assert labels.dtype == np.int64 and first == sorted(first)


@pytest.mark.slow
def test_codebook_of_llamagens_size_is_scipys():
    rows = codebook("sphere", 16384, 8)
    theirs = linkage(rows.astype(np.float64), "average")
    ours = clustering.average_linkage(rows)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-9)
    for k in (8192, 4096, 2048, 64):
        labels = clustering.cut(theirs, k)
        assert (clustering.cut(ours, k) == labels).all()
        assert (clustering.average_labels(rows, k) == labels).all()


def test_progress_bar_counts_merges(capsys):
    clustering.average_linkage(codebook("sphere", 300, 8), progress=True)
    assert "299/299" in capsys.readouterr().err
    clustering.average_linkage(codebook("sphere", 300, 8))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (np.zeros(5), {}, r"two dimensions \(N, d\), got shape \(5,\)"),
        (np.zeros((4, 2), bool), {}, "rows of numbers, got dtype bool"),
        (
            np.zeros((0, 2)),
            {},
            r"one row and column, got 0 sample\(s\) \(shape=\(0, 2\)\)",
        ),
        (np.array([[0.0], [np.nan], [np.inf]]), {}, r"but 2 hold NaN or infinity \(first: row 1\)"),
        (np.eye(3), {"metric": "manhattan"}, "cosine, euclidean, sqeuclidean, got 'manhattan'"),
        (np.eye(3), {"n_clusters": 0}, "from 1 to the 3 rows of the codebook, got 0"),
        (np.eye(3), {"n_clusters": 4}, "from 1 to the 3 rows of the codebook, got 4"),
        (np.eye(3), {"n_clusters": 1.5}, "whole number from 1 to the 3 rows.*got 1.5"),
        (np.zeros((3, 2)), {"metric": "cosine"}, r"3 rows are zero \(first: row 0\)"),
    ],
)
def test_bad_input_is_one_sentence(x, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        clustering.average_linkage(x, **options)
    assert "\n" not in str(error.value)


def test_memory_is_checked_before_the_start(monkeypatch):
    monkeypatch.setattr("codeclade.clustering.codebook.available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"needs about .* GiB, but only .* GiB of memory"):
        clustering.average_linkage(codebook("sphere", 500, 8))


def test_import_compiles_nothing_and_leaves_torch_alone():
    import subprocess
    import sys

    code = "import sys, codeclade.clustering; print('numba' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_the_first_call_says_that_it_compiles_and_later_ones_are_silent(tmp_path):
    import os
    import subprocess
    import sys

    code = (
        "import numpy as np; from codeclade.clustering import cut\n"
        "from codeclade.clustering.compilation import compilation_announced\n"
        "with compilation_announced():\n"
        "    cut(np.array([[0.0, 1.0, 1.0, 2.0]]), 1); cut(np.array([[0.0, 1.0, 1.0, 2.0]]), 2)\n"
    )
    said = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        )
        said.append(run.stderr)
    assert said[0].count("compiling the clustering once") == 1 and said[0].count("\n") == 1
    assert said[1] == ""
