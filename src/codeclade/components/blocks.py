"""What the generator and the refiner are built of: LlamaGen's decoder blocks.

LlamaGen (arXiv 2406.06525): RMSNorm, SwiGLU, 2-D rotary positions. Must stay numerically equal to
the published c2i_*.pt, t2i_*.pt, IAR2-*.pth (see checkpoints/) and to DCPE's refine net (see
checkpoints/dcpe.py).

Shapes: B batch, P prefix positions, L sequence length, S keys in the cache, D width, H heads,
h = D / H, G token grid side.

In float32 whatever the dtype of the weights:

    rotation             `rotation` makes the angles so, `rotate` turns so
    RMSNorm statistics   inside torch's RMSNorm
    attention softmax    `eager_attention`, `Attention.prefix_share`; fused kernels do the same
    logits               every head, and the refiner's, before guidance, filters and draws
    loss                 of those logits
"""

import inspect
from typing import Any, NamedTuple, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, CacheLayerMixin, StaticCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import ModelOutput

from .decoder_config import DecoderConfig
from .loading import StrictLoading
from .prefixes import TextPrefix


def rotation(
    positions: Tensor,
    grid_size: int,
    head_dim: int,
    theta: float = 10000.0,
    prefix_length: int = 1,
    positions_per_cell: int = 1,
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (L, h) of 2-D rotary positions (L,), float32, for `rotate`.

    Sequence position p holds grid cell p - P in raster order; the first half of the pairs turns
    with the row, the second with the column. Prefix positions have cosine AND sine 0: their queries
    and keys vanish, which the published weights rely on. With `positions_per_cell` 2, as in IAR2's
    published weights, position p takes the angles of cell (p - P) // 2.
    """
    # A quarter of the head's width: pairs halve it, the two axes share what is left.
    quarter = head_dim // 4
    exponent = torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter
    frequencies = theta**-exponent  # (h/4,)
    cell = positions - prefix_length  # (L,)
    turned = cell // positions_per_cell
    row, column = turned // grid_size, turned % grid_size
    angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=-1)
    # The product hides the prefix, by a table rather than by a branch, so it compiles.
    visible = (cell >= 0).unsqueeze(-1)  # (L, 1)
    cos, sin = angles.cos() * visible, angles.sin() * visible  # (L, h/2)
    # Both entries of a pair have its angle; the first one gets minus the second's part.
    return cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (0,1), (2,3), ... of x (..., h) by `rotation`'s tables, which broadcast."""
    # Neighboring entries are a pair, as in the published weights; Llama pairs halves.
    wide = x.float()
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (wide * cos + swapped * sin).type_as(x)


# transformers 5.24 renamed the argument; older versions know the old name only.
CACHE_ARGUMENT = (
    "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
)


def causal_mask(
    config: PreTrainedConfig,
    x: Tensor,
    positions: Tensor,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
):
    """The mask that the config's attention backend wants, or None where it needs none.

    Args:
        x: (B, L, D) inputs of the first block.
        positions: (L,) of these inputs.
        attention_mask: (B, positions so far) 1 where visible.
        cache: keys of earlier positions.
    """
    named: dict[str, Any] = {CACHE_ARGUMENT: cache}
    return create_causal_mask(
        config=config,
        inputs_embeds=x,
        attention_mask=attention_mask,
        position_ids=positions.unsqueeze(0),
        **named,
    )


LONGEST_PLAIN = 320  # queries; plain attention keeps their scores for the gradient, (B, H, L, L)


def plain_is_faster(query: Tensor, mask: Tensor | None) -> bool:
    """Whether plain attention beats the fused kernel, which on a CPU in half precision packs all
    keys and values (B, H, S, h) anew for every call and has a slow gradient."""
    length = query.shape[2]
    few = length == 1 or (mask is not None and length <= 16)
    trained = query.requires_grad and length <= LONGEST_PLAIN
    return (few or trained) and query.device.type == "cpu" and query.dtype != torch.float32


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention of (B, H, L, h) tensors; also returns the probabilities (B, H, L, S).

    The mask is added to the scores, or says where they count if it is one of truth values; without
    one the module says whether several queries are causal, as for fused kernels.
    """
    scores = query * scaling @ key.transpose(-1, -2)  # (B, H, L, S)
    if attention_mask is None and module.is_causal and query.shape[2] > 1:
        scores = scores + scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
    elif attention_mask is not None:
        mask = attention_mask[..., : key.shape[-2]]
        if mask.dtype == torch.bool:  # finite, so that a row that sees nothing has no NaN
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
    # The kernel computes in float32 and rounds once.
    weights = F.dropout(scores.softmax(-1).type_as(query), dropout)
    return (weights @ value).transpose(1, 2), weights  # (B, L, H, h)


AnyCache = Cache | CacheLayerMixin | None  # of all layers, or of one


class Attention(nn.Module):
    """Multi-head causal self-attention with 2-D rotary positions.

    `plain` keeps to `eager_attention`: the batch of B * T short sequences of a head is larger than
    fused kernels are made for.
    """

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: DecoderConfig, layer_index: int, plain: bool = False):
        super().__init__()
        self.config, self.layer_idx, self.plain = config, layer_index, plain
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, cache: AnyCache
    ) -> tuple[Tensor, Tensor | None]:
        """Output (B, L, D) and, from `eager_attention` alone, the probabilities (B, H, L, S)."""
        heads = self.config.num_attention_heads
        mixed = self.qkv(x).unflatten(-1, (3, heads, -1))  # (B, L, 3, H, h)
        # Keys are rotated before they enter the cache, so a step turns its own positions only.
        turned = rotate(mixed[:, :, :2], cos[:, None, None], sin[:, None, None])
        query, key = turned.permute(2, 0, 3, 1, 4)  # (B, H, L, h)
        value = mixed[:, :, 2].transpose(1, 2)
        if isinstance(cache, CacheLayerMixin):
            key, value = cache.update(key, value)  # (B, H, S, h)
        elif cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        # A config has no implementation until a model is made with it; then it always has one.
        implementation = cast(str, self.config._attn_implementation)
        if self.plain or (implementation == "sdpa" and plain_is_faster(query, mask)):
            implementation = "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        scaling = self.config.head_dim**-0.5
        mixed, weights = attend(self, query, key, value, mask, scaling=scaling)  # (B, L, H, h)
        return self.dropout(self.out(mixed.flatten(2))), weights

    def prefix_share(
        self,
        x: Tensor,
        mask: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        cache: Cache | CacheLayerMixin,
    ) -> Tensor:
        """Share (B,) of the last query's attention that falls on the prefix, mean over heads.

        Computed beside the fused attention, from the query of x (B, L, D) and the cached keys.
        """
        heads = self.config.num_attention_heads
        # The newest key is in the cache already; only the query is missing, and only the last one.
        query = self.qkv(x[:, -1:]).unflatten(-1, (3, heads, -1))[:, :, 0].transpose(1, 2)
        query = rotate(query, cos[-1:], sin[-1:])  # (B, H, 1, h)
        layer = cache if isinstance(cache, CacheLayerMixin) else cache.layers[self.layer_idx]
        keys = cast(Tensor, cast(CacheLayerMixin, layer).keys)  # (B, H, S, h), of `forward`
        scores = (query @ keys.mT).float() * self.config.head_dim**-0.5  # (B, H, 1, S)
        # No mask means causal; places of a static cache that are not filled yet are hidden as well.
        visible = torch.arange(scores.shape[-1], device=x.device) < cache.get_seq_length()
        if mask is not None:
            last = mask[..., -1:, : scores.shape[-1]]
            visible = visible & (last if last.dtype == torch.bool else last >= 0)
        scores = scores.masked_fill(~visible, -torch.inf)
        weights = scores.softmax(-1)
        return weights[..., : self.config.prefix_length].sum(-1).mean((1, 2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.feed_forward_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class Block(GradientCheckpointingLayer):
    """Pre-norm decoder block."""

    def __init__(self, config: DecoderConfig, layer_index: int, plain: bool = False):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer_index, plain)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        cache: AnyCache,
        attentions: bool = False,
        prefix_share: bool = False,
    ) -> Any:
        """Output (B, L, D); a tuple with what else is asked for.

        Args:
            attentions: also return the attention's probabilities (B, H, L, S).
            prefix_share: also return `Attention.prefix_share`; needs a cache.
        """
        normed = self.attention_norm(x)
        mixed, weights = self.attention(normed, mask, cos, sin, cache)
        # Fused kernels do not return their weights, so the one row that IAR2's schedule needs is
        # computed a second time.
        share = None
        if prefix_share:
            kept = cast(Cache | CacheLayerMixin, cache)
            share = self.attention.prefix_share(normed, mask, cos, sin, kept)
        x = x + mixed  # (B, L, D)
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return (x, weights, share) if attentions or prefix_share else x


class OutputFlags(TypedDict, total=False):
    """Keyword arguments of every `forward`, as in transformers; None: the config's answer."""

    output_hidden_states: bool | None
    output_attentions: bool | None
    return_dict: bool | None


class Wanted(NamedTuple):
    """What a forward pass returns, as `OutputFlags` ask for it."""

    hidden_states: bool
    attentions: bool
    as_dict: bool

    def form(self, output: ModelOutput) -> Any:
        """The output as it is, or the tuple of what it holds."""
        return output if self.as_dict else output.to_tuple()


def wanted_outputs(
    config: PreTrainedConfig,
    output_hidden_states: bool | None = None,
    output_attentions: bool | None = None,
    return_dict: bool | None = None,
) -> Wanted:
    """What is asked for; the config's answer where an argument is None."""
    given = output_hidden_states, output_attentions, return_dict
    own = config.output_hidden_states, config.output_attentions, config.return_dict
    return Wanted(*(bool(b if a is None else a) for a, b in zip(given, own, strict=True)))


class LayerStates(NamedTuple):
    """What `decode_layers` returns."""

    last: Tensor  # (B, L, D) output of the last layer
    inputs: tuple[Tensor, ...]  # (B, L, D) of every layer, where asked for
    attentions: tuple[Tensor, ...] | None  # (B, H, L, S) of every layer, where asked for
    prefix_share: Tensor | None  # (B,) of the last layer, where asked for


def decode_layers(
    layers: nn.ModuleList, x: Tensor, inputs: tuple, wanted: Wanted, prefix_share: bool = False
) -> LayerStates:
    """x (B, L, D) through decoder blocks.

    Args:
        inputs: mask, cosines, sines and cache, the same for all of them.
        prefix_share: also the last block's `Attention.prefix_share`.
    """
    before, weights, share = [], [], None
    *places, cache = inputs
    # An optimized model has one call for all blocks, where its shapes fit and no more is asked for.
    step = getattr(layers, "step", None)
    more = wanted.hidden_states or wanted.attentions or prefix_share
    if step is not None and not more and step.fits(x, cache):
        return LayerStates(step(x, *places[1:], cache), (), None, None)
    # Blocks that are compiled alone share one graph, which must not depend on a layer's number.
    static = isinstance(cache, StaticCache) and not cache.offloading
    for index, layer in enumerate(layers):
        if wanted.hidden_states:
            before.append(x)
        asked = wanted.attentions, prefix_share and index == len(layers) - 1
        own = cache.layers[index] if static else cache
        output = layer(x, *places, own, *asked) if any(asked) else layer(x, *places, own)
        if any(asked):
            x, probabilities, share = output
            weights.append(probabilities)
        else:
            x = output
    # Fused kernels return none.
    attentions = tuple(weights) if wanted.attentions and weights[0] is not None else None
    return LayerStates(x, tuple(before), attentions, share)


class Output(nn.Linear):
    """Last layer of a head; starts at zero, so that the first loss is exactly ln V."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__(width, vocab_size, bias=False)


def init_weights(module: nn.Module, std: float) -> None:
    """Initialize one module: normal with `std`, heads zero, norms one."""
    if isinstance(module, Output):
        init.zeros_(module.weight)
    elif isinstance(module, (nn.Linear, nn.Embedding)):
        init.normal_(module.weight, std=std)
        bias = getattr(module, "bias", None)
        if bias is not None:
            init.zeros_(bias)
    elif isinstance(module, nn.RMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, TextPrefix):
        init.normal_(module.null, std=module.null.shape[1] ** -0.5)


class DecoderModel(StrictLoading, PreTrainedModel):
    """What generator and refiner promise transformers and diffusers as models made of `Block`s."""

    supports_gradient_checkpointing = True
    # Lists that the libraries read: modules that stay on one device, and those to compile alone.
    _no_split_modules = ["Block"]  # noqa: RUF012
    _repeated_blocks = ["Block"]  # noqa: RUF012
    _supports_group_offloading = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config.initializer_range)

    def token_tables(self) -> tuple[str, str]:
        """Names of the embedding that takes tokens and of the linear layer that predicts them."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of `token_tables`."""
        return self.get_submodule(self.token_tables()[0])

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in place of `get_input_embeddings()`."""
        self.set_submodule(self.token_tables()[0], value)

    def get_output_embeddings(self) -> nn.Module:
        """The linear layer of `token_tables`."""
        return self.get_submodule(self.token_tables()[1])

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another module in place of `get_output_embeddings()`."""
        self.set_submodule(self.token_tables()[1], new_embeddings)

    def resize_token_embeddings(self, *args, **kwargs):
        """There is no other number of tokens: they are a tokenizer's codes, or their clusters.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"tokens of {type(self).__name__} are the codes of a VQModel or their clusters, and "
            "stay as many as they are; make a new model for another codebook or cluster map."
        )

    def compile_repeated_blocks(self, *args, **kwargs) -> None:
        """Compile the blocks, which are all the same, instead of the whole model.

        The arguments are those of `torch.compile`.
        """
        for module in self.modules():
            if type(module).__name__ in self._repeated_blocks:
                module.compile(*args, **kwargs)
