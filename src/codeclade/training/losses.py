"""Training losses, one small function a paper.

Shapes: B batch, d code width, G token grid side, V vocabulary, K clusters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..components.heads import cluster_logsumexp
from ..metrics.features import feature_distance


def codebook_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Pull the codes to the latents: mean ||q - sg[z]||^2 (VQ-VAE, arXiv 1711.00937, eq. 3).

    Both (B, d, G, G) and of unit length for the cosine quantizer.
    """
    return F.mse_loss(codes, latents.detach())


def commitment_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Pull the latents to their codes: mean ||sg[q] - z||^2 (VQ-VAE, arXiv 1711.00937, eq. 3)."""
    return F.mse_loss(latents, codes.detach())


def perceptual_loss(features: nn.Module, reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """LPIPS without its learned weights (arXiv 1801.03924, eq. 1, w = 1), averaged over layers l:

        mean_l mean_hw || y_hw / |y_hw| - x_hw / |x_hw| ||^2

    Args:
        features: maps (B, 3, H, W) in [-1, 1] to a list of feature maps (B, C, h, w).
    """
    with torch.no_grad():
        target = features(pixels)
    return feature_distance(features(reconstruction), target)


def cluster_loss(
    logits: Tensor, tokens: Tensor, clusters: Tensor | int, beta: float = 0.0
) -> Tensor:
    """Cross-entropy of the right cluster, -log softmax(a)_{c(y)} (IAR's cluster loss):

        a_c = log sum_{i in c} exp(l_i) - beta log |c|

    IAR adds it, with weight 1, to the cross-entropy of the token. For beta = 0 exp(a_c) is the
    cluster's exact probability up to normalization; beta = 1 removes the advantage of large
    clusters, so that equal logits give every cluster the same probability.

    Args:
        logits: (..., V) of the next token.
        tokens: (...) the right tokens y.
        clusters: (V,) cluster of every token, of any sizes; or m, for IAR's blocks of m tokens.

    Raises:
        ValueError: blocks that do not divide the vocabulary, or a mapping of another length.
    """
    # Blocks are a map like any other.
    vocab_size = logits.shape[-1]
    if isinstance(clusters, int):
        if vocab_size % clusters:
            raise ValueError(f"clusters of {clusters} tokens do not divide {vocab_size} tokens.")
        clusters = torch.arange(vocab_size, device=logits.device) // clusters
    if clusters.shape != (vocab_size,):
        raise ValueError(
            f"clusters has shape {tuple(clusters.shape)}, but there are {vocab_size} tokens."
        )

    # a_c of every cluster, in float32: bfloat16 logits lose what logsumexp adds.
    sizes = clusters.bincount()
    scores = cluster_logsumexp(logits.float(), clusters, len(sizes)) - beta * sizes.log()
    return F.cross_entropy(scores.flatten(0, -2), clusters[tokens].flatten())
