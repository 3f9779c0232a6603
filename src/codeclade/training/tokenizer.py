"""Train a VQModel: pixel, perceptual, codebook and commitment losses, dead codes restarted.

LlamaGen's tokenizer recipe (arXiv 2406.06525, section 3.1) with a feature loss that needs no
torchvision. The result is a plain VQModel folder.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..components.vq_model import VQModel
from ..data.atomic import new_file
from ..data.images import LabeledImages, load_images, plain_batches
from ..data.pixels import to_pixels, to_uint8
from ..data.sheets import image_grid
from ..metrics.features import EfficientNetFeatures
from .dead_codes import CodeUsage, revive_dead_codes
from .losses import codebook_loss, commitment_loss, perceptual_loss
from .optimization import build_optimizer
from .processes import share, summed
from .recipe import RunRecipe
from .run import Run

REVIVE_UNTIL = 0.8  # share of the steps after which the codebook settles


@dataclass(kw_only=True)
class TokenizerRecipe(RunRecipe):
    """Settings of `codeclade train-tokenizer`."""

    data: str  # image folder, parquet folder or Hub dataset
    image_size: int  # pixels a side
    classes: list | dict = field(default_factory=list)  # names to use; empty = all
    crop: float = 1.0  # largest resize factor before the random crop
    block_out_channels: list = field(default_factory=lambda: [128, 128, 256, 256, 512])
    layers_per_block: int = 2  # residual blocks of an encoder level
    latent_channels: int = 256  # between encoder and quantizer
    codebook_size: int = 16384  # codes N
    codebook_dim: int = 8  # width of a code
    pixel_weight: float = 1.0  # of the mean squared error
    perceptual_weight: float = 1.0  # of EfficientNet-Lite0 features; 0 needs no extra package
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    revive_every: int = 200  # steps between restarts of codes unused since the last; 0 = never
    batch_size: int = 128  # images a step, of all processes and passes together
    weight_decay: float = 0.0  # of AdamW
    ema_decay: float = 0.0  # of the averaged weights, which are what is saved; 0 = no average
    evaluate_every: int = 5000  # steps


class TokenizerLosses(nn.Module):
    """VQModel and feature network in one module: one call is one DDP step."""

    def __init__(self, vq_model: VQModel, recipe: TokenizerRecipe):
        super().__init__()
        self.vq_model, self.recipe = vq_model, recipe
        self.features = EfficientNetFeatures() if recipe.perceptual_weight else None

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses by name, their weighted sum as "loss"; ids (B, G, G); unit latents (B, d, G, G).

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
        """
        # The quantizer works in float32: bfloat16 cannot tell neighboring codes apart. Gradients
        # pass it unchanged (straight-through estimator).
        model, recipe = self.vq_model, self.recipe
        ids, latents = model.encode(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=1)
            codes = model.quantize.lookup(ids)
            quantized = unit + (codes - unit).detach()
        reconstruction = model.decode_codes(quantized)

        losses = {
            "pixel": F.mse_loss(reconstruction.float(), pixels),
            "codebook": codebook_loss(unit, codes),
            "commitment": commitment_loss(unit, codes),
        }
        if self.features is not None:
            losses["perceptual"] = perceptual_loss(self.features, reconstruction, pixels)
        losses["loss"] = sum(getattr(recipe, f"{name}_weight") * losses[name] for name in losses)
        return losses, ids, unit.detach()


def train_tokenizer(recipe: TokenizerRecipe, out: str | Path) -> VQModel:
    """Train a tokenizer and save it in `out`; a second call with the same recipe goes on.

    Writes vq_model/ (the model), log.jsonl, reconstructions.png and checkpoints/.
    """
    # Data first: what is wrong with it is said before any work.
    run = Run(recipe, out)
    images = load_images(recipe.data, "train", recipe.image_size, recipe.classes, recipe.crop)
    held_out = load_images(recipe.data, "validation", recipe.image_size, recipe.classes)

    # Training, from the newest checkpoint on.
    vq_model = VQModel(
        block_out_channels=tuple(recipe.block_out_channels),
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
        codebook_size=recipe.codebook_size,
        codebook_dim=recipe.codebook_dim,
        sample_size=recipe.image_size,
    )
    optimizer = build_optimizer(vq_model, recipe)
    usage = CodeUsage(recipe.codebook_size, run.accelerator)
    run.start(TokenizerLosses(vq_model, recipe), optimizer, usage)
    _train(run, recipe, images, held_out, usage)

    vq_model = run.finished_model().vq_model
    if run.accelerator.is_main_process:
        vq_model.save_pretrained(run.out / "vq_model")
        names = images.class_names
        run.record(run.out / "vq_model", "tokenizer", recipe.data, len(images), len(names))
    return vq_model


def _train(
    run: Run,
    recipe: TokenizerRecipe,
    images: LabeledImages,
    held_out: LabeledImages,
    usage: CodeUsage,
) -> None:
    # What a pass leaves behind for the restart of dead codes: usage and its latents.
    vq_model, latents = run.plain_model.vq_model, []
    run.model.train()

    def losses(batch: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found, ids, unit = run.model(to_pixels(batch.to(run.accelerator.device)))
        usage.add(ids)
        latents[:] = [unit]  # of the last pass
        return found

    # Restarts stop early, so that all codes settle before the end.
    for done, batch in run.steps(images):
        run.log_losses(done, run.optimize(batch, losses))
        due = recipe.revive_every and done % recipe.revive_every == 0
        if due and done < REVIVE_UNTIL * recipe.steps:
            optimizer = run.optimizer.optimizer  # below accelerate's wrapper
            moved = revive_dead_codes(vq_model.codebook, optimizer, usage, *latents)
            run.log(done, {"dead_codes": moved})
        if run.evaluates(done):
            with run.averaged_weights():
                run.log(done, evaluate_tokenizer(vq_model, held_out, run.accelerator))
                if run.accelerator.is_main_process:
                    save_reconstructions(vq_model, held_out, run.out / "reconstructions.png")


@torch.no_grad()
def evaluate_tokenizer(
    vq_model: VQModel,
    images: LabeledImages,
    accelerator: Accelerator | None = None,
    batch_size: int = 100,
) -> dict[str, float]:
    """Validation PSNR in dB (of 8-bit images, averaged over images), codebook usage and perplexity.

    Usage is the share of the N codes that occur at least once in the tokenized images.

    Args:
        accelerator: its processes share the images; None: this process takes all.
    """
    # Sums that processes can add up: PSNR, images, and how often every code occurs.
    counts = torch.zeros(vq_model.codebook_size, dtype=torch.float64)
    total = torch.zeros(2, dtype=torch.float64)
    for batch, _ in plain_batches(images, batch_size, *share(accelerator)):
        ids = vq_model.encode(to_pixels(batch).to(vq_model.device)).ids
        decoded = to_uint8(vq_model.decode(ids).cpu())
        error = (decoded.float() - batch.float()).square().mean(dim=(1, 2, 3))
        psnr = 10 * torch.log10(255**2 / error.clamp_min(1e-10))
        total += torch.tensor([psnr.sum().item(), len(batch)])
        counts += torch.bincount(ids.flatten().cpu(), minlength=len(counts))

    # Means, usage and perplexity of all images.
    psnr, count, *used = summed(torch.cat([total, counts]), accelerator)

    p = torch.tensor([n for n in used if n], dtype=torch.float64) / sum(used)
    return {
        "psnr": psnr / count,
        "codebook_usage": len(p) / len(counts),
        "codebook_perplexity": math.exp(-(p * p.log()).sum().item()),
    }


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
