"""Weights in the form that a CPU multiplies fastest, for inference alone.

"packed": oneDNN's own layout of the same numbers (float32 or bfloat16), for batches. "single": the
numbers as they are, for one image at a time. "int8": every output row rounded to 8 bits with a
scale of its own (weight-only, activations stay bfloat16), which halves the memory once more.
"int4": every 32 inputs of a row rounded to 4 bits with a scale and an offset of their own, but for
the head, which is int8. Published files keep their keys: weights change after loading and are never
saved.

With "single" and "int8" a decoding step of few rows is one compiled call, and so is a stage of
IAR2's head, see optimized_steps.py; in other steps what lies between the products is compiled.

Shapes: M rows of input, N outputs, K inputs, R rows of the batch, n positions, D width.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Block, FeedForward, Output
from .heads import SemanticDetailHead
from .optimized_steps import (
    FEW_ROWS,
    STACK_STEP,
    PairStep,
    StackStep,
    StepBlock,
    check_input,
    compiled_steps,
    numpy_kind,
    stack_step,
)
from .vq_model import VQModel

FORMS = ("packed", "single", "int8", "int4")
GROUP = 32  # inputs that share a scale and an offset in 4 bits
FEW_PIXELS = ("conv_in", "mid_block", "up_blocks.0")  # of a decoder: the lowest resolution


class PackedProduct:
    """x W^T + b of a linear layer, W (N, K) in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = bias
        self.dtype = weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """The product (..., N) of x (..., K)."""
        check_input(x, self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class SingleProduct:
    """x W^T + b of a linear layer, W (N, K) as it is, which a `StackStep` reads too."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias, self.dtype = weight.contiguous(), bias, weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """The product (..., N) of x (..., K)."""
        check_input(x, self.dtype)
        return F.linear(x, self.weight, self.bias)


class RoundedProduct:
    """x W^T + b of a linear layer, W (N, K) rounded to a few bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.bias = bias
        self.dtype = weight.dtype
        self.round(weight.float())

    def round(self, weight: Tensor) -> None:
        """Keep W, given in float32."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """The product (..., N) of x (..., K)."""
        check_input(x, self.dtype)
        rows = x.flatten(0, -2)  # (M, K)
        # The kernels read inputs by 16.
        if len(rows) > FEW_ROWS or rows.shape[1] % 16:
            return F.linear(x, self.weight_again(), self.bias)
        product = self.few(rows.contiguous())
        product = product if self.bias is None else product + self.bias
        return product.unflatten(0, x.shape[:-1])

    def few(self, rows: Tensor) -> Tensor:
        """The product (M, N) of a few rows (M, K), in the kernel that takes them one by one."""
        raise NotImplementedError

    def weight_again(self) -> Tensor:
        """W (N, K) as it is after rounding."""
        raise NotImplementedError


class Int8Product(RoundedProduct):
    """8-bit integers with a scale for every row of W."""

    def round(self, weight: Tensor) -> None:
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        self.weight = (weight / scale).round().to(torch.int8)
        self.scale = scale.squeeze(1).to(self.dtype)

    def few(self, rows: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale)

    def weight_again(self) -> Tensor:
        return self.weight.to(self.dtype) * self.scale.unsqueeze(1)


class Int4Product(RoundedProduct):
    """4-bit integers with a scale and an offset for every `GROUP` of a row of W."""

    def round(self, weight: Tensor) -> None:
        groups = weight.unflatten(1, (-1, GROUP))  # (N, K / GROUP, GROUP)
        low, high = groups.aminmax(dim=-1)
        scale = ((high - low) / 15).clamp_min(1e-12).to(self.dtype)
        # The kernel multiplies integers less 8 by the scale, then adds the offset.
        offset = (low + 8 * scale.float()).to(self.dtype)
        self.scales = torch.stack([scale.T, offset.T], -1).contiguous()  # (K / GROUP, N, 2)
        scale, offset = scale.float().unsqueeze(-1), offset.float().unsqueeze(-1)
        levels = ((groups - offset) / scale + 8).round().clamp(0, 15).flatten(1).int()
        self.shape = weight.shape
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)

    def few(self, rows: Tensor) -> Tensor:
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        return multiply(rows, self.weight, GROUP, self.scales)

    def weight_again(self) -> Tensor:
        # The layout is the kernel's own, and so is the way back: products with unit vectors.
        unit = torch.eye(self.shape[1], dtype=self.dtype)
        return self.few(unit).T


PLAIN = {"packed": PackedProduct, "single": SingleProduct}


def make_product(linear: nn.Linear, weights: str, *more: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The product of a linear layer, or the outputs of several side by side, in one of `FORMS`."""
    layers = (linear, *more)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    if weights in PLAIN:
        return PLAIN[weights](weight, bias)
    # The head decides every token and is a small part of the weights; 4 bits want whole groups.
    fits = weight.shape[0] % 16 == 0 and weight.shape[1] % GROUP == 0
    four = weights == "int4" and fits and not isinstance(linear, Output)
    return (Int4Product if four else Int8Product)(weight, bias)


class JoinedFeedForward:
    """`FeedForward` with one product for gate and up."""

    def __init__(self, layer: FeedForward, weights: str):
        self.both = make_product(layer.gate, weights, layer.up)
        self.down = make_product(layer.down, weights)

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def optimize(model: nn.Module, weights: str = "packed") -> None:
    """Bring the linear layers of a model into another form, in place; there is no way back.

    Args:
        weights: one of `FORMS`.

    Raises:
        ValueError: an unknown form, a model that is not on a CPU or was optimized before, or a
            dtype that the form or this CPU has no products of.
    """
    check_form(model, weights)
    # A file that came with weights from the Hub may be where this package is not, or an older one.
    named = ("codeclade", STACK_STEP)
    compiles = all(importlib.util.find_spec(name) is not None for name in named)
    layers = cast(Any, getattr(model, "layers", nn.ModuleList()))
    head = cast(Any, getattr(model, "head", None))
    pairs = isinstance(head, SemanticDetailHead)
    stacked = {*layers.modules(), *(head.modules() if pairs else ())} if compiles else set()
    for part in list(model.modules()):
        # Rows are read as they are by a `CompiledStep` alone.
        form = "packed" if weights == "single" and part not in stacked else weights
        if isinstance(part, FeedForward) and is_plain(part.gate, part.up, part.down):
            joined = JoinedFeedForward(part, form)
            exchange(part, joined, (part.gate, part.up, part.down))
        elif isinstance(part, nn.Linear) and not is_optimized(part):
            exchange(part, make_product(part, form), (part,))
    # Blocks whose layers are ours; wrapped ones go on by their own code.
    blocks = [part for part in model.modules() if isinstance(part, Block)]
    if not blocks or not compiles:
        return
    for block in blocks:
        joined, attention = block.feed_forward.forward, block.attention
        if isinstance(joined, JoinedFeedForward) and is_plain(attention.qkv, attention.out):
            block.forward = cast(Any, StepBlock(block, joined))
    # What is not compiled yet is now, rather than while the first image waits: no row compiles all.
    # Where numba and torch share OpenMP, starting threads of one sets how many the other has.
    threads, dtype = torch.get_num_threads(), blocks[0].attention_norm.weight.dtype
    compiled_steps(dtype)
    stack_step().attend(numpy_kind(dtype), (0,) * 7, (0,) * 6, 1)
    ours = len(layers) and all(isinstance(block.forward, StepBlock) for block in layers)
    if ours and weights in ("single", "int8"):
        layers.step = StackStep(list(layers))
        if pairs and PairStep.takes(head):
            cast(Any, head).step = PairStep(head)
    torch.set_num_threads(threads)


def optimize_decoder(vq_model: VQModel) -> None:
    """Decode with channels last, and in half precision compute what has few pixels in float32.

    A rounding before the first enlargement reaches every pixel, while what is computed there is a
    small part of all. It brings VQ-16 in bfloat16 2 dB nearer to float32.
    """
    cast(Any, vq_model).to(memory_format=torch.channels_last)
    decoder, dtype = vq_model.decoder, vq_model.decoder.conv_in.weight.dtype
    if dtype == torch.float32:
        return
    for name in FEW_PIXELS:
        decoder.get_submodule(name).float()
    kept = [f"decoder.{name}." for name in FEW_PIXELS]  # diffusers asks for them to tell a dtype
    vq_model._keep_in_fp32_modules = [*vq_model._keep_in_fp32_modules, *kept]
    after = decoder.up_blocks[1] if len(decoder.up_blocks) > 1 else decoder.conv_norm_out
    for part, wanted in ((decoder.conv_in, torch.float32), (after, dtype)):
        part.register_forward_pre_hook(lambda _, given, to=wanted: (given[0].to(to), *given[1:]))


def check_form(model: nn.Module, weights: str) -> None:
    """Raise a ValueError unless `optimize` can do this to a model."""
    if weights not in FORMS:
        raise ValueError(f"weights={weights!r} must be one of {FORMS}.")
    if any(is_optimized(part) for part in model.modules()):
        raise ValueError("this model is optimized already; load it anew for another form.")
    # Where the weights are and in which precision decides which form they can have.
    kinds = {(part.weight.device.type, part.weight.dtype) for part in linear_layers(model)}
    allowed = {torch.bfloat16, torch.float32} if weights in PLAIN else {torch.bfloat16}
    for device, dtype in kinds:
        if device != "cpu" or dtype not in allowed:
            names = " or ".join(sorted(map(str, allowed)))
            raise ValueError(
                f"weights={weights!r} is for {names} on a CPU; this model is {dtype} on {device}."
            )
    # What this torch and this processor can compute with.
    if weights in PLAIN and not torch.backends.mkldnn.is_available():
        raise ValueError(f"weights={weights!r} needs a torch with oneDNN; this one has none.")
    bfloat16 = any(dtype == torch.bfloat16 for _, dtype in kinds)
    if weights in PLAIN and bfloat16 and not has_bfloat16_products():
        raise ValueError(
            f"weights={weights!r} is for torch.float32 on this processor, which has no products of "
            "bfloat16; load the pipeline with dtype=torch.float32."
        )


def has_bfloat16_products() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself (AVX-512 or AMX) with oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [part for part in model.modules() if isinstance(part, nn.Linear)]


def is_plain(*layers: nn.Module) -> bool:
    """Whether layers are linear ones and not wrapped, as adapters wrap them."""
    return all(isinstance(layer, nn.Linear) for layer in layers)


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
