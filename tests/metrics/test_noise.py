"""More noise is worse in every metric, level by level.

Distances and image quality with EfficientNet-Lite0's real weights on drawings with a little grain;
precision, density and coverage with noise added to features; recall with modes left out. No share
sees every fault: noise that scatters features widens the samples' balls, so recall rises, and noise
on images may draw features to where the reference is dense, so precision rises.
"""

import itertools

import pytest
import torch
from torch.nn import functional as F

from codeclade.metrics.distances import kernel_distance
from codeclade.metrics.image_quality import llamagen_ssim, psnr, ssim
from codeclade.metrics.inception import Inception
from codeclade.metrics.lpips_weights import find_lpips_weights, load_lpips
from codeclade.metrics.precision_recall import precision_recall
from codeclade.metrics.pretrained import EfficientNetLite
from codeclade.metrics.statistics import FeatureStatistics, gaussian_distance
from golden_weights import inception_case

LEVELS = (0.01, 0.02, 0.04, 0.07, 0.12)  # standard deviations, of pixels in [-1, 1]


def drawings(count: int, seed: int, size: int = 64) -> torch.Tensor:
    """Three superellipses on a gradient, with grain: pixels (count, 3, size, size) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, size)], indexing="ij")
    images = []
    for _ in range(count):
        image = F.interpolate(uniform(1, 3, 3, 3, low=-1), size=size, mode="bicubic")[0]
        for _ in range(3):
            center, radius = uniform(2, low=-0.7, high=0.7), uniform(2, low=0.15, high=0.55)
            power = float(uniform(1, low=1, high=4))
            away = [((z - c).abs() / r) ** power for z, c, r in zip((x, y), center, radius,
                                                                   strict=True)]  # fmt: skip
            image = torch.where(away[0] + away[1] < 1, uniform(3, 1, 1, low=-1), image)
        grain = 0.04 * float(uniform(1))
        image = image + grain * torch.randn(image.shape, generator=generator)
        images.append(image.clamp(-1, 1))
    return torch.stack(images)


def check_worse(name: str, values: list[float]) -> None:
    """Every value above the one before; shares of a set may stay once they have reached 0 or 1."""
    for before, after in itertools.pairwise(values):
        assert before < after or before == after == 1, f"{name}: {values}"


def gaussian(features: torch.Tensor):
    statistics = FeatureStatistics(features.shape[1], "")
    statistics.update(features)
    return statistics.gaussian()


@pytest.mark.slow
def test_noise_on_images_is_worse_in_spatial_features():
    """sFID's features and formula, with seeded weights in the place of the published ones."""
    network = Inception()
    network.load_state_dict(inception_case()[0], strict=False)
    clean = drawings(8, seed=1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    reference = gaussian(network(drawings(8, seed=0)).spatial)
    # These weights learned nothing, so they see noise later than trained ones.
    check_worse("spatial Fréchet distance", [
        gaussian_distance(reference, gaussian(network((clean + x * noise).clamp(-1, 1)).spatial))
        for x in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
    ])  # fmt: skip


@pytest.mark.slow
def test_noise_on_images_is_worse_level_by_level():
    network = EfficientNetLite(0)
    clean = drawings(12, seed=1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    reference = network(drawings(12, seed=0)).features
    lpips = load_lpips("alex") if find_lpips_weights("alex") else None

    def measured(images: torch.Tensor) -> dict[str, float]:
        """Every metric, turned so that more is worse."""
        features = network(images).features
        numbers = {
            "Fréchet distance": gaussian_distance(gaussian(reference), gaussian(features)),
            "KID": kernel_distance(reference, features),
            "-PSNR": -float(psnr(images, clean).mean()),
            "-SSIM": -float(ssim(images, clean).mean()),
            "-LlamaGen's SSIM": -float(llamagen_ssim(images, clean).mean()),
        }
        if lpips is not None:
            with torch.no_grad():
                numbers["LPIPS"] = float(lpips(images, clean).mean())
        return numbers

    levels = [measured((clean + level * noise).clamp(-1, 1)) for level in (0.0, *LEVELS)]
    for name in levels[0]:
        check_worse(name, [level[name] for level in levels])


def test_noise_on_features_is_worse_level_by_level():
    generator = torch.Generator().manual_seed(0)
    reference, samples, noise = torch.randn(3, 400, 16, generator=generator)
    levels = [precision_recall(reference, samples + level * noise) for level in
              (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)]  # fmt: skip
    for name in ("precision", "density", "coverage"):
        check_worse(name, [1 - level[name] for level in levels])


def test_recall_and_coverage_fall_with_every_mode_left_out():
    generator = torch.Generator().manual_seed(0)
    modes = 20 * torch.eye(6).repeat(40, 1)  # 40 images of each of six modes, in turns
    reference, samples = modes + torch.randn(2, 240, 6, generator=generator)
    levels = [precision_recall(reference, samples[torch.arange(240) % 6 >= lost]) for lost in
              range(6)]  # fmt: skip
    for name in ("recall", "coverage"):
        check_worse(name, [1 - level[name] for level in levels])
