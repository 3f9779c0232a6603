"""Decoding steps of few rows in compiled code, for a model whose weights are in another form.

The bridge from modules to _stack_step.py and _small_steps.py, which take addresses: `StepBlock` for
one block, `StackStep` for all of them, `PairStep` for the head of IAR2. See optimization.py.

Shapes: M rows of input, N outputs, K inputs, R rows of the batch, n positions, D width.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from .blocks import Block
from .image_cache import FilledLayer, ImageCache

FEW_ROWS = 32  # up to here kernels that take rows one by one, or by two, are faster
FEW_POSITIONS = 32  # up to here a step is dozens of short calls, which are worth compiling
STACK_STEP = "codeclade.components._stack_step"  # by name: see `compiled_steps`


class StepBlock:
    """`Block` of optimized layers; a step of an `ImageCache` goes through compiled code."""

    def __init__(self, block: Block, feed_forward: Any):
        self.block, self.feed_forward = block, feed_forward

    def __call__(
        self, x: Tensor, mask: Any, cos: Tensor, sin: Tensor, cache: Any, *asked: bool
    ) -> Any:
        taught = torch.is_grad_enabled() and x.requires_grad
        few = not any(asked) and not taught and 0 < x.shape[1] <= FEW_POSITIONS
        # The prefix goes the long way: it is seen as its own mask says.
        if few and isinstance(cache, ImageCache) and self.layer(cache).filled:
            return self.step(x.contiguous(), cos, sin, cache)
        return Block.forward(self.block, x, mask, cos, sin, cache, *asked)

    def layer(self, cache: ImageCache) -> FilledLayer:
        """This block's part of the cache."""
        return cast(FilledLayer, cache.layers[self.block.attention.layer_idx])

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, cache: ImageCache) -> Tensor:
        """Output (R, n, D) of the next n positions x (R, n, D), which enter the cache."""
        block, (rows, new, width) = self.block, x.shape
        compiled, attention = compiled_steps(x.dtype), block.attention
        heads, size = attention.config.num_attention_heads, (rows * new, width)
        first, second = block.attention_norm, block.feed_forward_norm
        normed, total = torch.empty_like(x), torch.empty_like(x)
        # Attention.
        given = x.data_ptr(), first.weight.data_ptr(), normed.data_ptr()
        compiled["normalize"](*given, *size, first.eps)
        mixed = attention.qkv(normed)
        layer = self.layer(cache)
        past, bias = layer.extend(new), cache.bias(rows)
        given = mixed, cos, sin, *layer.buffers, bias, normed
        lengths = rows, new, heads, width // heads, past, layer.room
        places = tuple(part.data_ptr() for part in given)
        stack_step().attend(numpy_kind(x.dtype), places, lengths, torch.get_num_threads())
        # Feed-forward; products before this point have read `normed`, so it serves again.
        mixed = attention.out(normed)
        given = x, mixed, second.weight, total, normed
        compiled["add_and_normalize"](*(one.data_ptr() for one in given), *size, second.eps)
        mixed = self.feed_forward.both(normed)
        gated = x.new_empty(rows, new, mixed.shape[-1] // 2)
        compiled["gate"](mixed.data_ptr(), gated.data_ptr(), rows * new, gated.shape[-1])
        return total.add_(self.feed_forward.down(gated))


class CompiledStep:
    """What compiled code is given of a model: addresses, and what lies there.

    Args:
        blocks: whose layers are optimized.
    """

    def __init__(self, blocks: list[Block]):
        self.config, self.epsilon = blocks[0].attention.config, blocks[0].attention_norm.eps
        self.kept: list[Tensor] = []  # what the addresses belong to
        self.places = np.array([self.addresses(block) for block in blocks])
        number, first = blocks[0].attention_norm.weight, stack_products(blocks[0])[0].weight
        self.dtype = number.dtype
        self.kinds = [numpy_kind(one.dtype) for one in (number, cast(Tensor, first))]

    def addresses(self, block: Block) -> list[int]:
        """A row of what `all_blocks` calls places."""
        qkv, out, both, down = (self.product(one) for one in stack_products(block))
        norms = [norm.weight.detach() for norm in (block.attention_norm, block.feed_forward_norm)]
        self.kept += norms
        return [norms[0].data_ptr(), *qkv, *out, norms[1].data_ptr(), *both, *down]

    def product(self, product: Any) -> list[int]:
        """Addresses of W (N, K) and its scales (N,) float32."""
        weight = cast(Tensor, product.weight)
        rounded = getattr(product, "scale", None)
        scale = torch.ones(len(weight)) if rounded is None else rounded.float()
        self.kept += weight, scale
        return [weight.data_ptr(), scale.data_ptr()]


class StackStep(CompiledStep):
    """All blocks of a generator, for steps of at most `FEW_ROWS` rows of an `ImageCache`."""

    def __init__(self, blocks: list[Block]):
        super().__init__(blocks)
        self.run = stack_step().all_blocks
        # No block of no rows compiles all of it.
        nothing = self.places[:0], np.empty((0, 2), np.int64), (0,) * 5, (0,) * 7
        self.run(*self.kinds, *nothing, self.epsilon, 1)

    def fits(self, x: Tensor, cache: Any) -> bool:
        """Whether x (R, n, D) are new positions after the prefix, and few enough."""
        taught = torch.is_grad_enabled() and x.requires_grad
        few = not taught and 0 < x.shape[0] * x.shape[1] <= FEW_ROWS
        return few and isinstance(cache, ImageCache) and cast(Any, cache.layers[0]).filled > 0

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, cache: ImageCache) -> Tensor:
        """Output (R, n, D) of the last block for x (R, n, D), which enters the cache."""
        check_input(x, self.dtype)
        layers = cast(list[FilledLayer], cache.layers)
        past, *_ = [layer.extend(x.shape[1]) for layer in layers]
        keys = [layer.buffers.data_ptr() for layer in layers]
        # Values come after the keys of all rows, also of those that have left the batch.
        values = layers[0].buffers.stride(0) * layers[0].buffers.element_size()
        places = np.array([(key, key + values) for key in keys])
        x, config = x.contiguous(), self.config
        out = torch.empty_like(x)
        given = tuple(one.data_ptr() for one in (x, out, cos, sin, cache.bias(len(x))))
        heads, width = config.num_attention_heads, config.head_dim
        sizes = *x.shape[:2], heads, width, config.intermediate_size, past, layers[0].room
        threads = torch.get_num_threads()
        self.run(*self.kinds, self.places, places, given, sizes, self.epsilon, threads)
        return out


