"""Images at the size at which they are measured, as 8-bit files would hold them.

Shapes: B images of S pixels a side.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from ..data.images import LabeledImages, plain_batches
from ..data.pixels import to_pixels, to_uint8
from ..metrics.networks import resized


def resize_words(sampled: int, evaluated: int, plain: bool = False) -> str | None:
    """How images of one size become another, for protocols."""
    if sampled == evaluated:
        return None
    if plain:
        return "bicubic, not antialiased, before clamping and rounding to 8 bit"
    return "bicubic, antialiased, before rounding to 8 bit"


def eight_bit(pixels: Tensor, size: int, plain: bool = False) -> Tensor:
    """Pixels (B, 3, S, S) in [-1, 1] as uint8 images (B, 3, size, size) on the CPU.

    Args:
        plain: without antialiasing, as LlamaGen's sample_c2i_ddp.py resizes what its decoder gives,
            of any size; what it published was measured so.
    """
    pixels = pixels.float()
    if pixels.shape[-1] != size and plain:
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic")
    elif pixels.shape[-1] != size:
        pixels = resized(pixels, size)
    return to_uint8(pixels).cpu()


def sized_batches(
    images: LabeledImages, size: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All photographs once, in order: (images (B, 3, size, size) uint8, labels (B,))."""
    for batch, labels in plain_batches(images, batch_size):
        sized = batch if batch.shape[-1] == size else eight_bit(to_pixels(batch), size)
        yield sized, labels
