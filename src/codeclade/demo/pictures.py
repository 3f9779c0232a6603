"""Pictures of pictures: enlarged pixels, contact sheets, token grids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw

ACCENT = (214, 72, 132)  # stands out from photographs, light and dark
GAP = 2


def enlarge(image: Image.Image, at_least: int = 384, smooth: bool = True) -> Image.Image:
    """The image a whole number of times as large, about `at_least` pixels wide if it is smaller."""
    factor = max(1, round(at_least / image.width))
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return image.resize((image.width * factor, image.height * factor), way)


def same(image: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures are one; a browser's canvas may round colors."""
    if image.size != other.size:
        return False
    # As signed numbers: a difference of bytes would wrap around.
    gap = np.asarray(image).astype(int) - np.asarray(other)
    return bool(np.abs(gap).mean() < 1)


def square(image: Image.Image, side: int) -> Image.Image:
    """Center crop, resized to `side` x `side` pixels."""
    left, top, short = square_box(image.size)
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.LANCZOS, box)


def square_box(size: tuple[int, int]) -> tuple[int, int, int]:
    """Left, top and side of the largest centered square."""
    short = min(size)
    return (size[0] - short) // 2, (size[1] - short) // 2, short


def upright_size(path: Path, formats: Sequence[str]) -> tuple[int, int]:
    """Width and height of an image file as it is shown, from its header alone."""
    try:
        with Image.open(path, formats=formats) as image:
            # That of PNG files reads all of the file, for the few with an orientation at its end.
            turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except Exception:
        raise ValueError(f"the file is no image of type {', '.join(formats)}.") from None


def sheet(patches: Sequence[Image.Image], columns: int, rows: int, cell: int = 40) -> Image.Image:
    """Patches in rows on a transparent ground."""
    picture = Image.new("RGBA", (columns * (cell + GAP) - GAP, rows * (cell + GAP) - GAP))
    for i, patch in enumerate(patches):
        place = (i % columns) * (cell + GAP), (i // columns) * (cell + GAP)
        picture.paste(patch.resize((cell, cell), Image.Resampling.NEAREST), place)
    return picture


def marked(image: Image.Image, cells: np.ndarray, shade: bool = True) -> Image.Image:
    """The image enlarged, with its token grid and the `cells` (G, G) that are true tinted."""
    # Drawn on a layer of its own, for ImageDraw replaces colors instead of blending them.
    picture = enlarge(image)
    step = picture.width / len(cells)
    veil = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(veil)
    for i in range(1, len(cells)):
        at = round(i * step)
        pen.line([(at, 0), (at, picture.height)], fill=(255, 255, 255, 60))
        pen.line([(0, at), (picture.width, at)], fill=(255, 255, 255, 60))
    for row, column in np.argwhere(cells):
        corners = [round(column * step), round(row * step)]
        corners += [round((column + 1) * step) - 1, round((row + 1) * step) - 1]
        pen.rectangle(corners, fill=(*ACCENT, 130) if shade else None, outline=ACCENT, width=2)
    return Image.alpha_composite(picture.convert("RGBA"), veil).convert("RGB")
