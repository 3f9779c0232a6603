"""PSNR and SSIM against naive references, and scikit-image on 8-bit images (golden numbers)."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codeclade.metrics import image_quality
from codeclade.metrics.image_quality import gaussian_window, psnr, ssim
from golden_weights import GOLDEN


def pixels(seed: int, size: int = 16, count: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=random) * 2.4 - 1.2  # some out of range


def test_psnr_is_its_formula():
    a, b = pixels(0), pixels(1)
    x, y = a.clamp(-1, 1).double().numpy(), b.clamp(-1, 1).double().numpy()
    wanted = [10 * np.log10(4 / np.mean((x[i] - y[i]) ** 2)) for i in range(2)]
    np.testing.assert_allclose(psnr(a, b).numpy(), wanted, rtol=1e-5)
    assert psnr(a, a).isinf().all()


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. (2004), window by window, of one plane in [0, 1]."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            )
    return float(np.mean(values))


def test_ssim_is_the_naive_one():
    a, b = pixels(0), (pixels(0) + 0.3 * pixels(1))
    x, y = ((image.clamp(-1, 1).double().numpy() + 1) / 2 for image in (a, b))
    wanted = [np.mean([naive_ssim(x[i, c], y[i, c]) for c in range(3)]) for i in range(2)]
    np.testing.assert_allclose(ssim(a, b).numpy(), wanted, rtol=1e-9)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert gaussian_window().sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(pixels(0, size=8), pixels(1, size=8))


@pytest.mark.parametrize("measure", ["psnr", "ssim", "llamagen_ssim"])
def test_8_bit_images_measure_as_in_scikit_image(measure):
    case = load_file(GOLDEN / "image_quality.safetensors")
    images, reference = (case[name].float() / 127.5 - 1 for name in ("images", "reference"))
    ours = getattr(image_quality, measure)(images, reference)
    torch.testing.assert_close(ours.double(), case[measure].double(), rtol=0, atol=1e-4)


def test_llamagen_ssim_needs_seven_pixels():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    assert image_quality.llamagen_ssim(a[..., :7], b[..., :7]).shape == (2,)
    with pytest.raises(ValueError, match="at least 7x7 pixels"):
        image_quality.llamagen_ssim(a[..., :6], b[..., :6])