class PairStep(CompiledStep):
    """Both stages of a `SemanticDetailHead`, one call each, for few rows."""

    def __init__(self, head: Any):  # SemanticDetailHead
        super().__init__(list(head.blocks))
        self.run, self.norm = stack_step().pair_stage, head.norm.weight.detach()
        shared = [self.linear(layer) for layer in (*head.compress[::2], *head.combine[::2])]
        self.layers = [
            np.array([*shared, self.linear(stage[0]), self.linear(stage[2])])
            for stage in (head.semantic, head.detail)
        ]
        # How many outputs they have.
        inner = [layer.out_features for layer in (*head.compress[::2], head.combine[0])]
        self.widths = [
            (*inner, getattr(stage[0], "out_features", 0), stage[2].out_features)
            for stage in (head.semantic, head.detail)
        ]
        nothing = self.places[:0], np.empty((0, 2), np.int64), self.layers[0], (0,) * 4, (0,) * 8
        self.run(*self.kinds, *nothing, self.widths[0], self.epsilon, 1)

    @staticmethod
    def takes(head: Any) -> bool:
        """Whether no layer is wrapped, and the compiled code is not that of an older version."""
        parts = head.compress, head.combine, head.semantic, head.detail
        linear = [layer for part in parts for layer in part[::2]]
        ours = all(isinstance(block.forward, StepBlock) for block in head.blocks)
        plain = all(isinstance(layer, (nn.Linear, nn.Identity)) for layer in linear)
        return ours and plain and hasattr(stack_step(), "pair_stage")

    def linear(self, layer: nn.Module) -> list[int]:
        """Addresses of weights, scales and biases; 0 where there are none."""
        if isinstance(layer, nn.Identity):
            return [0, 0, 0]
        product = cast(Any, layer.forward)
        self.kept += [] if product.bias is None else [product.bias]
        return [*self.product(product), 0 if product.bias is None else product.bias.data_ptr()]

    def fits(self, hidden: Tensor, count: int, chosen: Tensor | None, cache: Any) -> bool:
        """Whether `count` cells of hidden states (R, T, D) are few enough, both stages alike."""
        taught = torch.is_grad_enabled() and hidden.requires_grad
        few = not taught and 0 < 2 * len(hidden) * count <= FEW_ROWS
        if not few or not isinstance(cache, DynamicCache):
            return False
        # The second stage goes on from what the first one left.
        return isinstance(cache.layers[0], FilledLayer) if cache.layers else chosen is None

    def __call__(
        self, hidden: Tensor, index: Tensor, first: int, chosen: Tensor | None, cache: DynamicCache
    ) -> Tensor:
        """Logits (R, n, V) float32 of one stage at the cells from `first` on.

        Args:
            hidden: (R, T, D) states of all cells so far.
            index: (n, 12) numbers of the cells around, -1 outside.
            chosen: (R n, D) vectors of semantic codes; None asks for the first stage.
            cache: empty before the first stage, and given to the second one as it is then.
        """
        (rows, total, _), cells, config = hidden.shape, len(index), self.config
        heads, width = config.num_attention_heads, config.head_dim
        stage = 0 if chosen is None else 1
        # Context and state are two tokens, the semantic code is the third.
        x = (hidden if chosen is None else chosen).contiguous()
        check_input(x, self.dtype)
        if stage == 0:
            cache.layers += [FilledLayer(3) for _ in self.places]
            for layer in cast(list[FilledLayer], cache.layers):
                layer.take_room(x.new_empty(rows * cells, heads, 0, width))
        kept = cast(list[FilledLayer], cache.layers)
        for layer in kept:
            layer.extend(1 if stage else 2)
        caches = np.array([[part.data_ptr() for part in layer.buffers] for layer in kept])
        layers, widths = self.layers[stage], self.widths[stage]
        out = torch.empty(rows, cells, widths[-1])
        around = 0 if stage else index.data_ptr()
        given = x.data_ptr(), around, self.norm.data_ptr(), out.data_ptr()
        sizes = rows, cells, total, first, index.shape[1], heads, width, config.intermediate_size
        more = widths, self.epsilon, torch.get_num_threads()
        self.run(*self.kinds, self.places, caches, layers, given, sizes, *more)
        return out


