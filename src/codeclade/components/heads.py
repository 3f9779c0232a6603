"""Heads: how a position's token becomes an input vector and how its logits come out.

One pair of modules a scheme: LlamaGen's embedding and `TokenHead` (arXiv 2406.06525),
`ClusterTokenEmbedding` and `ClusterTokenHead` (our own), `SemanticDetailEmbedding` and
`SemanticDetailHead` (IAR2, arXiv 2510.06928). Must stay numerically equal to the published
IAR2-*.pth (see checkpoints/).

Every head has two methods, or is a plain linear layer, which `TokenHead` has them for:

    teacher_forced(hidden, labels, tokens, embedding, conditioned) -> fields of CodecladeOutput
        all positions at once: hidden (B, L, D), labels and tokens (B, T, ...) or None;
        `conditioned` says that the prefix is part of this call, not only in the cache
    stage_logits(hidden, step, chosen, cache, embedding) -> (B, V), or (B, n, V) for a slice
        one stage of one position, or of n, while images are sampled; see
        CodecladeTransformer.stage_logits

Shapes: B batch, T tokens, L prefix and tokens, D width, V vocabulary, K coarse vocabulary
(clusters or semantic codes), G token grid side. Logits are float32 whatever the dtype.
"""

import functools
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .blocks import Block, Output


class Head(Protocol):
    """What the transformer asks of the layers after its last block."""

    def teacher_forced(self, hidden, labels, tokens, embedding, conditioned) -> dict[str, Tensor]:
        """Fields of CodecladeOutput at all positions."""
        ...

    def stage_logits(self, hidden, step: int | slice, chosen, cache, embedding) -> Tensor:
        """Logits (B, V) of one stage of one position, or (B, n, V) of a slice of them."""
        ...


# Layers of this file that have parts on either side of a sum, so they stay on one device.
OWN_LAYERS = (
    "ClusterTokenEmbedding",
    "ClusterTokenHead",
    "SemanticDetailEmbedding",
    "SemanticDetailHead",
)


class TokenHead:
    """Logits of the ids or clusters by one linear layer, of whatever class.

    The layer is the module of the model, so that it may be wrapped (LoRA) or quantized.
    """

    def __init__(self, linear: nn.Module, first: int):
        self.linear = linear
        self.first = first  # position that predicts token 0, P - 1

    def teacher_forced(self, hidden, labels, tokens, embedding, conditioned) -> dict[str, Tensor]:
        logits = self.linear(hidden).float()  # (B, L, V)
        if labels is None:
            return {"logits": logits}
        predicted = logits[:, self.first : self.first + labels.shape[1]]
        return {
            "logits": logits,
            "loss": F.cross_entropy(predicted.flatten(0, 1), labels.to(logits.device).flatten()),
        }

    def stage_logits(self, hidden, step, chosen, cache, embedding) -> Tensor:
        if chosen is not None:
            raise ValueError("this transformer has one stage, so nothing is chosen before it.")
        return self.linear(hidden[:, step]).float()  # (B, ..., V)


