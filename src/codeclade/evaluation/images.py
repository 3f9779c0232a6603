"""Moved to codeclade.metrics."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "psnr": "metrics.image_quality.psnr",
        "ssim": "metrics.image_quality.ssim",
        "gaussian_window": "metrics.image_quality.gaussian_window",
        "feature_network": "metrics.features.feature_network",
    },
)
