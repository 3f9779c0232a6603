"""More noise is worse in every metric, level by level, with EfficientNet-Lite0's real weights.

Drawings with a little grain. On photographs precision and density may rise with weak noise: it
draws features together, to where the reference is dense. Recall and coverage fall there too.
"""

import pytest
import torch
from torch.nn import functional as F

from codeclade.metrics.distances import kernel_distance
from codeclade.metrics.image_quality import llamagen_ssim, psnr, ssim
from codeclade.metrics.lpips_weights import find_lpips_weights, load_lpips
from codeclade.metrics.precision_recall import precision_recall
from codeclade.metrics.pretrained import EfficientNetLite
from codeclade.metrics.statistics import FeatureStatistics, gaussian_distance

LEVELS = (0.01, 0.02, 0.04, 0.07, 0.12)  # standard deviations, of pixels in [-1, 1]


def drawings(count: int, seed: int, size: int = 64) -> torch.Tensor:
    """Three superellipses on a gradient, grain up to 0.04: pixels (count, 3, size, size)."""
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


@pytest.mark.slow
def test_noise_is_worse_in_every_metric_level_by_level():
    network = EfficientNetLite(0)
    clean = drawings(24, seed=1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    reference = network(drawings(24, seed=0)).features
    lpips = load_lpips("alex") if find_lpips_weights("alex") else None

    def gaussian(features: torch.Tensor):
        statistics = FeatureStatistics(features.shape[1], network.fingerprint)
        statistics.update(features)
        return statistics.gaussian()

    def measured(images: torch.Tensor) -> dict[str, float]:
        """Every metric, turned so that more is worse."""
        features = network(images).features
        shares = precision_recall(reference, features)
        numbers = {
            "Fréchet distance": gaussian_distance(gaussian(reference), gaussian(features)),
            "KID": kernel_distance(reference, features),
            **{f"1 - {name}": 1 - value for name, value in shares.items()},
            "-PSNR": -float(psnr(images, clean).mean()),
            "1 - SSIM": 1 - float(ssim(images, clean).mean()),
            "1 - LlamaGen's SSIM": 1 - float(llamagen_ssim(images, clean).mean()),
        }
        if lpips is not None:
            with torch.no_grad():
                numbers["LPIPS"] = float(lpips(images, clean).mean())
        return numbers

    levels = [measured((clean + level * noise).clamp(-1, 1)) for level in (0.0, *LEVELS)]
    for name in levels[0]:
        values = [level[name] for level in levels]
        assert values == sorted(values), f"{name}: {values}"
        assert values[-1] > values[0], f"{name}: {values}"
        if not name.startswith("1 - "):  # shares of 24 images have steps
            assert len(set(values)) == len(values), f"{name}: {values}"
