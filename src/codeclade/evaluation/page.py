"""A page of numbers, pictures and tables, written as one .html or one .png file."""

import base64
import html
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..data.atomic import new_file

ENDINGS = (".html", ".png")
INK, SOFT, LINE, PANEL = "#1f2933", "#5b6773", "#d9dee3", "#f4f6f8"
WIDTH, MARGIN = 2200, 110  # pixels of the .png page

STYLE = f"""
body {{ margin: 0; background: white; color: {INK};
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
main {{ max-width: 1100px; margin: 0 auto; padding: 40px 24px 64px; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }}
h2 {{ font-size: 20px; margin: 44px 0 4px; }}
p {{ margin: 0 0 12px; color: {SOFT}; max-width: 88ch; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 24px 0 0; }}
dl div {{ background: {PANEL}; border-radius: 10px; padding: 12px 16px; }}
dt {{ color: {SOFT}; font-size: 13px; }}
dd {{ margin: 2px 0 0; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }}
img {{ max-width: 100%; height: auto; display: block; }}
img.pixelated {{ image-rendering: pixelated; }}
.wide {{ overflow-x: auto; }}
@media (max-width: 700px) {{
  main {{ padding: 24px 16px 40px; }}
  h1 {{ font-size: 24px; overflow-wrap: anywhere; }}
  h2 {{ margin-top: 32px; }}
  p {{ overflow-wrap: anywhere; }}
  dl {{ grid-template-columns: repeat(2, 1fr); }}
  dd {{ font-size: 18px; }}
  .wide img {{ max-width: 760px; }}
}}
table {{ border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums;
  white-space: nowrap; width: 100%; }}
th, td {{ text-align: right; padding: 5px 12px; }}
th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
th {{ color: {SOFT}; font-weight: 600; border-bottom: 2px solid {LINE}; }}
th.over {{ border-bottom: 0; }}
tr.new td {{ border-top: 1px solid {LINE}; }}
tr.main td {{ font-weight: 650; background: {PANEL}; }}
"""


@dataclass
class Table:
    """Cells as text; the second column is a name, the others are numbers."""

    head: list[str]
    rows: list[list[str]]
    main: tuple[str, str] | None = None  # first two cells of the row to bring out
    over: list[tuple[str, int]] = field(default_factory=list)  # titles over so many columns each

    def groups(self) -> list[tuple[bool, bool, list[str]]]:
        """Every row with whether its first cell is new and whether it is the main one."""
        before = ["", *(row[0] for row in self.rows)]
        return [
            (row[0] != last and i > 0, tuple(row[:2]) == self.main, row)
            for i, (row, last) in enumerate(zip(self.rows, before, strict=False))
        ]


@dataclass
class _Section:
    title: str
    note: str
    picture: Image.Image | None
    table: Table | None
    pixelated: bool


@dataclass
class Page:
    """Numbers on top, then sections in the order they are added.

    Args:
        summary: name and value of the numbers to see first.
    """

    title: str
    subtitle: str
    summary: list[tuple[str, str]]
    sections: list[_Section] = field(default_factory=list)

    def add(
        self,
        title: str,
        note: str,
        *,
        picture: Image.Image | None = None,
        table: Table | None = None,
        pixelated: bool = False,
    ) -> None:
        """Add a section: a note that states the protocol, then a picture or a table.

        Args:
            pixelated: enlarge the picture without smoothing.
        """
        self.sections.append(_Section(title, note, picture, table, pixelated))

    def write(self, path: str | Path) -> None:
        """Write the page under a temporary name and rename it.

        Raises:
            ValueError: an ending that is neither .html nor .png.
        """
        path = Path(path)
        check_ending(path)
        with new_file(path) as partial:
            if path.suffix.lower() == ".html":
                partial.write_text(self.html(), encoding="utf-8")
            else:
                self.image().save(partial, format="png")

    def html(self) -> str:
        """The page as HTML that loads nothing from anywhere."""
        escape = html.escape
        summary = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in self.summary
        )
        parts = [
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body><main>",
            f"<h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p><dl>{summary}</dl>",
        ]
        for section in self.sections:
            parts.append(f"<h2>{escape(section.title)}</h2><p>{escape(section.note)}</p>")
            if section.picture is not None:
                parts.append(_inline(section))
            if section.table is not None:
                parts.append(_html_table(section.table))
        return "\n".join([*parts, "</main></body></html>\n"])

    def image(self) -> Image.Image:
        """The page as one picture."""
        blocks = [
            _text(self.title, 64, bold=True),
            _text(self.subtitle, 32, SOFT),
            _summary(self.summary),
        ]
        for section in self.sections:
            blocks += [_text(section.title, 44, bold=True, above=56), _text(section.note, 29, SOFT)]
            if section.picture is not None:
                blocks.append(_fitted(section))
            if section.table is not None:
                blocks.append(_drawn_table(section.table))
        # The height is known once every block is drawn.
        height = sum(block.height for block in blocks) + 2 * MARGIN
        page = Image.new("RGB", (WIDTH, height), "white")
        top = MARGIN
        for block in blocks:
            page.paste(block, (MARGIN, top))
            top += block.height
        return page


