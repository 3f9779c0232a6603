"""The estimators: one interface, IAR's golden numbers, and errors in one sentence."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.cluster.hierarchy import linkage
from sklearn.cluster import KMeans as SklearnKMeans

from codeclade import clustering

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "clustering.safetensors")
ROWS = GOLDEN["codebook"]


@pytest.mark.parametrize("name", sorted(clustering.METHODS))
def test_every_method_fits_by_name(name):
    model = clustering.make(name, n_clusters=32)
    assert model.fit(ROWS) is model
    assert model.n_clusters_ == 32
    assert model.labels_.dtype == np.int64 and model.labels_.shape == (512,)
    assert (np.unique(model.labels_) == np.arange(32)).all()
    again = clustering.make(name, n_clusters=32).fit(ROWS)
    assert (again.labels_ == model.labels_).all()


@pytest.mark.parametrize("name", ["masc", "dcpe", "kmeans", "random"])
def test_clusters_are_numbered_by_smallest_member(name):
    labels = clustering.make(name, n_clusters=32).fit(ROWS).labels_
    first = np.unique(labels, return_index=True)[1]
    assert (np.diff(first) > 0).all()


def test_masc_golden_labels_and_tree():
    for k in (256, 128, 64, 16):
        model = clustering.Masc(n_clusters=k).fit(ROWS)
        assert (model.labels_ == GOLDEN[f"average_linkage_{k}"]).all()
    theirs = linkage(ROWS.astype(np.float64), "average")
    assert model.children_.shape == (511, 2) and model.children_.dtype == np.int64
    assert (model.children_ == theirs[:, :2]).all()
    np.testing.assert_allclose(model.distances_, theirs[:, 2], rtol=1e-9)


def test_masc_without_the_full_tree_has_the_same_labels():
    short = clustering.Masc(n_clusters=64, compute_full_tree=False).fit(ROWS)
    assert (short.labels_ == GOLDEN["average_linkage_64"]).all()
    assert not hasattr(short, "children_")


def test_masc_normalized_clusters_directions():
    stretched = ROWS * np.linspace(1, 9, len(ROWS))[:, None]
    model = clustering.Masc(n_clusters=64, normalize=True)
    labels = model.fit(ROWS).labels_.copy()
    assert (model.fit(stretched).labels_ == labels).all()


def test_dcpe_is_masc_on_raw_rows():
    assert (clustering.Dcpe().fit(ROWS).labels_ == GOLDEN["average_linkage_256"]).all()
    assert clustering.Dcpe(rate=4).fit(ROWS).n_clusters_ == 128
    assert clustering.Dcpe(n_clusters=100).fit(ROWS).n_clusters_ == 100


def test_kmeans_is_scikit_learns():
    ours = clustering.KMeans(n_clusters=20, n_init=2).fit(ROWS)
    theirs = SklearnKMeans(20, init="random", n_init=2, random_state=0).fit(ROWS.astype(np.float64))
    assert len(np.unique(np.stack([ours.labels_, theirs.labels_]), axis=1).T) == 20
    nearest = ((ROWS[:, None] - ours.cluster_centers_[None]) ** 2).sum(-1).argmin(1)
    assert (nearest == ours.labels_).all()


def test_balanced_golden_assignments_and_mapping():
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    picks = GOLDEN["iar_initial_centres"]
    for centers in (unit[picks], ROWS[picks]):
        model = clustering.BalancedKMeans(n_clusters=16, init=centers).fit(ROWS)
        assert (model.labels_ == GOLDEN["iar_assignments"]).all()
        assert (model.permutation_ == GOLDEN["iar_mapping"]).all()


@pytest.mark.parametrize("k", [1, 2, 64, 256, 512])
def test_balanced_sizes_and_blocks(k):
    model = clustering.BalancedKMeans(n_clusters=k).fit(ROWS)
    assert (np.bincount(model.labels_) == 512 // k).all()
    assert sorted(model.permutation_) == list(range(512))
    assert (model.permutation_ // (512 // k) == model.labels_).all()


def test_balanced_odd_clusters():
    model = clustering.BalancedKMeans(n_clusters=3).fit(ROWS[:15])
    assert sorted(model.permutation_) == list(range(15))


def test_random_partition_is_even():
    labels = clustering.RandomPartition(n_clusters=100).fit(ROWS).labels_
    assert set(np.bincount(labels)) == {5, 6}
    other = clustering.RandomPartition(n_clusters=100, random_state=1).fit(ROWS).labels_
    assert (labels != other).any()


@pytest.mark.parametrize("name", sorted(clustering.METHODS))
@pytest.mark.parametrize(
    ("rows", "k", "sentence"),
    [
        (ROWS, 0, "from 1 to the 512 rows of the codebook, got 0"),
        (ROWS, 513, "from 1 to the 512 rows of the codebook, got 513"),
        (ROWS[0], 1, "two dimensions"),
        (np.full((4, 2), np.nan), 2, "4 hold NaN or infinity"),
        (np.ones((4, 2), bool), 2, "rows of numbers, got dtype bool"),
        (np.ones((0, 2)), 2, "at least one row"),
    ],
)
def test_bad_codebooks(name, rows, k, sentence):
    with pytest.raises(ValueError, match=sentence):
        clustering.make(name, n_clusters=k).fit(rows)


def test_other_bad_values():
    with pytest.raises(ValueError, match="balanced, dcpe, kmeans, masc, random, got 'ward'"):
        clustering.make("ward", n_clusters=3)
    with pytest.raises(ValueError, match=r"divide the 512 rows.*got 100"):
        clustering.BalancedKMeans(n_clusters=100).fit(ROWS)
    with pytest.raises(ValueError, match=r"init must be centers of shape \(16, 8\), got \(4, 8\)"):
        clustering.BalancedKMeans(n_clusters=16, init=ROWS[:4]).fit(ROWS)
    with pytest.raises(ValueError, match="max_iter must be at least 1, got 0"):
        clustering.BalancedKMeans(n_clusters=16, max_iter=0).fit(ROWS)
    with pytest.raises(ValueError, match=r"rate must be from 1 to the 512 rows.*got 0"):
        clustering.Dcpe(rate=0).fit(ROWS)
    with pytest.raises(ValueError, match="1 rows are zero"):
        clustering.Masc(n_clusters=2, normalize=True).fit(np.eye(4)[:, :3])


def test_fit_leaves_torch_its_threads():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = np.random.default_rng(0).normal(size=(64, 4))
        clustering.Masc(n_clusters=8).fit(rows)
        clustering.BalancedKMeans(n_clusters=8).fit(rows)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
