"""Running statistics: equal to a batch's, exact over processes, and SciPy's Fréchet distance."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch

from codeclade.metrics.distances import frechet_distance
from codeclade.metrics.statistics import (
    MOST_IMAGES,
    FeatureStatistics,
    Gaussian,
    cache_key,
    gaussian_distance,
)


def features(n: int, size: int = 24, seed: int = 0) -> torch.Tensor:
    """Correlated, far from zero in some columns, tiny in others, float32 as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator)
    x = torch.randn(n, size, generator=generator) @ mix
    x = x * torch.logspace(-3, 1, size) + torch.linspace(-300, 2000, size)
    return x.float()


def streamed(x: torch.Tensor, batch: int = 7) -> FeatureStatistics:
    statistics = FeatureStatistics(x.shape[1])
    for part in x.split(batch):
        statistics.update(part)
    return statistics


def sqrtm_distance(a: Gaussian, b: Gaussian) -> float:
    """The formula as pytorch-fid and ADM's evaluator spell it."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    gap = a.mean - b.mean
    return gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root)


def test_streaming_equals_numpy_on_the_whole_batch():
    x = features(500)
    ours = streamed(x).gaussian()
    np.testing.assert_allclose(ours.mean, x.double().numpy().mean(0), rtol=0, atol=1e-9)
    reference = np.cov(x.double().numpy(), rowvar=False)
    scale = np.sqrt(np.outer(reference.diagonal(), reference.diagonal()))
    assert np.abs((ours.covariance - reference) / scale).max() < 1e-9
    assert ours.count == 500


def test_a_mean_far_above_the_spread_costs_no_digits():
    rng = np.random.default_rng(0)
    x = 3000 + 2.0**-12 * rng.integers(-8, 9, (400, 3))
    ours = streamed(torch.from_numpy(x)).gaussian().covariance
    exact = np.cov(x - 3000, rowvar=False)
    assert np.abs(ours - exact).max() < 1e-9 * exact.max()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_processes_equal_one_exactly_in_any_order_and_batching(order):
    x = features(303)
    one = streamed(x, 32)
    parts = [streamed(x[rank::3], batch) for rank, batch in enumerate((5, 16, 101))]
    merged = parts[order[0]]
    for rank in order[1:]:
        merged.merge(parts[rank])
    assert merged.count == one.count
    assert torch.equal(merged.moments, one.moments)
    a, b = merged.gaussian(), one.gaussian()
    assert np.array_equal(a.mean, b.mean) and np.array_equal(a.covariance, b.covariance)


def test_second_moments_equal_those_of_python_integers():
    x = torch.tensor([-4096.0, 4095.9998, 0.1, 1e-6]).repeat(16)[:, None]
    statistics = streamed(x)
    steps = [round(Fraction(value) * 2**33) for value in x[:, 0].tolist()]
    ours = sum(int(m) * 2 ** (15 * (4 - i)) for i, m in enumerate(statistics.moments[:, 0, 0]))
    assert ours == sum(step**2 for step in steps)


@pytest.mark.parametrize("images", [200, 2000])
def test_frechet_distance_equals_the_sqrtm_formula(images):
    a, b = (streamed(features(images, seed=seed)).gaussian() for seed in (0, 1))
    assert gaussian_distance(a, b) == pytest.approx(sqrtm_distance(a, b), rel=1e-6)
    assert gaussian_distance(a, b) == pytest.approx(gaussian_distance(b, a), rel=1e-9)


def test_frechet_distance_of_singular_covariances_equals_the_one_from_features():
    a, b = features(10, 64, 0), features(12, 64, 1)
    ours = gaussian_distance(streamed(a).gaussian(), streamed(b).gaussian())
    assert ours == pytest.approx(frechet_distance(a, b), rel=1e-6)


@pytest.mark.parametrize("images", [10, 500])
def test_a_set_has_no_distance_to_itself(images):
    x = torch.rand(images, 64, generator=torch.Generator().manual_seed(0))
    assert gaussian_distance(streamed(x).gaussian(), streamed(x.flip(0), 3).gaussian()) < 1e-6


def test_files_keep_everything(tmp_path):
    x = features(60)
    half = FeatureStatistics(24, "abc")
    half.update(x[:20])
    half.save(tmp_path / "half.npz")
    again = FeatureStatistics.load(tmp_path / "half.npz")
    for statistics in (half, again):
        statistics.update(x[20:])
    assert torch.equal(half.moments, again.moments) and torch.equal(half.sums, again.sums)
    gaussian = again.gaussian()
    gaussian.save(tmp_path / "whole.npz")
    read = Gaussian.load(tmp_path / "whole.npz")
    assert np.array_equal(read.mean, gaussian.mean)
    assert np.array_equal(read.covariance, gaussian.covariance)
    assert (read.count, read.network) == (60, "abc")


def test_reference_files_of_others_are_read(tmp_path):
    rng = np.random.default_rng(0)
    mean, spatial = rng.random(4).astype(np.float32), rng.random(3)
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((1, 2, 2, 3), np.uint8), mu=mean,
             sigma=np.eye(4), mu_s=spatial, sigma_s=2 * np.eye(3))  # fmt: skip
    pooled = Gaussian.load(tmp_path / "adm.npz")
    assert np.array_equal(pooled.mean, mean.astype(np.float64)) and pooled.count == 0
    assert pooled.mean.dtype == np.float64
    other = Gaussian.load(tmp_path / "adm.npz", spatial=True)
    assert np.array_equal(other.mean, spatial) and other.covariance[0, 0] == 2


def test_what_cannot_be_right_is_refused(tmp_path):
    statistics = FeatureStatistics(3, "one")
    with pytest.raises(ValueError, match=r"must be \(n, 3\), got \(2, 4\)"):
        statistics.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\[-4096, 4096\], got nan"):
        statistics.update(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="got 5000"):
        statistics.update(torch.full((2, 3), 5000.0))
    assert statistics.count == 0
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        statistics.gaussian()
    with pytest.raises(ValueError, match=r"network 'one' with 3 features of network 'two'"):
        statistics.merge(FeatureStatistics(3, "two"))
    statistics.count = MOST_IMAGES
    with pytest.raises(ValueError, match="2097152 images, got 2097153"):
        statistics.update(torch.zeros(1, 3))
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"mu must be \(D,\) and sigma \(D, D\)"):
        Gaussian.load(tmp_path / "wrong.npz")
    with pytest.raises(ValueError, match="has no mu_s; it has mu, sigma"):
        Gaussian.load(tmp_path / "wrong.npz", spatial=True)
    with pytest.raises(ValueError, match="has no sums"):
        FeatureStatistics.load(tmp_path / "wrong.npz")
    a, b = (Gaussian(np.zeros(2), np.eye(2), 9, network) for network in ("one", "two"))
    with pytest.raises(ValueError, match="network one and two"):
        gaussian_distance(a, b)
    with pytest.raises(ValueError, match="2 features with 3"):
        gaussian_distance(a, Gaussian(np.zeros(3), np.eye(3)))


def test_a_cache_key_depends_on_each_part():
    keys = {cache_key(*parts) for parts in itertools.product(("a", "ab"), ("b", ""), ("c", "bc"))}
    assert len(keys) == 8
    assert cache_key("a", "b", "c") == cache_key("a", "b", "c")
