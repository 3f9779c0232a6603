"""Training losses, one small function a paper.

Shapes: B batch, d code width, G token grid side, V vocabulary, K clusters.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..components.heads import cluster_logsumexp
from ..metrics.features import feature_distance
from ..metrics.networks import resized
from ..metrics.pretrained import EfficientNetLite


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


def classifier_loss(
    network: EfficientNetLite, reconstruction: Tensor, pixels: Tensor, size: int
) -> Tensor:
    """Mean squared distance of a classifier's logits: images shall show the same things.

    Perceptual losses hold textures and edges; a few codes an image may lose the object all the
    same. The tokenizers of MaskGIT (arXiv 2202.04200, in its code) and TiTok (arXiv 2406.07550)
    compare logits for this.

    Args:
        reconstruction, pixels: (B, 3, H, W) in [-1, 1]; gradients flow to the first.
        size: side to which both are resized.
    """
    with torch.no_grad():
        target = network.logits(resized(pixels, size))
    return F.mse_loss(network.logits(resized(reconstruction, size)).float(), target.float())


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


def tree_loss(logits: Tensor, tokens: Tensor, cuts: Tensor, weights: Tensor) -> Tensor:
    """How far up the merge tree a model errs: sum_k w_k (-log P_k(c_k(y))), our own.

    P_k(c) is the probability of all tokens of cluster c in cut k. IAR's cluster loss is one cut of
    equal clusters and weight 1; with the weights of `tree_loss_weights` over all merges and 1 - P
    instead of -log P it would be the expected height at which the drawn token and the right one
    meet.

    Args:
        logits: (..., V) of the next token.
        tokens: (...) the right tokens y.
        cuts: (L, V) cluster of every token in every cut.
        weights: (L,) of the cuts.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    normalizer = logits.float().logsumexp(-1)  # (...)
    for cluster_of, weight in zip(cuts, weights, strict=True):
        scores = cluster_logsumexp(logits.float(), cluster_of, int(cluster_of.max()) + 1)
        right = scores.gather(-1, cluster_of[tokens].unsqueeze(-1)).squeeze(-1)  # (...)
        total = total + weight * (normalizer - right).mean()
    return total


def tree_loss_weights(heights: Tensor, counts: Sequence[int]) -> Tensor:
    """Weights (L,) of cuts with `counts` clusters: the heights between them, as shares of the top.

    A cut stands for all heights from its last merge up to that of the next coarser cut, the
    coarsest one up to the top.

    Args:
        heights: (N-1,) of the merges, ascending.
        counts: clusters of the cuts, finest first.
    """
    size = len(heights) + 1
    done = torch.cat([heights.new_zeros(1), heights])  # (N,) after every number of merges
    edges = torch.stack([*(done[size - count] for count in counts), heights[-1]])
    return ((edges[1:] - edges[:-1]) / heights[-1]).float()


def alignment_loss(states: Tensor, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of -w cos(f(h), z) over positions: reAR's regularizer (arXiv 2510.04450).

    Args:
        states: (B, T, d) what a small network makes of hidden states.
        vectors: (B, T, d) code vectors: of the input token for the first layer, of the next token
            for a late one.
        weights: (B, T); None counts every position alike. reAR leaves replaced inputs out.
    """
    alike = F.cosine_similarity(states.float(), vectors.float(), dim=-1)  # (B, T)
    return -(alike if weights is None else alike * weights).mean()
