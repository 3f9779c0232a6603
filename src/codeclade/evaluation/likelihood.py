"""Likelihood of a generator on held-out code shards, in nats: one axis for every scheme.

A model of ids gives log p(i) itself. A model of clusters gives log p(c), and its pipeline draws a
uniform member, so log p(i) = log p(c(i)) - ln |c(i)|; with a refiner it is log p(c(i)) + log p(i |
all clusters), at its temperature of 1 without guidance. From log p(i) follows the likelihood of any
coarser partition, by adding up the members: so models of ids, of clusters, and of both are compared
on ids and on the clusters of the same cuts. Pairs of a semantic and a detail code (IAR2) belong to
another tokenizer: their nats per position are comparable with those of a tokenizer of equal bits.

Shapes: B batch, T tokens, N ids, K clusters, L cuts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..components.cluster_map import ClusterMap
from ..components.heads import cluster_logsumexp
from ..components.refiner import Refiner, generator_states
from ..components.transformer import CodecladeTransformer
from ..data.codes import Codes

CUTS = (2, 4, 8, 16)  # codes a cluster, on average, of the cuts that are reported


@dataclass
class Likelihood:
    """Mean negative log-likelihoods in nats per position, with the spread over images."""

    images: int
    # "ids", "N/2", ..., with a refiner "refined"; of pairs "pairs", "semantic", "detail"
    nats: dict[str, float]
    standard_errors: dict[str, float]  # of these means, over images
    per_image: dict[str, Tensor]  # (images,) each, float64, of which these are the means


@torch.no_grad()
def likelihood(
    model: CodecladeTransformer,
    codes: Codes,
    cluster_map: ClusterMap | None = None,
    cuts: dict[str, Tensor] | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    refiner: Refiner | None = None,
) -> Likelihood:
    """Likelihood of the first view of every image.

    Args:
        cluster_map: of a model that predicts clusters.
        cuts: partitions (N,) by name whose likelihood is wanted too; see `tree_partitions`.
        batch_size: images at once; log p takes B T N numbers of 4 bytes, a few times.
        limit: images at most.
        refiner: of a model that predicts clusters: ids by the refiner are scored too.

    Raises:
        ValueError: no image.
    """
    rows: dict[str, list[Tensor]] = {}
    images = len(codes) if limit is None else min(limit, len(codes))
    if images < 1:
        raise ValueError("likelihood needs at least one image of codes.")
    # Dropout is off while the model is scored; its state comes back after.
    training = model.training
    model.eval()
    seen = 0
    for ids, labels in tqdm(codes.first_views(batch_size), "likelihood", unit="batch"):
        ids, labels = ids[: images - seen].to(model.device), labels[: images - seen]
        seen += len(ids)
        labels = labels.to(model.device)
        found = dict(_nats(model, ids, labels, cluster_map, cuts or {}))
        if refiner is not None:
            found["refined"] = found["ids"] + _refined(model, ids, labels, cluster_map, refiner)
        for name, values in found.items():
            rows.setdefault(name, []).append(values.double().mean(1).cpu())  # (B,)
        if seen == images:
            break
    model.train(training)

    # Images are the independent draws; positions of one image are not.
    per_image = {name: torch.cat(parts) for name, parts in rows.items()}
    return Likelihood(
        images,
        {name: values.mean().item() for name, values in per_image.items()},
        {
            name: (values.std() / len(values) ** 0.5).item()
            for name, values in per_image.items()
            if len(values) > 1
        },
        per_image,
    )


def _nats(
    model: CodecladeTransformer,
    ids: Tensor,
    labels: Tensor,
    cluster_map: ClusterMap | None,
    cuts: dict[str, Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Negative log-likelihoods (B, T) by name of ids (B, T) or pairs (B, T, 2)."""
    if ids.ndim == 3:
        output = model(ids[:, :-1], labels, labels=ids)
        semantic = _cross_entropy(output.semantic_logits, ids[..., 0])
        detail = _cross_entropy(output.detail_logits, ids[..., 1])
        yield from (("pairs", semantic + detail), ("semantic", semantic), ("detail", detail))
        return
    log_p = log_probabilities(model, ids, labels, cluster_map)
    yield "ids", -log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    for name, cluster_of in cuts.items():
        cluster_of = cluster_of.to(ids.device)
        scores = cluster_logsumexp(log_p, cluster_of, int(cluster_of.max()) + 1)
        yield name, -scores.gather(-1, cluster_of[ids].unsqueeze(-1)).squeeze(-1)


def _refined(
    model: CodecladeTransformer,
    ids: Tensor,
    labels: Tensor,
    cluster_map: ClusterMap,
    refiner: Refiner,
) -> Tensor:
    """What an id (B, T) costs by a refiner beyond what it costs as a uniform member."""
    mapping = cluster_map.mapping.to(ids.device)
    clusters = mapping[ids]
    context = None
    if refiner.config.context_dim:
        context = generator_states(model, clusters, class_labels=labels)
    given = labels if refiner.config.num_classes else None
    logits = refiner(clusters, given, context, mapping, return_dict=True).logits
    return _cross_entropy(logits, ids) - cluster_map.sizes.to(ids.device)[clusters].log()


def log_probabilities(
    model: CodecladeTransformer, ids: Tensor, labels: Tensor, cluster_map: ClusterMap | None
) -> Tensor:
    """log p (B, T, N) of every id at every position of ids (B, T), earlier ones given."""
    mapping = model.scheme.mapping(model, cluster_map)
    tokens = model.scheme.ids_to_tokens(ids, mapping)
    logits = model(tokens[:, :-1], labels).logits[:, -tokens.shape[1] :]
    log_p = logits.float().log_softmax(-1)  # (B, T, N or K)
    if not model.scheme.predicts_clusters:
        return log_p
    mapping = mapping.to(ids.device)
    sizes = cluster_map.sizes.to(ids.device)
    return (log_p - sizes.log())[..., mapping]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().movedim(-1, 1), targets, reduction="none")


def tree_partitions(cluster_map: ClusterMap) -> dict[str, Tensor]:
    """Partitions (N,) at N/2, N/4, N/8 and N/16 of a map that holds its tree, by name."""
    count = cluster_map.codebook_size
    wanted = {f"N/{size}": count // size for size in CUTS if count // size > 1}
    return {name: cluster_map.cut(clusters).mapping for name, clusters in wanted.items()}
