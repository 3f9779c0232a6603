"""Optimizer and learning rate, as LlamaGen (arXiv 2406.06525) has them."""

import math

import torch
from torch import nn

from .recipe import RunRecipe


def build_optimizer(
    model: nn.Module, recipe: RunRecipe, fused: bool | None = None
) -> torch.optim.AdamW:
    """LlamaGen's AdamW: betas (0.9, 0.95), weight decay on tensors of two or more dimensions.

    Args:
        model: its trainable parameters are optimized.
        recipe: learning rate and weight decay.
        fused: one kernel that reads every number once; None: unless float16 is asked for, whose
            skipped steps it hides.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = recipe.mixed_precision != "fp16" if fused is None else fused
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=fused)


def learning_rate(step: int, *, peak: float, final: float, warmup: int, total: int) -> float:
    """Linear warm-up to `peak`, then cosine decay to `final` at step `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
