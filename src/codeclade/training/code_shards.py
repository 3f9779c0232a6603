"""What every way of writing code shards shares: ids of views, a preview, what is there already."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..components.cluster_map import codebook_sketch
from ..components.vq_model import VQModel
from ..components.weight_files import read_json, shortened
from ..data.atomic import new_file
from ..data.codes import HEADER, Codes
from ..data.pixels import to_pixels
from ..data.sheets import image_grid
from .recipe import PRECISIONS


def split_header(
    recipe, vq_model: VQModel, class_names: Sequence[str], split: str
) -> dict[str, Any]:
    """What a split's codes.json says before its images are counted.

    Args:
        recipe: an `EncodeRecipe`.
        split: "train" or "validation".
    """
    return {
        "split": split,
        "views": recipe.views if split == "train" else 1,
        "grid_size": recipe.image_size // vq_model.downsample,
        "codebook_size": vq_model.codebook_size,
        "detail_codebook_size": vq_model.detail_codebook_size,
        "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
        "class_names": class_names,
        "recipe": asdict(recipe),
    }


def is_done(folder: Path, header: dict[str, Any]) -> bool:
    """Whether a folder holds the codes of a header already.

    Raises:
        ValueError: it holds finished codes of another header.
    """
    if not (folder / HEADER).is_file():
        return False
    before = read_json(folder / HEADER)
    # Of the recipe only what changes codes, and nothing that older versions did not write.
    recipe, now = before.get("recipe") or {}, header["recipe"]
    differ = [key for key in now if key in recipe and recipe[key] != now[key]]
    differ = [key for key in differ if key not in ("batch_size", "workers")]
    differ += [name for name in header if name != "recipe" and before.get(name) != header[name]]
    if differ:
        # A sketch is a fingerprint of the codebook; in words it is the tokenizer.
        said = dict.fromkeys("tokenizer" if n == "codebook_sketch" else n for n in differ)
        raise ValueError(
            f"{folder} holds other codes ({shortened(', '.join(said))} differ); give another "
            "--out, or delete them first."
        )
    return True


def id_type(vq_model: VQModel) -> torch.dtype:
    """The smallest type of ids that holds those of all codebooks."""
    largest = max(vq_model.codebook_size, vq_model.detail_codebook_size or 0)
    return torch.uint16 if largest <= 2**16 else torch.int32


@torch.no_grad()
def tokenized(vq_model: VQModel, images: Tensor, precision: str) -> Tensor:
    """Ids (B, T) or (B, T, 2) of uint8 images (B, 3, S, S), in one forward pass."""
    device, dtype = vq_model.device, PRECISIONS[precision]
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        ids = vq_model.encode(to_pixels(images.to(device)).to(vq_model.dtype)).ids
    return ids.flatten(1, 2).cpu()


@torch.no_grad()
def save_preview(vq_model: VQModel, codes: Codes, path: Path, count: int = 8) -> None:
    """A picture of a few images decoded from their codes, spread over all of them."""
    chosen = range(0, len(codes), max(1, len(codes) // count))
    ids = torch.stack([codes[i, None][0] for i in chosen])[:count]
    with new_file(path) as partial:
        image_grid([vq_model.decode(ids.to(vq_model.device))]).save(partial)
