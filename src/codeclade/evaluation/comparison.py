"""One partition of a codebook beside other methods at several K, measured.

Without a tokenizer and photographs only the codebook is measured.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoints.cluster_maps import cluster_rows, cut_tree
from ..checkpoints.library_tokenizers import LibraryTokenizer
from ..components.cluster_map import ClusterMap
from ..components.vq_model import VQModel
from ..data.codes import Codes
from ..data.extras import install_command
from ..metrics.clusters import (
    cluster_entropy,
    cophenetic_correlation,
    in_cluster_distance,
    random_like,
    size_spread,
)
from ..metrics.features import feature_network
from ..metrics.image_quality import psnr
from .replacement import MeasuredImages, decode_all, encode_all, image_distances, replace_codes

OTHERS = ("masc", "kmeans", "balanced", "random")  # what every report compares
SHEET = 8  # images on the sheet
DRAWS = 4  # random draws of members that the replacement test averages
TREES = ("masc", "dcpe")  # the same tree
ENOUGH = 2**28  # N * K up to which k-means is worth waiting for
ONE_START = 2**24  # N * K from which one start of k-means must do


Tokenizer = VQModel | LibraryTokenizer


@dataclass(frozen=True)
class Settings:
    """What is compared, and on what images and codes."""

    source: str
    method: str
    table: str | None = None  # which codebook of the source
    normalized: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # the method's own settings
    counts: list[int] | None = None  # K to compare at; None for `cluster_counts`
    images: str | None = None  # folder of photographs
    num_images: int = 64
    codes: str | None = None  # folder of code shards
    seed: int = 0


@dataclass
class Partition:
    """One method at one K, and what was measured of it."""

    method: str
    clusters: int
    labels: np.ndarray
    numbers: dict[str, float] = field(default_factory=dict)
    images: Tensor | None = None  # the sheet's images after replacement
    image_psnr: Tensor | None = None  # (B,) of every image to its photograph, mean over draws


@dataclass
class Comparison:
    """All that a report shows."""

    settings: Settings
    clusters: int  # K of the map in question
    rows: np.ndarray  # (N, d) what was clustered
    tree: tuple[np.ndarray, np.ndarray]  # children and heights of average linkage of the rows
    partitions: list[Partition] = field(default_factory=list)
    level: int | None = None  # which of the ids is clustered where the tokenizer makes pairs
    cophenetic: float | None = None
    tokens: str = ""  # where the code frequencies come from
    photographs: Tensor | None = None  # the sheet's
    reconstructions: Tensor | None = None
    reconstruction_numbers: dict[str, float] = field(default_factory=dict)
    image_count: int = 0
    starts: int = 0  # of k-means, whose best one is kept
    notes: list[str] = field(default_factory=list)

    def at(self, clusters: int) -> list[Partition]:
        """The partitions at one K."""
        return [part for part in self.partitions if part.clusters == clusters]


def cluster_counts(codes: int, clusters: int) -> list[int]:
    """The K a report compares unless told: the one asked for and N/2, N/4, N/8."""
    return sorted({clusters, *(max(1, codes // part) for part in (2, 4, 8))}, reverse=True)


def compare(
    settings: Settings,
    cluster_map: ClusterMap,
    codebook: Tensor,
    rows: np.ndarray,
    vq_model: Tokenizer | None = None,
    pixels: Tensor | None = None,
    shards: Codes | None = None,
) -> Comparison:
    """Measure a cluster map beside every other method at several K.

    Args:
        codebook: (N, d) stored rows.
        rows: (N, d) what was clustered: stored or normalized rows.
        vq_model, pixels: tokenizer and photographs (B, 3, S, S) of the replacement test.
        shards: codes to take frequencies from; None for those of the photographs.
    """
    # One tree serves all cuts; a map without one (k-means, say) gets that of average linkage.
    children, heights = cluster_map.merges.numpy(), cluster_map.heights.double().numpy()
    if len(children) < len(rows) - 1:
        found = cluster_rows(rows, "masc", 1)
        children, heights = found.children_, found.distances_
    result = Comparison(settings, cluster_map.num_clusters, rows, (children, heights))
    if any(_makes_pairs(part) for part in (vq_model, shards)):
        result.level = int(not str(settings.table).endswith(("semantic", "embedding.weight")))

    # Partitions, measured by the codebook alone.
    counts = {result.clusters, *(settings.counts or cluster_counts(len(rows), result.clusters))}
    unit = unit_rows(rows)
    with tqdm(desc="clustering", unit="partition") as bar:
        for count in sorted(counts, reverse=True):
            result.partitions += _partitions(result, cluster_map.mapping.numpy(), count, bar)
    for part in (bar := tqdm(result.partitions, desc="distances", unit="partition")):
        say(bar, part.method, part.clusters)
        part.numbers |= size_spread(part.labels)
        part.numbers |= _distances(rows, part.labels, settings.seed)
        if unit is not None:
            found = _distances(unit, part.labels, settings.seed)
            part.numbers["unit_against_random"] = found["against_random"]
    if len(rows) > 2:
        result.cophenetic = cophenetic_correlation(rows, children, heights, settings.seed)

    # Measured by photographs and by how often codes occur, where there are any.
    ids = None
    if vq_model is not None and pixels is not None:
        ids = encode_all(vq_model, pixels)
        _replacement_test(result, codebook, vq_model, pixels, ids)
        ids = ids if result.level is None else ids[..., result.level]
    _entropies(result, ids, shards)
    return result


def unit_rows(rows: np.ndarray) -> np.ndarray | None:
    """The rows scaled to unit length; None where they have it, or one of them is zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return None if not lengths.all() or np.allclose(lengths, 1, rtol=1e-3) else rows / lengths


