"""What the server believes of a client: every input is checked here, whatever the page allows.

Each check raises a ValueError of one sentence that never repeats a long input.
"""

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from PIL import Image, ImageOps

MAX_IMAGES, MAX_SEED = 8, 2**31 - 1
MAX_PIXELS, MAX_TEXT, MAX_PROMPT = 20_000_000, 100, 500
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # rasters only, in decoders with little history


def number(name: str, value: Any, low: float, high: float, integer: bool = False) -> float:
    """`value` as a number from `low` to `high`; booleans, texts, NaN and infinity are none."""
    # A comparison with NaN is false, so the range excludes it; True is an int to Python.
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not fits or (integer and value != int(value)):
        raise ValueError(f"{name} must be a {'whole ' * integer}number from {low} to {high}.")
    return int(value) if integer else float(value)


def one_of(name: str, value: Any, allowed: list[str]) -> str:
    """`value`, which must be one of a few texts."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}.")
    return value


def short_text(name: str, value: Any, most: int = MAX_TEXT) -> str:
    """`value` as a text that may be repeated in an error."""
    # Clients send class numbers as numbers, too; those that no class can have stay numbers, and are
    # refused without being repeated.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9:
        value = str(value)
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{name} must be a text of at most {most} characters.")
    return value


def read_image(source: Any) -> Image.Image:
    """RGBA image of a path or binary stream, of one of FORMATS and at most MAX_PIXELS pixels."""
    # Size before content: a small file can unpack to gigabytes of pixels.
    try:
        image = Image.open(source, formats=FORMATS)  # reads the header alone
        size = image.width * image.height
    except Image.DecompressionBombError:
        size = MAX_PIXELS + 1
    except Exception:
        raise ValueError(f"the file is no image of type {', '.join(FORMATS)}.") from None
    if size > MAX_PIXELS:
        raise ValueError(f"the image has more than {MAX_PIXELS // 10**6} megapixels.")
    # Only now is it decoded; whatever a decoder stumbles over is damage in the file.
    try:
        return ImageOps.exif_transpose(image.convert("RGBA"))
    except Exception:
        raise ValueError("the image file is damaged.") from None


def uploaded(value: Any) -> Image.Image | None:
    """RGB image of an uploaded file as Gradio describes it, None for none; white shows through."""
    if value is None:
        return None
    return on_white(read_image(cached(value.get("path") if isinstance(value, dict) else None)))


def cached(path: Any) -> Path:
    """`path` from a client, which must lie in Gradio's folder of uploaded and generated files.

    Gradio itself looks at paths only in a value that says it is a file, and a client need not say.
    """
    try:
        # Both sides are resolved, or a link or ".." inside the folder would lead out of it.
        found = Path(path).resolve()  # follows links
        inside = found.is_relative_to(Path(get_upload_folder()).resolve())
    except (TypeError, ValueError, OSError, RuntimeError):
        inside = False
    if not inside:
        raise ValueError("the image must be an uploaded file.")
    return found


def on_white(image: Image.Image) -> Image.Image:
    """RGB image of an RGBA one."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
