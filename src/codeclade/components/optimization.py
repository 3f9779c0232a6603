"""Weights in the form that a CPU multiplies fastest, for inference alone.

"packed": oneDNN's own layout of the same numbers (float32 or bfloat16). "int8": every output row
rounded to 8 bits with a scale of its own (weight-only, activations stay bfloat16), which halves the
memory once more. Published files keep their keys: weights change after loading and are never saved.

Shapes: M rows of input, N outputs, K inputs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FeedForward

FORMS = ("packed", "int8")
FEW_ROWS = 8  # up to here the int8 kernel, which takes rows one by one, is the faster one


class PackedProduct:
    """x W^T + b of a linear layer, W in oneDNN's layout."""

    def __init__(self, linear: nn.Linear):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.dtype = linear.weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return self.after(x, "none")

    def after(self, x: Tensor, activation: str) -> Tensor:
        """The product (..., N) of x (..., K), with an activation that oneDNN knows on top."""
        check_input(x, self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The product (..., N) of x (..., K) times `factor` (..., N)."""
        fused = torch.ops.mkldnn._linear_pointwise.binary
        return fused(x, factor, self.weight, self.bias, "mul")


class PackedFeedForward:
    """`FeedForward` of packed layers, with SiLU and product inside of the matrix products."""

    def __init__(self, layer: FeedForward):
        self.gate, self.up = PackedProduct(layer.gate), PackedProduct(layer.up)
        self.down = PackedProduct(layer.down)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.up.times(x, self.gate.after(x, "swish")))


class Int8Product:
    """x W^T + b of a linear layer, W (N, K) as 8-bit integers with a scale for every row (N,)."""

    def __init__(self, linear: nn.Linear):
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        self.weight = (weight / scale).round().to(torch.int8)
        self.scale = scale.squeeze(1).to(linear.weight.dtype)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.dtype = linear.weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        check_input(x, self.dtype)
        rows = x.flatten(0, -2)  # (M, K)
        # The kernel reads inputs by 16.
        if len(rows) > FEW_ROWS or rows.shape[1] % 16:
            return F.linear(x, self.weight.to(x.dtype) * self.scale.unsqueeze(1), self.bias)
        product = torch.ops.aten._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale)
        product = product if self.bias is None else product + self.bias
        return product.unflatten(0, x.shape[:-1])


def check_input(x: Tensor, dtype: torch.dtype) -> None:
    """Raise a ValueError where a model was moved after it was optimized."""
    if x.device.type != "cpu" or x.dtype != dtype:
        raise ValueError(
            f"this model was optimized for {dtype} on a CPU and is given {x.dtype} on {x.device}; "
            "load it anew, move it, then optimize it."
        )


def optimize(model: nn.Module, weights: str = "packed") -> None:
    """Bring the linear layers of a model into another form, in place; there is no way back.

    Args:
        weights: one of `FORMS`.

    Raises:
        ValueError: an unknown form, a model that is not on a CPU or was optimized before, or a
            dtype that the form or this CPU has no products of.
    """
    check_form(model, weights)
    make = PackedProduct if weights == "packed" else Int8Product
    for part in list(model.modules()):
        if isinstance(part, FeedForward) and weights == "packed":
            exchange(part, PackedFeedForward(part), (part.gate, part.up, part.down))
        elif isinstance(part, nn.Linear) and not is_optimized(part):
            exchange(part, make(part), (part,))


def check_form(model: nn.Module, weights: str) -> None:
    """Raise a ValueError unless `optimize` can do this to a model."""
    if weights not in FORMS:
        raise ValueError(f"weights={weights!r} must be one of {FORMS}.")
    if any(is_optimized(part) for part in model.modules()):
        raise ValueError("this model is optimized already; load it anew for another form.")
    # Where the weights are and in which precision decides which form they can have.
    kinds = {(part.weight.device.type, part.weight.dtype) for part in linear_layers(model)}
    allowed = {torch.bfloat16} if weights == "int8" else {torch.bfloat16, torch.float32}
    for device, dtype in kinds:
        if device != "cpu" or dtype not in allowed:
            names = " or ".join(sorted(map(str, allowed)))
            raise ValueError(
                f"weights={weights!r} is for {names} on a CPU; this model is {dtype} on {device}."
            )
    # What this torch and this processor can compute with.
    if weights == "packed" and not torch.backends.mkldnn.is_available():
        raise ValueError("weights='packed' needs a torch with oneDNN; this one has none.")
    bfloat16 = any(dtype == torch.bfloat16 for _, dtype in kinds)
    if weights == "packed" and bfloat16 and not has_bfloat16_products():
        raise ValueError(
            "weights='packed' is for torch.float32 on this processor, which has no products of "
            "bfloat16; load the pipeline with dtype=torch.float32."
        )


def has_bfloat16_products() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself (AVX-512 or AMX) with oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [part for part in model.modules() if isinstance(part, nn.Linear)]


def is_optimized(part: nn.Module) -> bool:
    """Whether `exchange` gave up the weights of this layer."""
    return isinstance(part, nn.Linear) and part.weight.numel() == 0


def exchange(part: nn.Module, forward: Callable, layers: tuple[nn.Linear, ...]) -> None:
    """Let `forward` compute what a module did, and give up the weights of its layers."""
    part.forward = forward
    for layer in layers:
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        layer.register_state_dict_pre_hook(refuse_to_save)


def refuse_to_save(module: nn.Module, *_) -> None:
    """Raise a ValueError: the weights are no longer what a file has."""
    raise ValueError("an optimized model cannot be saved; save it before `optimize`.")
