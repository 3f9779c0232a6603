"""Noise in the context: a generator that has seen wrong tokens goes on better from its own errors.

reAR (arXiv 2510.04450): per image a rate r ~ U(0, 1) rho, rho from 1 to 0 over the first 75 % of
training; every input token is replaced by a uniform random one with probability r. Targets stay.
Ours draws the replacement from an ancestor cluster of the token instead: the mistakes that a
sampler really makes are near ones.
"""

import torch
from torch import Tensor

KINDS = ("none", "uniform", "cluster")
SHARE = 0.75  # of training, over which the rate falls to zero


def noise_rate(done: int, steps: int) -> float:
    """rho after `done` of `steps` optimizer steps."""
    return max(0.0, 1.0 - done / (SHARE * steps))


class ContextNoise:
    """Replaces input tokens at random.

    Args:
        vocab_size: V; replacements are uniform over all tokens, or
        cluster_of: (V,) an ancestor cluster of every token; uniform over its members.
    """

    def __init__(self, vocab_size: int, cluster_of: Tensor | None = None):
        self.vocab_size, self.cluster_of = vocab_size, cluster_of
        if cluster_of is not None:
            sizes = cluster_of.bincount()
            self.members = cluster_of.argsort(stable=True)  # (V,) sorted by cluster
            self.first, self.sizes = sizes.cumsum(0) - sizes, sizes  # (K,)

    def __call__(self, tokens: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) with some replaced, and where (B, T) bool.

        Args:
            rate: rho; each image's own rate is drawn below it.
        """
        own = torch.rand(len(tokens), 1, device=tokens.device) * rate  # (B, 1)
        replaced = torch.rand(tokens.shape, device=tokens.device) < own
        uniforms = torch.rand(tokens.shape, device=tokens.device)
        if self.cluster_of is None:
            other = (uniforms * self.vocab_size).long().clamp_max(self.vocab_size - 1)
        else:
            clusters = self.cluster_of[tokens]
            size = self.sizes[clusters]
            offset = (uniforms * size).long().clamp_max(size - 1)
            other = self.members[self.first[clusters] + offset]
        return torch.where(replaced, other, tokens), replaced