def check_ending(path: Path) -> None:
    """Raise a ValueError unless a report can be written under this name."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"the report {path} must end in {' or '.join(ENDINGS)}.")


def _inline(section: _Section) -> str:
    buffer = BytesIO()
    section.picture.save(buffer, format="png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = " class='pixelated'" if section.pixelated else ""
    words = html.escape(section.title, quote=True)
    picture = f"<img{style} alt='{words}' src='data:image/png;base64,{data}'>"
    return f"<div class='wide'>{picture}</div>"  # on a phone it is moved sideways, not shrunk


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    body = ""
    for new, main, row in table.groups():
        kinds = " ".join(["new"] * new + ["main"] * main)
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body += f"<tr class='{kinds}'>{cells}</tr>"
    over = "".join(
        f"<th class='over' colspan='{columns}'>{html.escape(words)}</th>"
        for words, columns in table.over
    )
    over = f"<tr>{over}</tr>" if over else ""
    return f"<div class='wide'><table>{over}<tr>{head}</tr>{body}</table></div>"


# --- the same on a picture


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    weight = "bold" if bold else "normal"
    name = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight))
    return ImageFont.truetype(name, size)


def _block(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    block = Image.new("RGB", (WIDTH - 2 * MARGIN, height), "white")
    return block, ImageDraw.Draw(block)


def _text(text: str, size: int, ink: str = INK, bold: bool = False, above: int = 0) -> Image.Image:
    """Words wrapped to the page."""
    font, lines = _font(size, bold), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= WIDTH - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    step = round(size * 1.45)
    block, draw = _block(above + step * len(lines) + size // 2)
    for i, line in enumerate(lines):
        draw.text((0, above + i * step), line, ink, font)
    return block


def _summary(summary: list[tuple[str, str]]) -> Image.Image:
    block, draw = _block(190)
    gap, size = 24, 28
    width = (block.width - gap * (len(summary) - 1)) / len(summary)
    while max(_font(size).getlength(name) for name, _ in summary) > width - 48:
        size -= 1
    for i, (name, value) in enumerate(summary):
        left = i * (width + gap)
        draw.rounded_rectangle((left, 20, left + width, 180), 20, PANEL)
        draw.text((left + 24, 44), name, SOFT, _font(size))
        draw.text((left + 24, 92), value, INK, _font(44, bold=True))
    return block


def _fitted(section: _Section) -> Image.Image:
    picture, room = section.picture, WIDTH - 2 * MARGIN
    # Patches of a few pixels are enlarged by whole factors, so that none is blurred.
    if section.pixelated:
        scale = max(1, room // picture.width)
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    if picture.width > room:
        picture = picture.resize(
            (room, round(picture.height * room / picture.width)), Image.Resampling.LANCZOS
        )
    block, _ = _block(picture.height + 16)
    block.paste(picture, (0, 8))
    return block


def _drawn_table(table: Table) -> Image.Image:
    # Columns as wide as their widest cell, stretched to the page; of many, the words shrink.
    room, size, step, pad = WIDTH - 2 * MARGIN, 28, 48, 36
    lines, widths = [table.head, *table.rows], [room, room]
    while sum(widths) > room and size > 12:
        size -= 1
        plain, bold = _font(size), _font(size, bold=True)
        widths = [
            max(bold.getlength(line[i]) for line in lines) + pad for i in range(len(table.head))
        ]
    stretch = min(1.6, room / sum(widths))
    widths = [width * stretch for width in widths]

    # Titles over groups of columns, where there are any.
    head = step if table.over else 0
    block, draw = _block(head + step * len(lines) + 30)
    column = 0
    for words, columns in table.over:
        column += columns
        place = sum(widths[:column]) - pad / 2, head // 2
        draw.text(place, words, SOFT, bold, anchor="rm")

    def row(top: int, cells: list[str], ink: str, font) -> None:
        left = 0.0
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            place, anchor = (left + pad, "lm") if i == 1 else (left + width - pad / 2, "rm")
            draw.text((place, top + step // 2), cell, ink, font, anchor=anchor)
            left += width

    # Head, then rows; a line opens a new group, a panel marks the main row.
    row(head, table.head, SOFT, bold)
    draw.line((0, head + step, sum(widths), head + step), LINE, 4)
    for i, (new, main, cells) in enumerate(table.groups()):
        top = head + step * (i + 1)
        if main:
            draw.rectangle((0, top + 3, sum(widths), top + step - 1), PANEL)
        if new:
            draw.line((0, top, sum(widths), top), LINE, 2)
        row(top, cells, INK, bold if main else plain)
    return block
