"""Distances of sets of features, by textbook formulas."""

import numpy as np
import pytest
import scipy.linalg
import torch

from codeclade.metrics.distances import frechet_distance, kernel_distance


def draw(n: int, shift: float = 0.0, seed: int = 0, width: int = 6) -> torch.Tensor:
    numbers = np.random.default_rng(seed).normal(size=(n, width)) @ np.diag(range(1, width + 1))
    return torch.from_numpy(numbers + shift)


@pytest.mark.parametrize("counts", [(50, 70), (4, 70), (50, 5), (4, 5)])
def test_frechet_distance_is_the_formula(counts):
    a, b = draw(counts[0]), draw(counts[1], 0.5, 1)
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(6)).real
    expected = np.square(a.numpy().mean(0) - b.numpy().mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_the_unbiased_estimate():
    a, b = draw(9), draw(7, 0.5, 1)
    k = [[[(x @ y / 6 + 1) ** 3 for y in q] for x in p] for p, q in ((a, a), (b, b), (a, b))]
    within = [
        sum(v for i, row in enumerate(m) for j, v in enumerate(row) if i != j)
        / (len(m) * (len(m) - 1))
        for m in k[:2]
    ]
    between = sum(map(sum, k[2])) / 63
    assert kernel_distance(a, b) == pytest.approx(float(sum(within) - 2 * between), rel=1e-9)
    same = [kernel_distance(draw(40, seed=2 * s), draw(40, seed=2 * s + 1)) for s in range(200)]
    spread = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 4 * spread  # unbiased: zero on average for one distribution
