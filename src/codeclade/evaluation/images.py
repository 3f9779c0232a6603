"""Image quality and features moved to codeclade.metrics."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "psnr": "metrics.image_quality",
        "ssim": "metrics.image_quality",
        "gaussian_window": "metrics.image_quality",
        "feature_network": "metrics.features",
    },
)
