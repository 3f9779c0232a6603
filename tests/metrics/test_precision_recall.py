"""Neighborhood metrics, KID, Inception Score and codebook use, each against its definition."""

import math

import numpy as np
import pytest
import torch

from codeclade.metrics import precision_recall as module
from codeclade.metrics.codebook import CodebookUse, codebook_use, count_ids
from codeclade.metrics.distances import kernel_distance, kernel_distance_subsets
from codeclade.metrics.inception_score import inception_score
from codeclade.metrics.precision_recall import neighbor_radii, precision_recall


def by_definition(reference: np.ndarray, samples: np.ndarray, k: int) -> dict[str, float]:
    """One distance at a time."""

    def radius(x, i):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    reference_radii = [radius(reference, i) for i in range(len(reference))]
    sample_radii = [radius(samples, j) for j in range(len(samples))]
    in_reference = [
        sum(np.linalg.norm(y - x) <= r for x, r in zip(reference, reference_radii, strict=True))
        for y in samples
    ]
    recall = [
        any(np.linalg.norm(y - x) <= r for y, r in zip(samples, sample_radii, strict=True))
        for x in reference
    ]
    coverage = [
        min(np.linalg.norm(y - x) for y in samples) <= r
        for x, r in zip(reference, reference_radii, strict=True)
    ]
    return {
        "precision": np.mean([count > 0 for count in in_reference]),
        "recall": np.mean(recall),
        "density": np.mean(in_reference) / k,
        "coverage": np.mean(coverage),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_and_coverage_by_definition(k, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)  # several blocks, the last ones smaller
    monkeypatch.setattr(module, "COLUMNS", 11)
    generator = torch.Generator().manual_seed(k)
    reference = torch.randn(40, 3, generator=generator)
    samples = 1.2 + 0.7 * torch.randn(31, 3, generator=generator)
    ours = precision_recall(reference, samples, k)
    assert ours == pytest.approx(by_definition(reference.numpy(), samples.numpy(), k), abs=1e-12)
    assert 0 < ours["precision"] < 1 and 0 < ours["recall"] < 1  # nothing is trivially full


def test_radii_ignore_where_the_blocks_end(monkeypatch):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    whole = neighbor_radii(x)
    monkeypatch.setattr(module, "ROWS", 8)
    monkeypatch.setattr(module, "COLUMNS", 3)  # fewer than k + 1 at first
    torch.testing.assert_close(neighbor_radii(x), whole, rtol=1e-12, atol=1e-12)


def test_equal_sets_are_fully_precise_and_far_sets_not_at_all():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    same = precision_recall(x, x)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert set(precision_recall(x, x + 100).values()) == {0.0}


def test_neighbors_need_enough_images():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="must be 1 to 2, got 3"):
        precision_recall(x, x)
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 4\)"):
        precision_recall(x, torch.zeros(3, 4))


def test_kid_subsets_average_kernel_distances_by_definition():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(30, 5, generator=generator), torch.rand(40, 5, generator=generator)
    whole = kernel_distance_subsets(a, b[:30], subsets=3, size=30)
    assert whole[0] == pytest.approx(kernel_distance(a, b[:30]), rel=1e-9)
    assert whole[1] == pytest.approx(0, abs=1e-9)

    # A pair of images each: the mean over many draws is the mean over all pairs of pairs.
    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    def mmd(x, y, u, v):
        cross = kernel(x, u) + kernel(x, v) + kernel(y, u) + kernel(y, v)
        return float(kernel(x, y) + kernel(u, v) - cross / 2)

    few, others = a[:4].double(), b[:4].double()
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    values = [mmd(few[i], few[j], others[k], others[m]) for i, j in pairs for k, m in pairs]
    mean, deviation = kernel_distance_subsets(few, others, subsets=4000, size=2, seed=1)
    assert mean == pytest.approx(np.mean(values), abs=4 * np.std(values) / math.sqrt(4000))
    assert deviation == pytest.approx(np.std(values), rel=0.1)
    with pytest.raises(ValueError, match="2 to 4 images, got 100 of 1000"):
        kernel_distance_subsets(few, others)


def test_inception_score_by_definition_and_at_its_limits():
    logits = 3 * torch.randn(25, 7, generator=torch.Generator().manual_seed(0))
    p = torch.softmax(logits.double(), 1).numpy()
    parts = [p[:9], p[9:17], p[17:]]  # sizes differ by one at most, the larger ones first
    scores = [
        np.exp(np.mean([np.sum(row * np.log(row / part.mean(0))) for row in part]))
        for part in parts
    ]
    mean, deviation = inception_score(logits, splits=3)
    assert mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert deviation == pytest.approx(np.std(scores), rel=1e-9)
    sure = 1000 * torch.eye(7)  # every class once and certain: as many as there are classes
    assert inception_score(sure, splits=1)[0] == pytest.approx(7)
    assert inception_score(torch.zeros(10, 7), splits=2)[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="and 11"):
        inception_score(torch.zeros(10, 7), splits=11)


def test_codebook_use_from_counts():
    ids = torch.tensor([[0, 1, 1], [5, 5, 5]])
    counts = count_ids(ids, 8) + count_ids(torch.tensor([0]), 8)
    assert counts.tolist() == [2, 2, 0, 0, 0, 3, 0, 0]
    use = codebook_use(counts)
    share = np.array([2, 2, 3]) / 7
    assert use.usage == 3 / 8 and use.dead_codes == 5
    assert use.perplexity == pytest.approx(np.prod(share**-share))
    even = codebook_use(torch.full((16,), 9))
    assert even == CodebookUse(1.0, pytest.approx(16), 0)
    with pytest.raises(ValueError, match="0 to 7, got 0 to 8"):
        count_ids(torch.tensor([0, 8]), 8)
    with pytest.raises(ValueError, match="not all 0"):
        codebook_use(torch.zeros(4))
