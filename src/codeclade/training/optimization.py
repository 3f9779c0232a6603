"""Optimizer, learning rate and averaged weights, as LlamaGen (arXiv 2406.06525) has them."""

import contextlib
import math
from collections.abc import Iterator

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from .recipe import RunRecipe


def build_optimizer(model: nn.Module, recipe: RunRecipe) -> torch.optim.AdamW:
    """LlamaGen's AdamW: betas (0.9, 0.95), weight decay on tensors of two or more dimensions."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def learning_rate(step: int, *, peak: float, final: float, warmup: int, total: int) -> float:
    """Linear warm-up to `peak`, then cosine decay to `final` at step `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@contextlib.contextmanager
def ema_weights(model: nn.Module, ema: EMAModel | None) -> Iterator[None]:
    """The averaged weights in `model` for the length of a with block; None leaves it as it is."""
    if ema is None:
        yield
        return
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    try:
        yield
    finally:
        ema.restore(model.parameters())
