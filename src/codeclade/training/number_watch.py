"""Remembers the first step whose loss is no number, without waiting for the device every step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class NumberWatch:
    """Looks at some numbers of every step.

    Args:
        names: of the numbers.
        first: steps that are done.
        device: where they are computed.
    """

    def __init__(self, names: Sequence[str], first: int, device: torch.device):
        self.names, self.step = names, first
        self.first_bad = torch.full((), math.inf, device=device)  # infinite: none so far

    def add(self, means: dict[str, Tensor]) -> None:
        """Take the numbers of the next step."""
        self.step += 1
        finite = torch.stack([means[name].float().isfinite() for name in self.names]).all()
        self.first_bad = torch.where(finite, self.first_bad, self.first_bad.clamp_max(self.step))
