"""Validation of a tokenizer while it trains: losses, PSNR, usage, a sheet, and the best weights.

Shapes: B images, N codes of a codebook.
"""

import json
import math
from pathlib import Path

import torch
from accelerate import Accelerator

from ..components.vq_model import VQModel
from ..data.atomic import new_file, new_folder, write_json
from ..data.images import LabeledImages, plain_batches
from ..data.pixels import to_pixels, to_uint8
from ..data.sheets import image_grid
from .dead_codes import usage_statistics
from .processes import share, summed
from .tokenizer_losses import ImageLosses, TokenizerPass

PARTS = ("codebook", "detail")  # what numbers of the first and the second codebook begin with


@torch.no_grad()
def evaluate_tokenizer(
    model: TokenizerPass,
    image_losses: ImageLosses,
    images: LabeledImages,
    accelerator: Accelerator | None = None,
    batch_size: int = 100,
) -> dict[str, float]:
    """Validation loss and its terms, PSNR, and usage and perplexity of every codebook, in float32.

    The loss is that of training without the discriminator. PSNR is in dB, of 8-bit images, averaged
    over images. Usage is the share of the codes that occur at least once.

    Args:
        accelerator: its processes share the images; None: this process takes all.
    """
    # Sums that processes can add up: loss terms, PSNR, images, and how often every code occurs.
    vq_model = model.vq_model
    sizes = [vq_model.codebook_size, vq_model.detail_codebook_size][: len(_names(vq_model))]
    used = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    total: dict[str, float] = {}
    for batch, _ in plain_batches(images, batch_size, *share(accelerator)):
        pixels = to_pixels(batch).to(vq_model.device)
        decoded, losses, assigned = model.measure(pixels)
        losses = losses | image_losses(decoded, pixels)
        losses = losses | {"loss": image_losses.weighted(losses)}
        error = (to_uint8(decoded.cpu()).float() - batch.float()).square().mean(dim=(1, 2, 3))
        psnr = 10 * torch.log10(255**2 / error.clamp_min(1e-10))
        values = {name: value.item() * len(batch) for name, value in losses.items()}
        for name, value in (values | {"psnr": psnr.sum().item(), "images": len(batch)}).items():
            total[name] = total.get(name, 0.0) + value
        for counts, one in zip(used, assigned, strict=True):
            counts += torch.bincount(one.ids.flatten().cpu(), minlength=len(counts))

    # Means over all images. A process without images of its own adds zeros.
    names = _all_names(image_losses, vq_model)
    sums = torch.tensor([total.get(name, 0.0) for name in names], dtype=torch.float64)
    together = torch.tensor(summed(torch.cat([sums, *used]), accelerator), dtype=torch.float64)
    means = dict(zip(names, together[: len(names)].tolist(), strict=True))
    count = means.pop("images")
    found = {name: value / count for name, value in means.items()}
    result = {"psnr": found.pop("psnr")}
    result |= {f"validation_{name}": value for name, value in found.items()}
    for name, counts in zip(PARTS, together[len(names) :].split(sizes), strict=False):
        result |= {f"{name}_{key}": value for key, value in usage_statistics(counts).items()}
    return result


def _names(vq_model: VQModel) -> tuple[str, ...]:
    return PARTS if vq_model.detail_codebook_size else PARTS[:1]


def _all_names(image_losses: ImageLosses, vq_model: VQModel) -> list[str]:
    """Sums of `evaluate_tokenizer`, in one order on all processes."""
    names = ["images", "psnr", "loss", "pixel", "codebook", "commitment"]
    names += ["perceptual"] if image_losses.network is not None else []
    names += ["classifier"] if image_losses.classifier is not None else []
    names += ["semantic"] if vq_model.detail_codebook_size else []
    return names + (["entropy"] if image_losses.recipe.entropy_weight else [])


@torch.no_grad()
def save_reconstructions(
    vq_model: VQModel, images: LabeledImages, path: Path, count: int = 32
) -> None:
    """A sheet of originals (upper rows) and their reconstructions (lower rows)."""
    stride = max(1, len(images) // count)
    originals = torch.stack([images[i, None][0] for i in range(0, len(images), stride)][:count])
    decoded = to_uint8(vq_model(to_pixels(originals).to(vq_model.device)).cpu())
    pairs = zip(originals.split(8), decoded.split(8), strict=True)
    with new_file(path) as partial:
        image_grid([row for pair in pairs for row in pair]).save(partial)


class BestTokenizer:
    """The weights with the lowest validation loss, in `best/` of a run.

    best/vq_model is a VQModel folder; best/validation.json says step and numbers.

    Args:
        out: folder of the run.
        resumed: the run goes on from a checkpoint, so what is there is its own.
    """

    def __init__(self, out: Path, resumed: bool):
        self.folder, self.lowest = out / "best", math.inf
        known = self.folder / "validation.json"
        if resumed and known.is_file():
            self.lowest = json.loads(known.read_text())["validation_loss"]

    def offer(self, vq_model: VQModel, step: int, found: dict[str, float], write: bool) -> None:
        """Keep the weights if their loss is the lowest so far (never if it is NaN).

        Args:
            found: what `evaluate_tokenizer` returned.
            write: this is the process that writes files.
        """
        if not found["validation_loss"] < self.lowest:
            return
        self.lowest = found["validation_loss"]
        if write:
            with new_folder(self.folder, overwrite=True) as partial:
                vq_model.save_pretrained(partial / "vq_model")
                write_json(partial / "validation.json", {"step": step} | found)