def say(bar: tqdm, method: str, count: int) -> None:
    """Show at a progress bar what is under way."""
    bar.set_postfix_str(f"{method}, K = {count:,}")


def _distances(rows: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Distance inside clusters, and its share of that in random clusters of the same sizes."""
    inside = in_cluster_distance(rows, labels, seed)
    outside = in_cluster_distance(rows, random_like(labels, seed), seed)
    share = inside / outside if outside else float("nan")  # all codes are alone
    return {"distance": inside, "against_random": share}


def _makes_pairs(part: Tokenizer | Codes | None) -> bool:
    """Whether a tokenizer, or what made shards, has a detail codebook."""
    if isinstance(part, Codes):
        return bool(part.header.get("detail_codebook_size"))
    return part is not None and part.detail_codebook_size is not None


def _entropies(result: Comparison, ids: Tensor | None, shards: Codes | None) -> None:
    # Codes of shards are far more than those of some photographs.
    if shards is not None:
        counts = shards.counts()[result.level or 0].numpy()
        split, images = shards.header["split"], len(shards)
        result.tokens = f"the {counts.sum():,} codes of {images:,} images ({split} shards)"
    elif ids is not None:
        counts = ids.flatten().bincount(minlength=len(result.rows)).numpy()
        result.tokens = f"the {ids.numel():,} codes of {len(ids):,} photographs"
    else:
        return
    if len(counts) != len(result.rows):
        raise ValueError(
            f"{result.settings.codes} holds codes of a codebook of {len(counts)} rows, but "
            f"{len(result.rows)} rows were clustered."
        )
    for part in result.partitions:
        part.numbers["entropy"] = cluster_entropy(counts, part.labels)


def _partitions(result: Comparison, labels: np.ndarray, count: int, bar: tqdm) -> list[Partition]:
    """Every method at one K; the tree is cut and the given labels are used, not made again."""
    settings, parts = result.settings, []
    for name in dict.fromkeys((result.settings.method, *OTHERS)):
        if name == "masc" and settings.method == "dcpe":
            continue  # the same partition
        say(bar, name, count)
        # Labels that are there, a cut of the tree, or a method's own run where that is affordable.
        if name == settings.method and count == result.clusters:
            found = labels
        elif name in TREES:
            found = cut_tree(result.tree[0], count)
        elif name in ("kmeans", "balanced") and len(result.rows) * count > ENOUGH:
            result.notes.append(f"{name} was left out at K = {count:,}: it would take hours.")
            continue
        elif name == "balanced" and len(result.rows) % count:
            result.notes.append(f"balanced has no K = {count:,}: it does not divide N.")
            continue
        elif name == "balanced" and not result.rows.any(axis=1).all():
            result.notes.append("balanced was left out: it needs rows of unit length, one is zero.")
            continue
        else:
            # The method of the map keeps its own settings, the others have their defaults.
            options = settings.options if name == settings.method else {}
            if name == "kmeans" and not options and len(result.rows) * count > ONE_START:
                options = {"n_init": 1}
                result.notes.append(f"kmeans has one start at K = {count:,}: more would take long.")
            fitted = cluster_rows(result.rows, name, count, settings.seed, options)
            found = fitted.labels_
            if name == "kmeans":
                result.starts = max(result.starts, fitted.n_init)
        parts.append(Partition(name, count, np.asarray(found)))
        bar.update()
    return parts


def _replacement_test(
    result: Comparison, codebook: Tensor, vq_model: Tokenizer, pixels: Tensor, ids: Tensor
) -> None:
    settings, features = result.settings, feature_network()
    if features is None:
        result.notes.append(f"Feature distances were skipped; {install_command('eval')}.")
    # Photographs and their reconstructions are measured once, for all partitions.
    photographs = MeasuredImages.of(features, pixels)
    reconstructions = MeasuredImages.of(features, decode_all(vq_model, ids))
    result.image_count = len(pixels)
    result.photographs = pixels[:SHEET]
    result.reconstructions = reconstructions.pixels[:SHEET]
    result.reconstruction_numbers = image_distances(reconstructions, photographs)
    for part in (bar := tqdm(result.partitions, desc="replacement", unit="partition")):
        say(bar, part.method, part.clusters)
        cluster_map = ClusterMap.from_labels(part.labels, codebook, method=part.method)
        part.image_psnr = torch.zeros(len(pixels))
        # Codes are replaced by random members of their clusters, several times.
        for draw in range(DRAWS):
            drawn = replace_codes(ids, cluster_map, settings.seed + draw, result.level)
            images = MeasuredImages.of(features, decode_all(vq_model, drawn))
            part.images = images.pixels[:SHEET] if draw == 0 else part.images
            part.image_psnr += psnr(images.pixels, photographs.pixels).cpu() / DRAWS
            references = {"photograph": photographs, "reconstruction": reconstructions}
            for target, reference in references.items():
                for name, value in image_distances(images, reference).items():
                    key = f"{target}_{name}"
                    part.numbers[key] = part.numbers.get(key, 0.0) + value / DRAWS

    # Which of two methods is nearer differs from image to image: the error is of the differences.
    for part in result.partitions:
        gaps = part.image_psnr - result.at(part.clusters)[0].image_psnr
        part.numbers["psnr_gap"] = gaps.mean().item()
        spread = gaps.std().item() if len(gaps) > 1 else float("nan")
        part.numbers["psnr_gap_error"] = spread / len(gaps) ** 0.5
