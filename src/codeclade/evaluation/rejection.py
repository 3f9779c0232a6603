"""Rejection sampling by a classifier: of several draws the one that shows its class best is kept.

As for VQ-VAE-2 (arXiv 1906.00446) and VQGAN (arXiv 2012.09841). There a share of all images is
kept; here every image has draws of its own, so that a set does not depend on batches or processes.
Numbers measured by the judge itself are flattered most: another network should measure.

Shapes: B images of S pixels a side.
"""

import torch
from torch import Tensor

from ..data.pixels import to_pixels
from ..metrics.networks import FeatureNetwork
from .feature_sets import open_network
from .reference import imagenet_indices

JUDGES = ("lite0", "lite2")  # networks with a classifier in the order of ImageNet's classes


def check_judge(name: str) -> None:
    """Raise a ValueError unless the network of this name can judge."""
    if name not in JUDGES:
        raise ValueError(f"--judge {name} must be one of {', '.join(JUDGES)}.")


class Judge:
    """A classifier that says how well an image shows its class.

    Args:
        network: has logits of ImageNet's classes.
        classes: ImageNet's index of every class of the pipeline.
    """

    def __init__(self, network: FeatureNetwork, classes: list[int]):
        self.network, self.classes = network, torch.tensor(classes)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Log-probability (B,) of their classes (B,), of images (B, 3, S, S) uint8."""
        device = next(self.network.parameters()).device
        logits = self.network(to_pixels(images).to(device)).logits.float().cpu()
        return logits.log_softmax(1).gather(1, self.classes[labels][:, None])[:, 0]


def open_judge(
    name: str, own: list[str], device: torch.device | str, opened: FeatureNetwork | None = None
) -> Judge:
    """The judge of a pipeline's classes.

    Args:
        name: "lite0" or "lite2".
        own: class names of the pipeline, in order.
        opened: the network, where it is here already.

    Raises:
        ValueError: another name, or classes that are not ImageNet's.
    """
    check_judge(name)
    classes = imagenet_indices(own)
    if classes is None:
        raise ValueError("--draws needs a pipeline whose classes all bear names of ImageNet's.")
    return Judge(opened or open_network(name, device), classes)
