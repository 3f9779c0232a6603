"""How fast a run is: images, tokens and model-FLOPs a second, and the time that is left."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

# Peak FLOP/s in bfloat16 or float16, dense, by a part of the device's name (vendors' data sheets).
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


class ImageCost(NamedTuple):
    """What a training image costs, by arithmetic; None where it is not known."""

    tokens: int | None = None  # positions
    flops: float | None = None  # of the model, forward and backward
    activations: float | None = None  # bytes that are kept for the backward pass


class Meter:
    """Speed since the last reading; pauses do not count.

    Args:
        batch_size: images a step, of all processes.
        cost: of an image.
        peak: FLOP/s of all devices together; None: not known.
    """

    def __init__(self, batch_size: int, cost: ImageCost | None = None, peak: float | None = None):
        self.batch_size, self.cost, self.peak = batch_size, cost or ImageCost(), peak
        self.steps, self.paused, self.since = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside the with block is not training time."""
        before = time.monotonic()
        try:
            yield
        finally:
            self.paused += time.monotonic() - before

    def step(self) -> None:
        """Count a step."""
        self.steps += 1

    def read(self, left: int) -> dict[str, float]:
        """Numbers for the log, and start anew.

        Args:
            left: steps until the end.
        """
        seconds = max(time.monotonic() - self.since - self.paused, 1e-9)
        images = self.steps * self.batch_size / seconds
        found = {"images_per_second": images}
        if self.cost.tokens is not None:
            found["tokens_per_second"] = images * self.cost.tokens
        if self.cost.flops is not None and self.peak is not None:
            found["model_flops_utilization"] = images * self.cost.flops / self.peak
        if self.steps:
            found["seconds_left"] = left * seconds / self.steps
        self.steps, self.paused, self.since = 0, 0.0, time.monotonic()
        return found


def peak_flops(device: torch.device, precision: str, processes: int) -> float | None:
    """Peak FLOP/s of all devices, or None where it is not known: the CPU, float32, other GPUs."""
    if device.type != "cuda" or precision == "no":
        return None
    return device_peak(torch.cuda.get_device_name(device), processes)


def device_peak(name: str, processes: int) -> float | None:
    """Peak FLOP/s of as many devices of a name as there are processes."""
    known = next((peak for part, peak in PEAKS.items() if part in name), None)
    return None if known is None else known * processes


def decoder_flops(model: nn.Module, layers: int, width: int, length: int) -> float:
    """FLOPs of one sequence, forward and backward: 6 a weight and position, and attention.

    PaLM's count (arXiv 2204.02311, appendix B) with causal attention at half: 6 l D L^2.
    Embedding tables are looked up and not multiplied, so they do not count.

    Args:
        model: its linear layers count.
        layers, width, length: l, D, and L positions.
    """
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return 6.0 * weights * length + 6.0 * layers * width * length**2
