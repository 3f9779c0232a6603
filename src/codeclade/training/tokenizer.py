"""Train a VQModel: pixel, perceptual, codebook and commitment losses, dead codes re-seeded.

LlamaGen's tokenizer recipe (arXiv 2406.06525, section 3.1) with a feature loss that needs no
torchvision. The result is a plain VQModel folder.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn

from ..components.vq_model import VQModel
from .data import LabelledImages, load_images, plain_batches, to_pixels
from .losses import EfficientNetFeatures, codebook_loss, commitment_loss, perceptual_loss
from .run import Run


@dataclass
class TokenizerRecipe:
    """Settings of `codeclade train-tokenizer`."""

    data: str  # image folder, parquet folder or Hub dataset
    image_size: int  # pixels a side
    classes: list | dict = field(default_factory=list)  # names to use; empty = all
    crop: float = 1.0  # largest resize factor before the random crop
    block_out_channels: list = field(default_factory=lambda: [128, 128, 256, 256, 512])  # widths
    layers_per_block: int = 2  # residual blocks a level of the encoder; the decoder has one more
    latent_channels: int = 256  # width between the levels and the codebook
    codebook_size: int = 16384  # number of codes N
    codebook_dim: int = 8  # numbers a code
    pixel_weight: float = 1.0  # mean squared error
    perceptual_weight: float = 1.0  # EfficientNet-Lite0 features; 0 needs no extra package
    codebook_weight: float = 1.0  # pulls codes to the latents
    commitment_weight: float = 0.25  # pulls latents to their codes
    revive_every: int = 200  # steps between re-seedings of codes unused since the last; 0 = never
    steps: int = 100_000  # optimizer steps
    batch_size: int = 128  # images a step, of all processes together
    learning_rate: float = 1e-4  # highest, at the end of the warm-up
    final_learning_rate: float = 1e-5  # at the last step; the way there is half a cosine
    warmup: int = 100  # steps of linear increase
    gradient_clip: float = 1.0  # largest norm of all gradients together
    mixed_precision: str = "bf16"  # no, fp16, bf16
    seed: int = 0  # of weights, order of images, views and dropout
    workers: int = 0  # processes that read data, a training process; 0 = it reads itself
    log_every: int = 20  # steps between lines of log.jsonl
    save_every: int = 500  # steps between checkpoints


class TokenizerLosses(nn.Module):
    """VQModel, feature network and usage counter in one module: one call is one DDP step."""

    def __init__(self, vq_model: VQModel, recipe: TokenizerRecipe):
        super().__init__()
        self.vq_model, self.recipe = vq_model, recipe
        self.features = EfficientNetFeatures() if recipe.perceptual_weight else None
        self.register_buffer("usage", torch.zeros(recipe.codebook_size))  # since the last revival

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses by name (their weighted sum under "loss") and unit latents (B, d, G, G)."""
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
        self.usage += torch.bincount(ids.flatten(), minlength=len(self.usage))
        return losses, unit.detach()


@torch.no_grad()
def revive_dead_codes(
    losses: TokenizerLosses,
    optimizer: torch.optim.Optimizer,
    unit: Tensor,
    accelerator: Accelerator,
) -> int:
    """Move every code unused since the last call onto a random latent of this batch.

    All ranks end with the same codebook; the moved rows' optimizer moments restart at zero.
    Returns the number of codes moved.
    """
    usage = accelerator.reduce(losses.usage, "sum")
    candidates = accelerator.gather(
        unit.permute(0, 2, 3, 1).reshape(-1, unit.shape[1]).contiguous()
    )
    dead = (usage == 0).nonzero().flatten()[: len(candidates)]
    if len(dead):
        weight = losses.vq_model.codebook
        choice = torch.randperm(len(candidates), device=candidates.device)[: len(dead)]
        rows = candidates[choice] + 1e-3 * torch.randn_like(candidates[choice])
        rows = F.normalize(rows, dim=-1) * weight[dead].norm(dim=-1, keepdim=True)
        if accelerator.num_processes > 1:
            torch.distributed.broadcast(rows, src=0)
        weight[dead] = rows.to(weight.dtype)
        for moment in ("exp_avg", "exp_avg_sq"):
            if weight in optimizer.state:
                optimizer.state[weight][moment][dead] = 0
    losses.usage.zero_()
    return len(dead)


