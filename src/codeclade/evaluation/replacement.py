"""The semantic replacement test (MASC, arXiv 2510.04220): every code of an image is replaced by a
random member of its cluster and the image decoded. The less it changes, the better the clusters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..components.cluster_map import ClusterMap
from ..components.vq_model import VQModel
from ..metrics.features import feature_distance
from ..metrics.image_quality import psnr, ssim


def replace_codes(
    ids: Tensor, cluster_map: ClusterMap, seed: int = 0, table: int | None = None
) -> Tensor:
    """Every id replaced by a uniform random member of its cluster (itself included).

    Args:
        ids: (B, G, G), or pairs (B, G, G, 2) of a tokenizer with two codebooks, of which
        table: 0 or 1 is the clustered one; the other keeps its ids.
    """
    generator = torch.Generator().manual_seed(seed)
    if table is None:
        return cluster_map.draw_members(cluster_map.to_clusters(ids), generator)
    ids = ids.clone()
    ids[..., table] = replace_codes(ids[..., table], cluster_map, seed)
    return ids


@torch.no_grad()
def encode_all(vq_model: VQModel, pixels: Tensor, batch_size: int = 16) -> Tensor:
    """Ids (B, G, G) or (B, G, G, 2) of pixels (B, 3, S, S)."""
    return torch.cat([vq_model.encode(part).ids for part in pixels.split(batch_size)])


@torch.no_grad()
def decode_all(vq_model: VQModel, ids: Tensor, batch_size: int = 16) -> Tensor:
    """Pixels (B, 3, S, S) of ids from `encode_all`."""
    return torch.cat([vq_model.decode(part) for part in ids.split(batch_size)]).clamp(-1, 1)


@dataclass
class MeasuredImages:
    """Images and, given a feature network, their feature maps, which are computed once."""

    pixels: Tensor
    maps: list[list[Tensor]]  # a batch of images each

    @classmethod
    @torch.no_grad()
    def of(cls, features: nn.Module | None, pixels: Tensor) -> "MeasuredImages":
        """Pixels (B, 3, S, S) and what a feature network, if any, makes of them."""
        batches = [] if features is None else pixels.split(16)
        return cls(pixels, [features(part) for part in batches])


def image_distances(images: MeasuredImages, reference: MeasuredImages) -> dict[str, float]:
    """Mean PSNR, SSIM and, where there are feature maps, feature distance to a reference."""
    values = {
        "psnr": psnr(images.pixels, reference.pixels).mean().item(),
        "ssim": ssim(images.pixels, reference.pixels).mean().item(),
    }
    if images.maps:
        total = sum(
            len(a[0]) * feature_distance(a, b).item()
            for a, b in zip(images.maps, reference.maps, strict=True)
        )
        values["features"] = total / len(images.pixels)
    return values
