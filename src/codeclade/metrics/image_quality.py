"""How far every image is from its reference: PSNR and SSIM; the list of what is measured.

All take pixels (B, 3, H, W) in [-1, 1], clamped first, since that is what a viewer sees. Of 8-bit
images (x / 127.5 - 1) they equal scikit-image's; published numbers are those of 8-bit images.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE = 2.0  # of pixels
WINDOW, SIGMA = 11, 1.5  # SSIM's Gaussian window
UNIFORM_WINDOW = 7  # of scikit-image's default
K1, K2 = 0.01, 0.03  # SSIM's stabilizing constants


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB, 10 log10(range^2 / MSE); infinite for equal images."""
    error = (images.clamp(-1, 1) - reference.clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(RANGE**2 / error)


def gaussian_window() -> Tensor:
    """The 11 weights, sum 1, that SSIM uses along each axis."""
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offset.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (B,), 1 for equal images (Wang et al. 2004, eq. 13).

    Gaussian window of 11 x 11, sigma 1.5, population variances, windows inside the image only,
    averaged over colors, of values in [0, 1]: scikit-image's `gaussian_weights=True,
    use_sample_covariance=False`.

    Raises:
        ValueError: images smaller than the window.
    """
    return _similarity(images, reference, gaussian_window(), 1.0, 1.0)


def llamagen_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """SSIM (B,) as LlamaGen's evaluation computes it; mostly higher than `ssim`.

    Uniform window of 7 x 7 and sample variances, scikit-image's defaults, with the stabilizing
    constants of a range twice that of the images (`data_range=2.0` for values in [0, 1]).

    Raises:
        ValueError: images smaller than the window.
    """
    window = torch.full((UNIFORM_WINDOW,), 1 / UNIFORM_WINDOW, dtype=torch.float64)
    places = UNIFORM_WINDOW**2
    return _similarity(images, reference, window, places / (places - 1), 2.0)


def _similarity(
    images: Tensor, reference: Tensor, window: Tensor, correction: float, value_range: float
) -> Tensor:
    """SSIM (B,) with weights (w,) along each axis and variances times `correction`, in float64.

    Of values in [0, 1]: SSIM compares means, so the same images in [-1, 1] give another number.
    """
    size = len(window)
    if min(images.shape[-2:]) < size:
        raise ValueError(
            f"SSIM needs images of at least {size}x{size} pixels, got {tuple(images.shape)}."
        )
    # The window is an outer product, so two passes of one dimension do. float64: variances are
    # small differences of large numbers.
    x, y = ((x.clamp(-1, 1).double() + 1) / 2 for x in (images, reference))
    window = window.to(x.device)
    kernels = [window.view(1, 1, -1, 1), window.view(1, 1, 1, -1)]

    def smoothed(image: Tensor) -> Tensor:
        planes = image.flatten(0, 1).unsqueeze(1)
        for kernel in kernels:
            planes = F.conv2d(planes, kernel)
        return planes.unflatten(0, image.shape[:2]).squeeze(2)

    # Local means, variances and covariance, then eq. 13.
    mean_x, mean_y = smoothed(x), smoothed(y)
    variance_x, variance_y, covariance = (
        correction * (smoothed(product) - means)
        for product, means in ((x * x, mean_x**2), (y * y, mean_y**2), (x * y, mean_x * mean_y))
    )
    c1, c2 = (K1 * value_range) ** 2, (K2 * value_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


class Quality(NamedTuple):
    """A measure of reconstructions, as `codeclade evaluate` gives it."""

    function: Callable[[Tensor, Tensor], Tensor]  # (images, reference), (B, 3, H, W), to (B,)
    unit: str = ""  # as it follows the number


# What `codeclade evaluate` measures of every photograph and its reconstruction, by the name in
# evaluation.json; a new measure is a function and a line here.
QUALITIES = {
    "PSNR of reconstructions": Quality(psnr, " dB"),
    "SSIM of reconstructions": Quality(ssim),
    "SSIM of reconstructions, LlamaGen's": Quality(llamagen_ssim),
}
