"""Contact sheets: many images in one picture."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .pixels import to_image, to_uint8

BACKGROUND, INK = "white", "black"
ALL, SOME = 12, 8  # classes that fit on a sheet, and how many are shown of more


def image_grid(rows: Sequence[Tensor]) -> Image.Image:
    """Images side by side, edge to edge; a shorter row ends in black.

    Args:
        rows: (n, 3, H, W) pixels in [-1, 1] or uint8, a row of the picture each.
    """
    lines = [row if row.dtype == torch.uint8 else to_uint8(row) for row in rows]
    lines = [torch.cat(list(line.cpu()), dim=2) for line in lines]
    width = max(line.shape[2] for line in lines)
    return to_image(torch.cat([F.pad(line, (0, width - line.shape[2])) for line in lines], dim=1))


def shown_classes(known: int) -> list[int]:
    """Which of `known` classes a sheet shows: all of a few, else eight, evenly spread."""
    return list(range(known)) if known <= ALL else list(range(0, known, known // SOME))[:SOME]


def contact_sheet(
    rows: list[tuple[str, list[Image.Image]]], scale: int = 1, gap: int = 4
) -> Image.Image:
    """One picture of all images, a row a caption.

    Args:
        rows: captions and their images, all of one size.
        scale: whole-number enlargement of every image, pixels kept sharp.
        gap: pixels between images.
    """
    # Layout: a column of captions as wide as the longest, then the images.
    first = rows[0][1][0]
    side = first.width * scale
    font = ImageFont.load_default(size=max(10, side // 8))
    margin = int(max(font.getlength(name) for name, _ in rows)) + 3 * gap
    columns = max(len(images) for _, images in rows)
    size = margin + columns * (side + gap), len(rows) * (side + gap) + gap
    # Pictures, each beside the one before.
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows):
        top = gap + row * (side + gap)
        draw.text((margin - 2 * gap, top + side // 2), name, INK, font, anchor="rm")
        for column, image in enumerate(images):
            enlarged = image.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (margin + column * (side + gap), top))
    return sheet
