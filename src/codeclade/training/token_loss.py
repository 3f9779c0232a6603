"""The loss of one linear layer over the vocabulary, without all of its logits at once.

Positions go through the layer in chunks that stay in the processor's cache, and a chunk's logits
become its gradient in place. So a step neither keeps nor re-reads (positions x vocabulary) numbers,
of which the usual way has four copies: logits, their log-softmax, and the gradients of both. Same
loss and gradients, to rounding.

Shapes: n positions, D width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_linear import is_faster, product

CHUNK = {"cpu": 2**19, "cuda": 2**26}  # logits at once: 2 MiB, 256 MiB


class _TokenLoss(torch.autograd.Function):
    """Sum over positions of the cross-entropy, and where the right token is arg-max."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        rows, table = hidden.to(dtype), weight.to(dtype)
        multiply = F.linear
        if rows.device.type == "cpu" and dtype == torch.float32 and is_faster():
            multiply = product
        total = torch.zeros((), device=rows.device)
        right = torch.empty_like(tokens, dtype=torch.bool)
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        count = max(1, CHUNK.get(rows.device.type, 2**22) // len(weight))
        for part, ids, found, gradient in zip(
            rows.split(count), tokens.split(count), right.split(count), of_hidden.split(count),
            strict=True,
        ):  # fmt: skip
            # The largest probability is never small, so the normalizer comes from it.
            logits = multiply(part, table).float()  # (c, V)
            peak, best = logits.max(-1, keepdim=True)
            ids = ids.unsqueeze(-1)
            own = logits.gather(-1, ids)
            torch.softmax(logits, -1, out=logits)
            total += (peak - logits.gather(-1, best).log() - own).sum()
            found.copy_((best == ids).squeeze(-1))
            # Gradient of the sum: probabilities, less one at the right token.
            logits.scatter_add_(-1, ids, torch.full_like(own, -1.0))
            logits = logits.to(dtype)
            gradient.copy_(multiply(logits, table.t()))
            of_weight += multiply(logits.t(), part.t())
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        scale = gradients[0]
        return of_hidden * scale, of_weight * scale, None, None


def token_loss(layer: nn.Linear, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a layer without bias, and the share of right arg-maxes.

    Only where gradients are wanted: they are computed with the loss.

    Args:
        hidden: (B, T, D) that predict tokens.
        tokens: (B, T).
    """
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    flat, ids = hidden.flatten(0, 1), tokens.flatten()
    with torch.autocast(device, enabled=False):
        total, right = _TokenLoss.apply(flat, layer.weight, ids, dtype)
    return total / len(ids), right.float().mean()
