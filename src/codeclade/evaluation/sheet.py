"""Contact sheets: rows of images under a class name, for people who would rather look."""

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK = "white", "black"


def contact_sheet(
    rows: list[tuple[str, list[Image.Image]]], scale: int = 1, gap: int = 4
) -> Image.Image:
    """One picture of all images, a row a caption.

    Args:
        rows: captions and their images, all of one size.
        scale: whole-number enlargement of every image, pixels kept sharp.
        gap: pixels between images.
    """
    first = rows[0][1][0]
    side = first.width * scale
    font = ImageFont.load_default(size=max(10, side // 8))
    margin = int(max(font.getlength(name) for name, _ in rows)) + 3 * gap
    columns = max(len(images) for _, images in rows)
    size = margin + columns * (side + gap), len(rows) * (side + gap) + gap
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows):
        top = gap + row * (side + gap)
        draw.text((margin - 2 * gap, top + side // 2), name, INK, font, anchor="rm")
        for column, image in enumerate(images):
            enlarged = image.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (margin + column * (side + gap), top))
    return sheet
