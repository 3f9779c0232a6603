"""Embedding priors: similar codes share a part of their embeddings, from the first step on.

Ours. A table over N codes (the input embedding E, or the output layer W) is trained as a sum

    tree      E_i = E'_i + sum_l E^(l)[c_l(i)]        c_l: cluster of i in the l-th cut of the tree
    codebook  E_i = E'_i + A z_i                      z_i: vector of code i, of length sqrt(d)
    both      E_i = E'_i + sum_l E^(l)[c_l(i)] + A z_i
    context   as both, and z_i is longer by what stands beside code i in training images, see
              context_vectors.py

so that a rare code learns from the common ones around it. A finished model is `folded`: the sums
become ordinary tables, and nothing of the prior is left in the checkpoint: a plain LlamaGen model
with an exact likelihood over ids, at no cost when images are sampled.

Controls tell what the tree and the vectors add to the mere sum: "random_tree" has the same cluster
sizes with codes shuffled, "random_codebook" random vectors of the same width; "random_context" is
"context" with what stands beside a code shuffled among the codes.

Shapes: N codes (or clusters), d code width, D model width, L cuts.
"""

import functools
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..clustering import average_linkage, cut
from ..components.cluster_map import ClusterMap
from ..components.schemes import scheme_class
from ..components.transformer import CodecladeTransformer
from ..components.vq_model import VQModel
from ..data.codes import Codes
from .context_vectors import CONTEXTS, TOKENS_A_CODE, context_vectors
from .losses import tree_loss_weights

CONTROLS = ("random_tree", "random_codebook", "random_context")
PRIORS = ("none", "tree", "codebook", "both", "context", *CONTROLS)
CUTS = (2, 8, 32, 128)  # codes a cluster, on average, in the cuts of the tree


class EmbeddingPrior(nn.Module):
    """What is added to a table (N, D): rows of coarser tables, and a linear map of the codes.

    Args:
        cuts: (L, N) cluster of every code in every cut; L may be 0.
        vectors: (N, d), or (N, 0) for none.
        kept: the vectors are part of checkpoints, for they cannot be made again to the last bit
            everywhere.
        width: D.
        std: of the coarser tables at the start, 0 for an output layer; the map starts at zero.
    """

    def __init__(self, cuts: Tensor, vectors: Tensor, width: int, std: float, kept: bool = False):
        super().__init__()
        self.register_buffer("cuts", cuts, persistent=False)
        self.register_buffer("vectors", vectors, persistent=kept)
        sizes = [int(row.max()) + 1 for row in cuts]
        self.tables = nn.ParameterList(torch.randn(size, width) * std for size in sizes)
        # None, not an empty matrix: checkpoints take all empty tensors for one.
        columns = vectors.shape[1]
        self.projection = nn.Parameter(torch.zeros(width, columns)) if columns else None

    def forward(self, table: Tensor) -> Tensor:
        total = table  # (N, D)
        if self.projection is not None:
            total = total + self.vectors.to(table) @ self.projection.mT
        for cluster_of, coarse in zip(self.cuts, self.tables, strict=True):
            total = total + coarse[cluster_of]
        return total


def add_embedding_priors(
    model: CodecladeTransformer,
    kind: str,
    vq_model: VQModel,
    cluster_map: ClusterMap | None,
    seed: int = 0,
    fresh: bool = True,
    contexts: dict[str, Tensor] | None = None,
) -> None:
    """Make every table of a model over codes or clusters a sum, in place.

    Args:
        kind: one of PRIORS; "none" changes nothing.
        cluster_map: of the schemes that have clusters.
        seed: of the random controls.
        fresh: weights were just drawn; False: the sum starts as the function that the model is.
        contexts: what `code_contexts` gives, which "context" needs.

    Raises:
        ValueError: an unknown kind, or "context" or its control without contexts.
    """
    if kind not in PRIORS:
        raise ValueError(f"embedding_prior is {kind!r}; it must be one of {', '.join(PRIORS)}.")
    if kind == "none":
        return
    with_contexts = kind.endswith("context")
    if with_contexts and contexts is None:
        raise ValueError(f"embedding_prior is {kind!r}, which needs the codes of training images.")
    std = model.config.initializer_range
    for what, rows, names in _tables(model, vq_model, cluster_map):
        # What the entries of these tables have in common, from the exact tree of their vectors.
        cuts, vectors = tree_cuts(rows), unit_vectors(rows)
        random = torch.Generator().manual_seed(seed)
        if kind == "random_tree":
            cuts = cuts[:, torch.randperm(len(rows), generator=random)]
        if kind == "random_codebook":
            vectors = unit_vectors(torch.randn(rows.shape, generator=random).numpy())
        if with_contexts and contexts is not None:
            order = torch.arange(len(rows))
            if kind == "random_context":
                order = torch.randperm(len(rows), generator=random)
            vectors = torch.cat([vectors, contexts[what][order]], 1)
        if kind.endswith("tree"):
            vectors = vectors[:, :0]
        elif kind.endswith("codebook"):
            cuts = cuts[:0]

        for name in names:
            module = model.get_submodule(name)
            width = module.weight.shape[1]
            is_input = float(module.weight.detach().abs().max()) > 0  # output layers start at zero
            # All summands alike, and together as large as the table alone would be.
            share = (1 + len(cuts)) ** -0.5 if fresh else 1.0
            with torch.no_grad():
                module.weight.mul_(share)
            first = std * share if fresh and is_input else 0
            prior = EmbeddingPrior(cuts, vectors, width, first, kept=with_contexts)
            parametrize.register_parametrization(module, "weight", prior.to(module.weight.device))


