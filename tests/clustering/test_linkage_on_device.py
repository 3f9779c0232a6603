"""The torch path of average linkage: here on the processor, with CUDA where there is one."""

import numpy as np
import pytest
import torch

from codebooks import METRICS, codebook
from codeclade.clustering import Dcpe, Masc, average_labels, average_linkage
from codeclade.clustering.linkage import _on_device
from codeclade.clustering.linkage import average as average_module

KINDS = ["sphere", "clustered", "repeated", "heavy", "far"]


def check_equal(rows: np.ndarray, device: str, **settings) -> None:
    """The same merges as without a device."""
    here, there = (average_linkage(rows, device=d, **settings) for d in (None, device))
    np.testing.assert_allclose(there[:, 2], here[:, 2], rtol=1e-9)
    np.testing.assert_array_equal(there[:, [0, 1, 3]], here[:, [0, 1, 3]])


@pytest.fixture(params=["matrix alone", "rounds before it", "small blocks"])
def torch_path(request, monkeypatch):
    """Let `device="here"` be torch's processor, with few enough clusters left to the chain."""
    opened = average_module._opened
    here = torch.device("cpu")
    monkeypatch.setattr(average_module, "_opened", lambda d: here if d == "here" else opened(d))
    monkeypatch.setattr(_on_device, "FEW", 8)
    if request.param != "matrix alone":
        monkeypatch.setattr(_on_device, "matrix_side", lambda device: 150)
    if request.param == "small blocks":
        monkeypatch.setattr(_on_device, "BLOCK", 1000)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_is_that_of_the_processor(torch_path, kind, metric):
    """Which is SciPy's: test_clustering.py."""
    check_equal(codebook(kind, 400, 6, seed=1), "here", metric=metric)


@pytest.mark.parametrize("kind", ["repeated", "grid"])
def test_ties_and_weights_are_those_of_the_processor(torch_path, kind):
    """A grid is nothing but ties: the order of smallest members decides on both devices."""
    if kind == "grid":
        rows = np.stack(np.meshgrid(np.arange(18), np.arange(18)), -1).reshape(-1, 2)[::-1].copy()
    else:
        rows = codebook(kind, 500, 4)
    weights = np.random.default_rng(0).integers(1, 9, len(rows)).astype(float)
    check_equal(rows, "here")
    check_equal(rows, "here", weights=weights)


@pytest.mark.parametrize("clusters", [1, 40, 200, 399])
def test_cuts_are_those_of_the_processor(torch_path, clusters):
    rows = codebook("clustered", 400, 6)
    wanted = average_labels(rows, clusters)
    np.testing.assert_array_equal(average_labels(rows, clusters, device="here"), wanted)
    np.testing.assert_array_equal(Masc(clusters, device="here").fit(rows).labels_, wanted)
    found = Dcpe(n_clusters=clusters, device="here", compute_full_tree=False).fit(rows)
    np.testing.assert_array_equal(found.labels_, wanted)


def test_a_device_that_is_not_here_is_refused():
    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    for name in (absent, "toaster", "meta:x"):
        with pytest.raises(ValueError, match=f"device must be cpu or .*got '{name}'"):
            average_linkage(np.eye(4), device=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_finds_the_tree_of_the_processor(kind):
    rows = codebook(kind, 6000, 8)
    for metric in METRICS:
        check_equal(rows, "cuda", metric=metric)
