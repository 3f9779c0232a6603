"""Linear layers in float32 on AMD processors, by oneDNN instead of MKL.

PyTorch's x86 builds multiply float32 matrices with MKL, which takes its AVX2 code on AMD
processors; oneDNN, which is in the same builds, has AVX-512 code for them: about twice as fast.
Results differ by rounding. Half precision goes through oneDNN anyway.
"""

import platform
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@cache
def is_faster() -> bool:
    """Whether this is a processor and a build for which this file is made."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # not a public function of PyTorch
        return False
    processor = Path("/proc/cpuinfo")
    names = processor.read_text() if processor.is_file() else platform.processor()
    return "AuthenticAMD" in names and "AVX512" in torch.backends.cpu.get_cpu_capability()


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows (..., D) times weight (E, D), transposed, plus bias (E,)."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """`F.linear` with all three products by `product`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        wants = ctx.needs_input_grad
        flat = gradient.flatten(0, -2)  # (n, E)
        of_rows = product(gradient, weight.t()) if wants[0] else None
        of_weight = product(flat.t(), rows.flatten(0, -2).t()) if wants[1] else None
        return of_rows, of_weight, flat.sum(0) if wants[2] else None


def fast_linear(layer: nn.Linear, rows: Tensor) -> Tensor:
    """What `layer` makes of rows (..., D)."""
    weight, bias = layer.weight, layer.bias
    plain = rows.dtype == weight.dtype == torch.float32 and rows.device.type == "cpu"
    ordinary = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    if not plain or rows.ndim < 2 or ordinary:
        return F.linear(rows, weight, bias)
    return _Linear.apply(rows, weight, bias)


def use_fast_linears(model: nn.Module) -> None:
    """Let the linear layers of a model compute so, where it is faster; names and weights stay."""
    if is_faster():
        for module in model.modules():
            if type(module).forward is nn.Linear.forward:
                module.forward = partial(fast_linear, module)


def use_plain_linears(model: nn.Module) -> None:
    """Undo `use_fast_linears`."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), partial):
            del module.forward
