"""Drop-path: whole residual branches are left out at random (stochastic depth, arXiv 1603.09382).

As LlamaGen (arXiv 2406.06525) has it: attention and feed-forward of block l are dropped, image by
image, with a probability that rises linearly from 0 at the first block to `rate` at the last.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..components.transformer import CodecladeTransformer


class DropPath:
    """Forward hook: zeroes a branch's output (B, L, D) for some images, and scales up the others.

    Of an attention, which returns its probabilities too, the first part is the branch's output.

    Args:
        rate: probability of being dropped.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Any:
        if not module.training:
            return None
        if isinstance(output, tuple):
            return self(module, inputs, output[0]), *output[1:]
        kept = torch.rand(len(output), 1, 1, device=output.device) >= self.rate  # (B, 1, 1)
        return output * kept.to(output.dtype) / (1 - self.rate)


def add_drop_path(model: CodecladeTransformer, rate: float) -> None:
    """Drop branches of all blocks while the model trains; the weights and names stay the same."""
    for layer, own in zip(model.layers, torch.linspace(0, rate, len(model.layers)), strict=True):
        if own > 0:
            layer.attention.register_forward_hook(DropPath(float(own)))
            layer.feed_forward.register_forward_hook(DropPath(float(own)))
