"""How well a tokenizer reconstructs photographs, and how it uses its codebook.

Images are compared as 8-bit files would hold them. PSNR and SSIM are given in two conventions, as
published tables use both; see metrics.image_quality. LPIPS only with its real weights.

Shapes: B images of S pixels a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..components.vq_model import VQModel
from ..data.images import plain_batches
from ..data.pixels import to_pixels
from ..metrics.codebook import CodebookUse, codebook_use, count_ids
from ..metrics.image_quality import QUALITIES
from ..metrics.lpips import Lpips
from ..metrics.networks import FeatureNetwork
from .feature_cache import PhotographSets
from .feature_sets import FeatureSet
from .reference import Fingerprint, Photographs
from .resize import eight_bit


@dataclass
class Reconstruction:
    """What was measured of photographs and their reconstructions."""

    per_image: dict[str, Tensor]  # (n,) by name of the metric
    use: CodebookUse
    detail_use: CodebookUse | None  # of a tokenizer with a second codebook
    fingerprint: str  # of the photographs as compared
    halves: list[FeatureSet] = field(default_factory=list)  # of the photographs
    rebuilt: FeatureSet | None = None


@torch.no_grad()
def reconstruct(
    vq_model: VQModel,
    photographs: Photographs,
    size: int,
    batch_size: int,
    network: FeatureNetwork | None = None,
    lpips: Lpips | None = None,
    classes: list[int] | None = None,
) -> Reconstruction:
    """Encode and decode all photographs once and measure them, a batch in memory at a time.

    Args:
        size: side at which both are compared.
        network: for distances of sets; None measures none.
        lpips: with real weights; None measures none.
        classes: see `FeatureSet`.
    """
    # What is collected on the way: values of every image, uses of every code, features.
    found: dict[str, list[Tensor]] = {}
    counts = torch.zeros(vq_model.codebook_size, dtype=torch.int64)
    details = torch.zeros(vq_model.detail_codebook_size or 0, dtype=torch.int64)
    fingerprint = Fingerprint()
    sets = PhotographSets(network, photographs, size, classes) if network else None
    rebuilt = FeatureSet(network, classes) if network else None
    bar = tqdm(total=len(photographs.images), desc="reconstruct", unit="image")
    for images, labels in plain_batches(photographs.images, batch_size):
        pixels = to_pixels(images)
        ids = vq_model.encode(pixels.to(vq_model.device, vq_model.dtype)).ids
        # Both are rounded to 8 bits, as a saved picture is.
        decoded = to_pixels(eight_bit(vq_model.decode(ids), size))
        if size != pixels.shape[-1]:
            images = eight_bit(pixels, size)
            pixels = to_pixels(images)
        for name, values in _qualities(decoded, pixels, lpips):
            found.setdefault(name, []).append(values.double().cpu())

        # Codes that occur; a tokenizer with two codebooks gives pairs.
        pairs = ids.ndim == 4
        counts += count_ids((ids[..., 0] if pairs else ids).cpu(), len(counts))
        if pairs:
            details += count_ids(ids[..., 1].cpu(), len(details))

        # Photographs go to two halves, whose distance is the floor of all distances.
        fingerprint.add(images)
        if sets is not None:
            sets.add(images, labels)
        if rebuilt is not None:
            rebuilt.add(decoded, labels)
        bar.update(len(images))
    bar.close()
    return Reconstruction(
        {name: torch.cat(parts) for name, parts in found.items()},
        codebook_use(counts),
        codebook_use(details) if len(details) else None,
        str(fingerprint),
        sets.finish(batch_size) if sets else [],
        rebuilt,
    )


def _qualities(
    decoded: Tensor, pixels: Tensor, lpips: Lpips | None
) -> Iterator[tuple[str, Tensor]]:
    """Every measure (B,) of reconstructions against photographs, by its name."""
    for name, quality in QUALITIES.items():
        yield name, quality.function(decoded, pixels)
    if lpips is not None:
        device = next(lpips.parameters()).device
        yield f"{lpips.name} of reconstructions", lpips(decoded.to(device), pixels.to(device))