def folded(model: nn.Module) -> nn.Module:
    """The model with its sums carried out: ordinary tables, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def tree_cuts(rows: np.ndarray, counts: list[int] | None = None) -> Tensor:
    """Clusters (L, N) of rows (N, d) in cuts of their average-linkage tree, finest first.

    Args:
        rows: what the tree joins.
        counts: clusters of every cut; None: `cut_counts`.
    """
    counts = cut_counts(len(rows)) if counts is None else counts
    if not counts:
        return torch.empty(0, len(rows), dtype=torch.int64)
    tree = _tree(rows.tobytes(), rows.dtype.str, rows.shape)
    return torch.stack([torch.from_numpy(cut(tree, clusters)) for clusters in counts])


def weighted_cuts(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """`tree_cuts` (L, N) and their weights (L,) in the tree loss.

    Raises:
        ValueError: rows too few to be cut.
    """
    counts = cut_counts(len(rows))
    if not counts:
        raise ValueError(
            f"tree_loss_weight needs {3 * CUTS[0]} codes or clusters at least, not {len(rows)}."
        )
    heights = _tree(rows.tobytes(), rows.dtype.str, rows.shape)[:, 2].copy()
    return tree_cuts(rows), tree_loss_weights(torch.from_numpy(heights), counts)


def cut_counts(size: int) -> list[int]:
    """Clusters of the cuts of a tree over `size` rows, three at least."""
    return [size // members for members in CUTS if size // members > 2]


@functools.lru_cache(maxsize=4)
def _tree(content: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Linkage (N-1, 4) of rows; priors, noise and loss of one run ask for the same tree."""
    return average_linkage(np.frombuffer(content, dtype).reshape(shape))


def unit_vectors(rows: np.ndarray) -> Tensor:
    """Rows (N, d) scaled to length sqrt(d), float32, so that their entries have size one."""
    vectors = torch.from_numpy(np.ascontiguousarray(rows)).double()
    lengths = vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (vectors / lengths * vectors.shape[1] ** 0.5).float()


def code_vectors(vq_model: VQModel, cluster_map: ClusterMap | None) -> dict[str, np.ndarray]:
    """Vectors (n, d) of what rows of a generator's tables can stand for."""
    codes = vq_model.codebook.detach().double().cpu().numpy()
    vectors = {"ids": codes}
    if cluster_map is not None:
        vectors["clusters"] = cluster_centers(codes, cluster_map)
    if vq_model.detail_codebook_size is not None:
        vectors["details"] = vq_model.quantize.detail.detach().double().cpu().numpy()
    return vectors


def code_contexts(
    scheme: str, codes: Codes, vq_model: VQModel, cluster_map: ClusterMap | None
) -> dict[str, Tensor]:
    """Context vectors (n, D) of what rows of the tables of a scheme stand for.

    Args:
        codes: of training images; of many, a share is read that is spread evenly.
    """
    found, vectors = {}, code_vectors(vq_model, cluster_map)
    for what in scheme_class(scheme).tables:
        rows = vectors[what]
        # Neighbors count by their clusters: single ones are rare.
        contexts = torch.arange(len(rows))
        if len(rows) > CONTEXTS:
            contexts = tree_cuts(rows, [CONTEXTS])[0]
        tokens = TOKENS_A_CODE * len(rows)
        found[what] = context_vectors(_token_grids(codes, what, cluster_map, tokens), contexts)
    return found


def _token_grids(
    codes: Codes, what: str, cluster_map: ClusterMap | None, tokens: int
) -> Iterator[Tensor]:
    """Batches of grids (B, G, G) of "ids", "clusters" or "details": about `tokens` of them all."""
    grid = codes.header["grid_size"]
    share = max(1, len(codes) * grid**2 // tokens)
    for ids, _ in codes.first_views(1000, 0, share):
        if ids.dim() == 3:  # pairs of codes
            ids = ids[..., int(what == "details")]
        if what == "clusters":
            ids = cast(ClusterMap, cluster_map).mapping.cpu()[ids]
        yield ids.unflatten(1, (grid, grid))


def token_vectors(
    scheme: str, vq_model: VQModel, cluster_map: ClusterMap | None
) -> list[np.ndarray]:
    """Vectors (V, d) of what a token of a scheme holds: one table, two of a pair."""
    kind, vectors = scheme_class(scheme), code_vectors(vq_model, cluster_map)
    if kind.predicts_clusters:
        return [vectors["clusters"]]
    return [vectors["ids"], vectors["details"]] if kind.detail_codes else [vectors["ids"]]


def _tables(
    model: CodecladeTransformer, vq_model: VQModel, cluster_map: ClusterMap | None
) -> list[tuple[str, np.ndarray, tuple[str, ...]]]:
    """Every vocabulary of the model, its vectors, and the modules whose rows stand for them."""
    vectors = code_vectors(vq_model, cluster_map)
    return [(what, vectors[what], names) for what, names in model.scheme.tables.items()]


def cluster_centers(codes: np.ndarray, cluster_map: ClusterMap) -> np.ndarray:
    """Mean vector (K, d) of every cluster's codes (N, d)."""
    labels = cluster_map.mapping.cpu().numpy()
    sums = np.zeros((cluster_map.num_clusters, codes.shape[1]))
    np.add.at(sums, labels, codes)
    return sums / np.bincount(labels, minlength=len(sums))[:, None]