def stack_products(block: Block) -> list:
    """The products of a block in the order in which it has them."""
    joined = cast(Any, block.feed_forward.forward)
    attention = cast(list[Any], [block.attention.qkv.forward, block.attention.out.forward])
    return [*attention, joined.both, joined.down]


def numpy_kind(dtype: torch.dtype) -> np.ndarray:
    """An empty array whose numbers are as long; uint16 for bfloat16."""
    kinds = {torch.bfloat16: np.uint16, torch.float32: np.float32, torch.int8: np.int8}
    return np.empty(0, kinds[dtype])


def check_input(x: Tensor, dtype: torch.dtype) -> None:
    """Raise a ValueError where a model was moved after it was optimized."""
    if x.device.type != "cpu" or x.dtype != dtype:
        raise ValueError(
            f"this model was optimized for {dtype} on a CPU and is given {x.dtype} on {x.device}; "
            "load it anew, move it, then optimize it."
        )


def stack_step() -> Any:
    """_stack_step.py, as `compiled_steps` finds its functions."""
    return importlib.import_module(STACK_STEP)


def compiled_steps(dtype: torch.dtype) -> dict[str, Callable]:
    """The functions of _small_steps.py; numba is imported here, not with the package.

    By name, because a file that came with weights from the Hub has no neighbors.
    """
    return importlib.import_module("codeclade.components._small_steps").compiled_for(dtype)