def cluster_logsumexp(logits: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    """log sum_{i in c} exp(l_i) for every cluster c: (..., K) from logits (..., V).

    Args:
        clusters: (V,) cluster of every entry; sizes may differ, an empty cluster has -inf.
    """
    # Each cluster's own maximum is taken out, as in any log-sum-exp: with one for the whole row,
    # clusters far below the best would underflow to log 0.
    index = clusters.expand_as(logits)
    empty = logits.new_zeros(*logits.shape[:-1], num_clusters)
    peak = torch.full_like(empty, -torch.inf).scatter_reduce(-1, index, logits.detach(), "amax")
    return peak + empty.scatter_add(-1, index, (logits - peak[..., clusters]).exp()).log()


class ClusterTokenEmbedding(nn.Module):
    """Ids to vectors: u_i = E_token[i] + E_cluster[c(i)], so members of a cluster share a part.

    Buffer `cluster_of` (V,): c(i), saved with the weights.
    """

    cluster_of: Tensor

    def __init__(self, config):
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.cluster = nn.Embedding(config.coarse_vocab_size, config.hidden_size)
        self.register_buffer("cluster_of", torch.zeros(config.vocab_size, dtype=torch.int64))

    def forward(self, ids: Tensor, clusters_alone: bool = False) -> Tensor:
        """Vectors (..., D) of ids (...); or their clusters (...).

        Whoever needs the clusters asks for them here: offloading brings buffers to the device for
        as long as `forward` runs, and takes them away from under a reference.
        """
        clusters = self.cluster_of[ids]
        return clusters if clusters_alone else self.token(ids) + self.cluster(clusters)


def clusters_of_all(embedding: nn.Module, device: torch.device) -> Tensor:
    """Cluster (V,) of every id that a `ClusterTokenEmbedding` has, on a device."""
    ids = torch.arange(len(cast(ClusterTokenEmbedding, embedding).cluster_of), device=device)
    return embedding(ids, clusters_alone=True).to(device)


class ClusterTokenHead(nn.Module):
    """A cluster, then one of its ids, with an exact likelihood.

        p(i | h) = p(c | h) p(i | h, c)                       with c = c(i), the cluster of id i
        p(c | h) = exp(a_c) / sum_k exp(a_k)                                   a = A h, (K,)
        p(i | h, c) = [c(i) = c] exp(l_i) / sum_{j in c} exp(l_j)              l = W h, (V,)

    h is the normalized last hidden state. Loss: -log p(i | h), the joint likelihood; a fresh model
    has ln K + mean ln|c(i)|. `logits` of a whole forward pass are log p(i | h) of every id i, so
    their softmax is the model's distribution; `cluster_logits` are a.
    """

    def __init__(self, config):
        super().__init__()
        self.clusters = Output(config.hidden_size, config.coarse_vocab_size)
        self.tokens = Output(config.hidden_size, config.vocab_size)
        self.first = config.prefix_length - 1

    def teacher_forced(self, hidden, labels, tokens, embedding, conditioned) -> dict[str, Tensor]:
        # log p(c | h) minus the log-sum of the cluster's members is the same for all its ids: one
        # shift a cluster turns the fine logits into joint log-probabilities.
        coarse = self.clusters(hidden).float()  # (B, L, K)
        fine = self.tokens(hidden).float()  # (B, L, V)
        cluster_of = clusters_of_all(embedding, fine.device)
        shift = coarse.log_softmax(-1) - cluster_logsumexp(fine, cluster_of, coarse.shape[-1])
        logits = fine + shift[..., cluster_of]
        output = {"logits": logits, "cluster_logits": coarse}
        if labels is not None:
            predicted = logits[:, self.first : self.first + labels.shape[1]]
            output["loss"] = F.nll_loss(
                predicted.flatten(0, 1), labels.to(predicted.device).flatten()
            )
        return output

    def stage_logits(self, hidden, step, chosen: Tensor | None, cache, embedding) -> Tensor:
        if chosen is None:
            return self.clusters(hidden[:, step]).float()
        logits = self.tokens(hidden[:, step]).float()
        cluster_of = clusters_of_all(embedding, logits.device)
        outside = cluster_of != chosen.to(logits.device).unsqueeze(-1)  # (B, ..., V)
        # Finite, so that guidance between two masked rows stays a number.
        return logits.masked_fill(outside, -1e30)


class SemanticDetailEmbedding(nn.Module):
    """Pairs (B, T, 2) of a semantic and a detail code to one vector each (IAR2's fusion)."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.semantic = nn.Embedding(config.coarse_vocab_size, width)
        self.detail = nn.Embedding(config.vocab_size, width)
        self.mix = nn.Sequential(
            nn.Linear(2 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        semantic, detail = pairs.unbind(-1)
        return self.mix(torch.cat([self.semantic(semantic), self.detail(detail)], dim=-1))


def neighbors(cells: Tensor, grid_size: int, window: int) -> Tensor:
    """Raster cells (n, m) that come before `cells` (n,) in a window, -1 where outside the grid.

    In order: `window` rows above with 2 * window + 1 columns each, then `window` cells to the left.
    """
    # The full square around a cell in raster order; its first `earlier` cells are those above and
    # left, which are the ones sampled already.
    span = torch.arange(-window, window + 1, device=cells.device)
    row, column = (grid.flatten() for grid in torch.meshgrid(span, span, indexing="ij"))
    earlier = window * (2 * window + 1) + window
    row = (cells // grid_size).unsqueeze(-1) + row[:earlier]
    column = (cells % grid_size).unsqueeze(-1) + column[:earlier]
    inside = (row >= 0) & (column >= 0) & (column < grid_size)
    return torch.where(inside, row * grid_size + column, -1)


@functools.lru_cache(maxsize=8)
def neighbor_table(grid_size: int, window: int, device: torch.device) -> Tensor:
    """`neighbors` (T, 12) of all cells, made once: a step then asks the host for nothing."""
    with torch.inference_mode(False):  # a tensor made in that mode could not be used outside of it
        return neighbors(torch.arange(grid_size**2, device=device), grid_size, window)


class HeadBlock(Block):
    """A block of a head, run on one to three tokens: `compile_repeated_blocks` leaves it out."""


class SemanticDetailHead(nn.Module):
    """IAR2's head: blocks over [local context g, hidden state h, semantic code E1(k)], causal.

    g joins the compressed hidden states of the 12 cells around; the second token gives the semantic
    logits, the third, which is the semantic code, the detail logits.
    """

    semantic: nn.Sequential
    detail: nn.Sequential

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.hidden_size
        # Hidden states of the neighbors that are known: rows above, and those before in the row.
        # The first cell has none, so its context is zero until the biases have moved, and the norm
        # of every block multiplies its gradient by up to 1 / sqrt(eps): large at the start of a
        # training (clipped; one step is enough), infinite in float16 where weights are large too.
        count = 2 * config.head_window * (config.head_window + 1)
        self.compress = nn.Sequential(
            nn.Linear(width, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, width // count, bias=False),
        )
        self.combine = nn.Sequential(
            nn.Linear(count * (width // count), 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width, bias=False),
        )
        # Blocks of its own, then an output for the semantic and one for the detail code.
        blocks = (HeadBlock(config, i, plain=True) for i in range(config.head_layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, config.rms_norm_eps)
        for name, size in (("semantic", config.coarse_vocab_size), ("detail", config.vocab_size)):
            layers = nn.Linear(width, 2 * width), nn.GELU(), Output(2 * width, size)
            if not config.head_mlp:  # the output alone, under the same name
                layers = nn.Identity(), nn.Identity(), Output(width, size)
            self.add_module(name, nn.Sequential(*layers))

    def run(self, x: Tensor, start: int, cache: Cache | None) -> Tensor:
        """Blocks and norm on tokens start.. of the three, x (B, n, D)."""
        count = x.shape[1]
        # The first token has no rotation at all (q = k = 0), the other two an angle of zero.
        cos = (torch.arange(start, start + count, device=x.device) > 0).float().unsqueeze(-1)
        mask = torch.full((count, start + count), -torch.inf, dtype=x.dtype, device=x.device)
        mask = mask.triu(start + 1)
        for block in self.blocks:
            x = block(x, mask, cos, torch.zeros_like(cos), cache)
        return self.norm(x)

    def teacher_forced(self, hidden, labels, tokens, embedding, conditioned) -> dict[str, Tensor]:
        known = tokens if labels is None else labels  # (B, T, 2)
        # The window reaches back to the first token, so a call that goes on from a cache has none.
        if known is None or not conditioned:
            return {}
        # The last prefix position predicts token 0, so hidden states are shifted by P - 1.
        first, count = self.config.prefix_length - 1, known.shape[1]
        hidden = hidden[:, first : first + count]  # (B, T, D)
        cells = torch.arange(count, device=hidden.device)
        index = neighbors(cells, self.config.grid_size, self.config.head_window)  # (T, 12)
        around = self.compress(F.pad(hidden, (0, 0, 0, 1)))[:, index]  # index -1 is the zero row
        local = self.combine(around.flatten(-2))  # (B, T, D)
        # Where the loss ignores a position, any code may be given.
        given = embedding.semantic(known[..., 0].clamp_min(0))
        three = [part.to(hidden.device) for part in (local, hidden, given)]
        x = torch.stack(three, dim=2)  # (B, T, 3, D)
        # Every position is a short sequence of its own.
        x = self.run(x.flatten(0, 1), 0, None).unflatten(0, (-1, count))
        semantic, detail = self.semantic(x[:, :, 1]).float(), self.detail(x[:, :, 2]).float()
        output = {"semantic_logits": semantic, "detail_logits": detail}
        if labels is not None:
            labels = labels.to(semantic.device)
            coarse = F.cross_entropy(semantic.flatten(0, 1), labels[..., 0].flatten())
            fine = F.cross_entropy(detail.flatten(0, 1), labels[..., 1].flatten())
            output["loss"] = self.config.semantic_loss_weight * coarse + fine
        return output

    def stage_logits(self, hidden, step, chosen: Tensor | None, cache, embedding) -> Tensor:
        one = not isinstance(step, slice)
        cells = slice(step, step + 1) if one else step
        index = neighbor_table(self.config.grid_size, self.config.head_window, hidden.device)
        index = index[cells]  # (n, 12)
        # The third token; the first two are in the cache.
        x = None
        if chosen is not None:
            x = embedding.semantic(chosen.unsqueeze(1) if one else chosen).flatten(0, 1)  # (B n, D)
        # An optimized model has one call for a stage, where its shapes fit.
        compiled = getattr(self, "step", None)
        if compiled is not None and compiled.fits(hidden, len(index), x, cache):
            logits = compiled(hidden, index, cells.start, x, cache)  # (B, n, V)
            return logits.squeeze(1) if one else logits
        # Every position is a short sequence of its own, as in `teacher_forced`.
        if x is not None:
            x, predict = self.run(x.unsqueeze(1), 2, cache), self.detail
        else:
            # The same sums for these cells, from the states kept so far; both first tokens go in
            # together.
            around = hidden[:, index] * (index >= 0).unsqueeze(-1)  # (B, n, 12, D)
            local = self.combine(self.compress(around).flatten(-2))  # (B, n, D)
            x = torch.stack([local.to(hidden.device), hidden[:, cells]], dim=2)  # (B, n, 2, D)
            x, predict = self.run(x.flatten(0, 1), 0, cache), self.semantic
        logits = predict(x[:, -1]).float().unflatten(0, (len(hidden), -1))  # (B, n, V)
        return logits.squeeze(1) if one else logits
