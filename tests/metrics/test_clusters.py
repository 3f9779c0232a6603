"""Statistics of partitions against naive references and SciPy."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import cdist, pdist

from codeclade.metrics import clusters


@pytest.fixture
def rows():
    return np.random.default_rng(3).normal(size=(60, 4))


@pytest.fixture
def labels():
    return np.unique(np.random.default_rng(4).integers(0, 9, 60), return_inverse=True)[1]


def test_sizes():
    spread = clusters.size_spread(np.array([0, 0, 0, 1, 2, 2]))
    assert spread == {"smallest": 1, "median": 2.0, "largest": 3, "alone": 1}


def test_in_cluster_distance_is_the_mean_over_all_codes(rows, labels):
    labels[7] = 9  # one code is alone
    distances, means = cdist(rows, rows), []
    for i, label in enumerate(labels):
        others = np.flatnonzero((labels == label) & (np.arange(60) != i))
        means.append(distances[i, others].mean() if len(others) else 0.0)
    assert 0.0 in means
    assert clusters.in_cluster_distance(rows, labels) == pytest.approx(np.mean(means), rel=1e-12)


def test_in_cluster_distance_of_large_clusters_is_sampled_well():
    rows = np.random.default_rng(0).normal(size=(600, 3))
    labels = np.zeros(600, dtype=np.int64)
    exact = pdist(rows).mean()
    assert clusters.in_cluster_distance(rows, labels) == pytest.approx(exact, rel=0.01)
    assert clusters.in_cluster_distance(rows, np.arange(600)) == 0


def test_random_partition_keeps_the_sizes(labels):
    shuffled = clusters.random_like(labels, seed=1)
    assert (np.bincount(shuffled) == np.bincount(labels)).all() and (shuffled != labels).any()


def test_cophenetic_correlation_is_scipys(rows):
    tree = linkage(rows, "average")
    children, heights = tree[:, :2].astype(int), tree[:, 2]
    wanted = cophenet(tree, pdist(rows))[0]
    got = clusters.cophenetic_correlation(rows, children, heights)
    assert got == pytest.approx(wanted, rel=1e-12)
    sampled = clusters.cophenetic_correlation(rows, children, heights, pairs=1000)
    assert sampled != got and sampled == pytest.approx(wanted, abs=0.05)


def test_entropy_of_clusters():
    counts = np.array([4, 0, 2, 2])
    assert clusters.cluster_entropy(counts, np.arange(4)) == pytest.approx(1.5)
    assert clusters.cluster_entropy(counts, np.array([0, 0, 1, 1])) == pytest.approx(1.0)
    assert clusters.cluster_entropy(counts, np.zeros(4, dtype=int)) == 0
