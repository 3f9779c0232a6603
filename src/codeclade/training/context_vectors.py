"""Vectors of codes that stand beside like codes, from the codes of training images alone.

Ours, for embeddings as word vectors are for words: two codes that are far apart in the codebook may
still be used alike, say for the two sides of an edge. With n_ic how often code i has a neighbor of
cluster c (the rows of the codes' exact merge tree, cut into at most `CONTEXTS`), the positive
pointwise mutual information is

    M_ic = max(0, ln (n_ic n / (n_i m_c))),   m_c = n_c^0.75 scaled to add up to n,

and the vectors are its strongest left singular vectors times the roots of their singular values, of
length sqrt(D). The power and the roots are those of Levy et al. (2015, "Improving distributional
similarity with lessons learned from word embeddings").

Shapes: N codes, C contexts, B images, G token grid side, D width of the vectors.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

CONTEXTS = 1024  # clusters of neighbors: counts take 4 N C bytes, and more contexts are rarer each
WIDTH = 64  # numbers a vector
TOKENS_A_CODE = 1000  # training tokens that are counted: 16 million of 16,384 codes
SMOOTHING = 0.75  # power of the contexts' frequencies, so that rare ones do not rule
# Steps from a token to a neighbor, down and right, and what a pair counts.
NEIGHBORS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.5), (1, -1, 0.5), (0, 2, 0.5), (2, 0, 0.5))


@torch.no_grad()
def context_vectors(grids: Iterable[Tensor], contexts: Tensor) -> Tensor:
    """Vectors (N, D) float32 of length sqrt(D); zero for a code that does not occur.

    Args:
        grids: batches of token grids (B, G, G) int64.
        contexts: (N,) context that every code is as a neighbor.
    """
    counts = neighbor_counts(grids, contexts)
    information = mutual_information(counts).double()  # (N, C)

    # Left singular vectors from the smaller square matrix.
    squares, right = torch.linalg.eigh(information.mT @ information)  # ascending
    width = min(WIDTH, counts.shape[1])
    strengths = squares[-width:].clamp_min(1e-9).sqrt()  # singular values
    vectors = information @ right[:, -width:] / strengths.sqrt()
    lengths = vectors.norm(dim=1, keepdim=True).clamp_min(1e-9)
    return (vectors / lengths * width**0.5).float()


def neighbor_counts(grids: Iterable[Tensor], contexts: Tensor) -> Tensor:
    """How often every code has a neighbor of every context (N, C) float32, in either direction."""
    codes, number = len(contexts), int(contexts.max()) + 1
    counts = torch.zeros(codes * number)
    for grid in grids:
        rows, columns = grid.shape[1:]
        for down, right, weight in NEIGHBORS:
            first, last = max(0, -right), columns - max(0, right)  # columns that have the neighbor
            one = grid[:, : rows - down, first:last].flatten()
            other = grid[:, down:, first + right : last + right].flatten()
            for code, beside in ((one, other), (other, one)):
                places = code * number + contexts[beside]
                counts.index_add_(0, places, torch.full((len(places),), weight))
    return counts.view(codes, number)


def mutual_information(counts: Tensor) -> Tensor:
    """Positive pointwise mutual information (N, C) of counts (N, C)."""
    of_code, of_context = counts.sum(1, keepdim=True), counts.sum(0) ** SMOOTHING
    expected = of_code * (of_context / of_context.sum())
    return (counts / expected.clamp_min(1e-30)).log().clamp_min(0)
