"""ImageCache: keys and values of the images that are being sampled, and what every step needs.

Made for decoding that is not compiled: positions are counted on the host, so attention is given the
filled part of the cache alone, without a mask where one token is added; rotary tables are made once
for all positions. `compiled` says where transformers' StaticCache is needed instead, whose shapes
never change; `KeptCaches` keeps it for the next call, so that its places do not change either.

Shapes: R rows of the batch, P prefix positions, T tokens, H heads, h width of a head, n new
positions.
"""

from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, StaticCache, StaticLayer

from .blocks import rotation
from .decoder_config import DecoderConfig


class FilledLayer(DynamicLayer):
    """Keys and values of one layer; room for all positions is taken once, by the first ones.

    `keys` and `values` are views (R, H, filled, h).
    """

    def __init__(self, room: int):
        super().__init__()
        self.room, self.filled = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> Any:
        """Add (R, H, n, h) of both; returns all that is filled."""
        if not self.is_initialized:
            self.take_room(key_states)
        first = self.extend(key_states.shape[2])
        self.buffers[0, :, :, first : self.filled] = key_states
        self.buffers[1, :, :, first : self.filled] = value_states
        self.keys, self.values = self.buffers[:, :, :, : self.filled].unbind(0)
        return self.keys, self.values

    def take_room(self, like: Tensor) -> None:
        """Take room for keys and values of all positions, like (R, H, any, h)."""
        self.lazy_initialization(like, like)
        rows, heads, _, width = like.shape
        self.buffers = like.new_empty(2, rows, heads, self.room, width)

    def extend(self, count: int) -> int:
        """Count positions that the caller fills in `buffers` (2, R, H, room, h); the first one."""
        first, self.filled = self.filled, self.filled + count
        return first

    def get_seq_length(self) -> int:
        return self.filled


class ImageCache(Cache):
    """Keys and values of all layers, for `prefill` and `decode_one_token`.

    Args:
        config: the generator's.
        device: where it samples.
        attention_mask: (R, P+T) 1 where visible, where the condition has one.
    """

    def __init__(
        self,
        config: DecoderConfig,
        device: torch.device | str = "cpu",
        attention_mask: Tensor | None = None,
    ):
        room = config.prefix_length + config.num_tokens
        super().__init__(layers=[FilledLayer(room) for _ in range(config.num_hidden_layers)])
        self.cos, self.sin = rotation(
            torch.arange(room, device=device),
            config.grid_size,
            config.head_dim,
            config.rope_theta,
            config.prefix_length,
            config.positions_per_cell,
        )
        self.hidden = None if attention_mask is None else attention_mask[:, None, None] == 0
        self.added: Tensor | None = None

    def prepared(self, count: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor, Tensor]:
        """Mask, cosines and sines for the next `count` positions, after the prefix.

        Returns:
            The mask to add to scores (R, H, n, S), None where all is visible, and tables (n, h).
        """
        past = cast(int, self.get_seq_length())
        seen = past + count
        mask = None
        # One new position sees all that is filled; several do not see each other's future.
        if count > 1:
            mask = self.cos.new_full((count, seen), -torch.inf, dtype=dtype).triu(past + 1)
        if self.hidden is not None:
            hidden = self.hidden[..., :seen]  # (R, 1, 1, S)
            mask = self.cos.new_zeros((), dtype=dtype) if mask is None else mask
            mask = mask.masked_fill(hidden, -torch.inf)
        return mask, self.cos[past:seen], self.sin[past:seen]

    def bias(self, rows: int) -> Tensor:
        """What is added to the scores of every position (R, P+T): -inf where hidden, else 0."""
        if self.added is None or len(self.added) != rows:
            self.added = torch.zeros(rows, len(self.cos), device=self.cos.device)
            if self.hidden is not None:
                self.added.masked_fill_(self.hidden.flatten(1), -torch.inf)
        return self.added

    def keep_positions(self, count: int) -> None:
        """Forget all but the first `count` positions."""
        for layer in cast(list[FilledLayer], self.layers):
            layer.filled = count

    def keep_rows(self, count: int) -> None:
        """Forget all but the first `count` rows, as when guidance ends."""
        for layer in cast(list[FilledLayer], self.layers):
            layer.buffers = layer.buffers[:, :count]
        if self.hidden is not None:
            self.hidden = self.hidden[:count]


def compiled(model: nn.Module) -> bool:
    """Whether a model or a part of it runs by torch.compile, which wants shapes that stay."""
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in model.modules()):
        return True
    return hasattr(model, "_orig_mod") or hasattr(model.forward, "_torchdynamo_orig_callable")


class FixedLayer(StaticLayer):
    """A static layer whose place in memory is not one that compiled code asks for.

    Layers then share the graph of a block. CUDA graphs are recorded anew for another place.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take room for all positions; keys and values are (R, H, n, h)."""
        rows, heads, _, width = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(rows, heads, self.max_cache_len, width)
        self.values = torch.zeros_like(self.keys)
        self.cumulative_length = self.cumulative_length.to(self.device)
        for tensor in (self.keys, self.values, self.cumulative_length):
            torch._dynamo.mark_static_address(tensor, guard=False)
        self.is_initialized = True


class FixedCache(StaticCache):
    """Room for all positions of R rows of images, taken at once."""

    def __init__(self, config: DecoderConfig, rows: int, dtype: torch.dtype, device: torch.device):
        room = config.prefix_length + config.num_tokens
        super().__init__(config, max_cache_len=room)
        empty = torch.empty(rows, config.num_attention_heads, 0, config.head_dim, dtype=dtype)
        self.layers = [FixedLayer(room) for _ in range(config.num_hidden_layers)]
        for layer in self.layers:
            layer.lazy_initialization(empty.to(device), empty)


class KeptCaches:
    """The caches of compiled generators, one each: taken for a call and given back after it."""

    def __init__(self):
        self.caches: WeakKeyDictionary[nn.Module, tuple[tuple, FixedCache]] = WeakKeyDictionary()

    def take(self, model: nn.Module, rows: int, device: torch.device) -> StaticCache:
        """The cache of the last call where it fits, else a new one; empty."""
        config, dtype = cast(Any, model).config, cast(torch.dtype, model.dtype)
        # Autocast and weights in eight bits compute keys in another dtype than the model's.
        if dtype.itemsize < 2 or torch.is_autocast_enabled(device.type):
            return StaticCache(config, max_cache_len=config.prefix_length + config.num_tokens)
        # Tensors of inference mode cannot be written to outside of it.
        kind = rows, dtype, device, torch.is_inference_mode_enabled()
        known, cache = self.caches.pop(model, (None, None))
        if cache is None or known != kind:
            return FixedCache(config, rows, dtype, device)
        cache.reset()
        return cache

    def give_back(self, model: nn.Module, cache: Cache) -> None:
        """Keep a cache for the next call."""
        if isinstance(cache, FixedCache):
            layer = cast(FixedLayer, cache.layers[0])
            keys = cast(Tensor, layer.keys)
            kind = len(keys), keys.dtype, keys.device, keys.is_inference()
            self.caches[model] = kind, cache


KEPT = KeptCaches()
