"""Pixels in [-1, 1], as models read and write them, to 8-bit images and back.

Shapes: any leading dimensions; one image is (3, H, W).
"""

import torch
from PIL import Image
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images (..., 3, H, W) as float32 pixels in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) as uint8 images, rounded; what is outside [-1, 1] is clamped."""
    return (pixels.float() * 127.5 + 127.5).round().clamp(0, 255).byte()


def to_image(pixels: Tensor) -> Image.Image:
    """One image (3, H, W), pixels in [-1, 1] or uint8, as a PIL image."""
    image = pixels if pixels.dtype == torch.uint8 else to_uint8(pixels)
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
