"""The estimators are scikit-learn's: its own checks, parameters, pipelines, kinds of input."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from codeclade import clustering
from codeclade.clustering.codebook import as_codebook

ROWS = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
ESTIMATORS = [
    clustering.Masc(),
    clustering.Masc(metric="sqeuclidean", compute_full_tree=False),
    clustering.Dcpe(),
    clustering.KMeans(n_init=2),
    clustering.BalancedKMeans(n_clusters=1),  # scikit-learn's rows divide into nothing else
    clustering.RandomPartition(),
]
EXPECTED = {
    clustering.BalancedKMeans: {
        "check_clustering": "wants 3 clusters of 50 rows, which are not equally large",
        "check_estimators_dtypes": "has a zero row, which has no direction",
    },
    clustering.RandomPartition: {
        "check_clustering": "wants blobs found again, which a random control must not",
    },
}


@parametrize_with_checks(
    ESTIMATORS, expected_failed_checks=lambda estimator: EXPECTED.get(type(estimator), {})
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_few_checks_are_expected_to_fail():
    assert sum(len(checks) for checks in EXPECTED.values()) == 3


@pytest.mark.parametrize("name", sorted(clustering.METHODS))
def test_parameters_clone_and_fit_predict(name):
    model = clustering.make(name, n_clusters=16)
    assert model.get_params()["n_clusters"] == 16
    copy = clone(model.set_params(n_clusters=8))
    assert copy.n_clusters == 8 and not hasattr(copy, "labels_")
    assert (copy.fit_predict(ROWS) == model.fit(ROWS).labels_).all()
    assert copy.n_features_in_ == 5


@pytest.mark.parametrize("name", sorted(clustering.METHODS))
def test_inside_a_pipeline(name):
    pipeline = make_pipeline(StandardScaler(), clustering.make(name, n_clusters=8))
    labels = pipeline.fit_predict(ROWS)
    scaled = StandardScaler().fit_transform(ROWS)
    assert (labels == clustering.make(name, n_clusters=8).fit(scaled).labels_).all()


def test_settings_are_keywords():
    for method in (clustering.Masc, clustering.KMeans, clustering.BalancedKMeans):
        with pytest.raises(TypeError, match="positional"):
            method(8, 2)
    with pytest.raises(TypeError, match="positional"):
        clustering.Dcpe(2)


def test_make_names_the_settings_of_a_method():
    with pytest.raises(ValueError, match=r"kmeans must be one of init, n_clusters.*got"):
        clustering.make("kmeans", n_inits=3)
    model = clustering.make("kmeans", n_clusters=4, init="k-means++", n_init=3, random_state=1)
    assert model.fit(ROWS).n_clusters_ == 4


def test_kmeans_predicts_and_trees_are_cut_after_fit_alone():
    model = clustering.KMeans(n_clusters=9, normalize=True)
    with pytest.raises(NotFittedError):
        model.predict(ROWS)
    model.fit(ROWS)
    assert (model.predict(3 * ROWS) == model.labels_).all()
    with pytest.raises(ValueError, match="4 features, but KMeans is expecting 5 features"):
        model.predict(ROWS[:, :4])
    tree = clustering.Masc(n_clusters=9)
    with pytest.raises(NotFittedError):
        tree.cut(3)
    tree.fit(ROWS)
    assert (tree.cut(9) == tree.labels_).all()
    assert (tree.cut(20) == clustering.average_labels(ROWS, 20)).all()
    tree.set_params(compute_full_tree=False).fit(ROWS)
    with pytest.raises(NotFittedError):
        tree.cut(3)


def test_columns_of_a_data_frame_are_remembered():
    frame = pd.DataFrame(ROWS, columns=list("abcde"))
    model = clustering.KMeans(n_clusters=4).fit(frame)
    assert list(model.feature_names_in_) == list("abcde")
    assert (model.predict(frame) == model.labels_).all()
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[list("edcba")])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.uint8),
        lambda x: x.astype(object),
        lambda x: x.tolist(),
        lambda x: torch.tensor(x),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.int32),
        lambda x: torch.nn.Parameter(torch.tensor(x)),
        lambda x: torch.nn.Embedding.from_pretrained(torch.tensor(x), freeze=False),
    ],
)
def test_whatever_holds_numbers_is_a_codebook(make):
    rows = np.random.default_rng(0).integers(0, 200, (40, 3)).astype(np.float32)
    held = make(rows)
    assert as_codebook(held).dtype == np.float64
    assert (as_codebook(held) == rows).all()
    assert (clustering.average_labels(held, 9) == clustering.average_labels(rows, 9)).all()
    labels = clustering.Masc(n_clusters=9).fit_predict(held)
    assert (labels == clustering.average_labels(rows, 9)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_tensors_are_codebooks():
    rows = torch.tensor(ROWS, device="cuda", requires_grad=True)
    assert (clustering.average_labels(rows, 9) == clustering.average_labels(ROWS, 9)).all()
    for dtype in (torch.bfloat16, torch.float16):
        half = rows.to(dtype)
        labels = clustering.KMeans(n_clusters=4).fit_predict(half)
        assert (labels == clustering.KMeans(n_clusters=4).fit_predict(half.cpu())).all()


@pytest.mark.parametrize(
    ("held", "error", "sentence"),
    [
        (np.ones((4, 2), bool), ValueError, "rows of numbers, got dtype bool"),
        (np.full((4, 2), "a"), ValueError, "rows of numbers, got dtype <U1"),
        (np.ones((4, 2), complex), ValueError, "Complex data not supported.*complex128"),
        (np.full((4, 2), np.longdouble("1e400")), ValueError, "4 hold NaN or infinity"),
        (np.full((4, 2), object()), TypeError, "not 'object'"),
    ],
)
def test_other_things_are_refused(held, error, sentence):
    with pytest.raises(error, match=sentence):
        as_codebook(held)