def train_tokenizer(recipe: TokenizerRecipe, out: str | Path) -> VQModel:
    """Train a tokenizer and save it in `out`; a second call with the same recipe goes on.

    Writes vq_model/ (the model), log.jsonl, reconstructions.png and checkpoints/.
    """
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    set_seed(recipe.seed, device_specific=True)
    images = load_images(recipe.data, "train", recipe.image_size, recipe.classes, recipe.crop)
    torch.manual_seed(recipe.seed)
    vq_model = VQModel(
        block_out_channels=tuple(recipe.block_out_channels),
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
        codebook_size=recipe.codebook_size,
        codebook_dim=recipe.codebook_dim,
        sample_size=recipe.image_size,
    )
    optimizer = torch.optim.Adam(vq_model.parameters(), betas=(0.9, 0.95))
    module, optimizer = accelerator.prepare(TokenizerLosses(vq_model, recipe), optimizer)
    run = Run(accelerator, out, recipe, recipe.steps)
    start = run.resume()
    _optimize(run, recipe, images, module, optimizer, start)
    if accelerator.is_main_process:
        vq_model = accelerator.unwrap_model(module).vq_model.eval().float()
        vq_model.save_pretrained(run.out / "vq_model")
        held_out = load_images(recipe.data, "validation", recipe.image_size, recipe.classes)
        report = evaluate_tokenizer(vq_model, held_out)
        run.log(recipe.steps, report)
        names = images.class_names
        run.record(run.out / "vq_model", "tokenizer", recipe.data, len(images), len(names))
        save_reconstructions(vq_model, held_out, run.out / "reconstructions.png")
    return vq_model


def _optimize(run: Run, recipe: TokenizerRecipe, images, module, optimizer, start: int) -> None:
    accelerator = run.accelerator
    losses_module = accelerator.unwrap_model(module)
    module.train()
    for done, (batch, _) in run.steps(images, optimizer, start):
        losses, unit = module(to_pixels(batch.to(accelerator.device)))
        run.descend(losses["loss"], module, optimizer)
        if done % recipe.log_every == 0:
            run.log(done, {name: value.item() for name, value in losses.items()})
        if recipe.revive_every and done % recipe.revive_every == 0 and done < 0.8 * recipe.steps:
            moved = revive_dead_codes(losses_module, optimizer.optimizer, unit, accelerator)
            run.log(done, {"dead_codes": moved})


@torch.no_grad()
def evaluate_tokenizer(
    vq_model: VQModel, images: LabelledImages, batch_size: int = 100
) -> dict[str, float]:
    """Validation PSNR in dB (of 8-bit images, averaged over images), codebook usage and perplexity.

    Usage is the share of the N codes that occur at least once in the tokenized images.
    """
    psnr, counts = [], torch.zeros(vq_model.codebook_size, dtype=torch.int64)
    for batch, _ in plain_batches(images, batch_size):
        ids = vq_model.encode(to_pixels(batch).to(vq_model.device)).ids
        decoded = (vq_model.decode(ids).float().cpu() * 127.5 + 127.5).round().clamp(0, 255)
        error = (decoded - batch.float()).square().mean(dim=(1, 2, 3))
        psnr.append(10 * torch.log10(255**2 / error.clamp_min(1e-10)))
        counts += torch.bincount(ids.flatten().cpu(), minlength=len(counts))
    p = counts[counts > 0] / counts.sum()
    return {
        "psnr": torch.cat(psnr).mean().item(),
        "codebook_usage": (counts > 0).float().mean().item(),
        "codebook_perplexity": math.exp(-(p * p.log()).sum().item()),
    }


@torch.no_grad()
def save_reconstructions(
    vq_model: VQModel, images: LabelledImages, path: Path, count: int = 32
) -> None:
    """A sheet of originals (upper rows) and their reconstructions (lower rows) to look at."""
    stride = max(1, len(images) // count)
    originals = torch.stack([images[i, None][0] for i in range(0, len(images), stride)][:count])
    decoded = vq_model(to_pixels(originals).to(vq_model.device)).float().cpu()
    decoded = (decoded * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    rows = []
    for first in range(0, len(originals), 8):
        for part in (originals, decoded):
            rows.append(torch.cat(list(part[first : first + 8]), dim=2))
    width = max(row.shape[2] for row in rows)
    rows = [F.pad(row, (0, width - row.shape[2])) for row in rows]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path)
