"""CodecladeTransformer: LlamaGen's decoder, predicting an image's codes one position at a time.

LlamaGen (arXiv 2406.06525): RMSNorm, SwiGLU, 2-D rotary positions, a class or text prefix; IAR2:
pairs of codes and a head with local context. Must stay numerically equal to the published
c2i_*.pt, t2i_*.pt and IAR2-*.pth (see checkpoints/).

What a position holds and how its logits come out is the scheme's: see schemes.py and heads.py.

Shapes: B batch, P prefix positions (1 for a class), T tokens, L = P + T, D width, H heads,
h = D / H, V vocabulary, K coarse vocabulary, G token grid side.
What is float32 whatever the dtype stands in blocks.py.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from .blocks import (
    Block,
    DecoderModel,
    OutputFlags,
    causal_mask,
    decode_layers,
    rotation,
    wanted_outputs,
)
from .decoder_config import DecoderConfig
from .fields import Count, CountOrZero, Grid, Layers, Prefix, Weight, Width, Window
from .heads import OWN_LAYERS, ClusterTokenEmbedding
from .image_cache import ImageCache
from .prefixes import ClassPrefix, TextPrefix
from .schemes import SCHEMES, Scheme, scheme_class

__all__ = ["SCHEMES", "CodecladeConfig", "CodecladeOutput", "CodecladeTransformer"]


# Of an output, what Trainer does not gather over a whole evaluation.
KEYS_TO_IGNORE = [
    "cache",
    "past_key_values",
    "last_hidden_state",
    "condition_attention",
    "hidden_states",
    "attentions",
]


class CodecladeConfig(DecoderConfig):
    """Architecture of a `CodecladeTransformer`; the defaults are LlamaGen-B over 16384 ids.

    The fields of `DecoderConfig` are fields here too.

    Raises:
        ValueError: an unknown scheme, a two-stage scheme without coarse_vocab_size (or the other
            way round), or a width the heads do not divide into multiples of 4.
    """

    model_type = "codeclade"
    keys_to_ignore_at_inference = KEYS_TO_IGNORE

    def __init__(
        self,
        vocab_size: Count = 16384,  # V: number of ids N, of clusters K, or of detail codes
        scheme: str = "token",  # what a position holds; one of SCHEMES
        coarse_vocab_size: Count | None = None,  # two stages: K clusters or semantic codes
        grid_size: Grid = 16,  # G
        num_classes: CountOrZero = 1000,  # class-conditional models; the null class comes on top
        *,
        text_dim: Width | None = None,  # width of text features; makes the model text-conditional
        prefix_length: Prefix = 1,  # P: 1 for a class, 120 for LlamaGen's captions
        positions_per_cell: Window = 1,  # 2 in the published IAR2 weights: neighbors share an angle
        head_layers: Layers = 5,  # semantic_detail: blocks of the head
        head_window: Window = 2,  # semantic_detail: rows above and columns aside the head looks at
        head_mlp: bool = True,  # semantic_detail: a hidden layer before each output, as IAR2
        semantic_loss_weight: Weight = 1.0,  # semantic_detail: weight of the semantic stage
        **kwargs,
    ):
        # An unknown scheme is refused first; whether sizes fit it is asked once all fields stand.
        kind = scheme_class(scheme)
        self.vocab_size = vocab_size
        self.scheme = scheme
        self.coarse_vocab_size = coarse_vocab_size
        self.text_dim = text_dim
        self.prefix_length = prefix_length
        self.positions_per_cell = positions_per_cell
        self.head_layers = head_layers
        self.head_window = head_window
        self.head_mlp = head_mlp
        self.semantic_loss_weight = semantic_loss_weight
        super().__init__(grid_size, num_classes, **kwargs)
        kind.check_config(self)

    def check_loaded(self) -> None:
        """Raise a ValueError where a file's fields contradict each other."""
        if not self.text_dim and self.prefix_length != 1:
            raise ValueError(
                f"prefix_length={self.prefix_length} does not fit a class; it must be 1."
            )
        if not self.text_dim and not self.num_classes:
            raise ValueError("num_classes=0 needs a text_dim: there is nothing to condition on.")

    @property
    def num_stages(self) -> int:
        """Choices made at every position."""
        return len(scheme_class(self.scheme).stages)


def __getattr__(name: str):
    """What has moved to blocks.py can be had from here for one more version."""
    from . import blocks

    if name in ("Attention", "FeedForward", "eager_attention", "rotate"):
        message = f"codeclade.components.transformer.{name} is now in codeclade.components.blocks."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(blocks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass
class CodecladeOutput(ModelOutput):
    """What `CodecladeTransformer.forward` returns."""

    loss: Tensor | None = None  # mean cross-entropy a token (or pair) in nats
    logits: Tensor | None = None  # (B, L, V) float32; position P-1+t predicts token t
    cache: Cache | None = None  # what was given as past_key_values
    last_hidden_state: Tensor | None = None  # (B, L, D), what the head reads
    cluster_logits: Tensor | None = None  # cluster_token: (B, L, K), positions as `logits`
    semantic_logits: Tensor | None = None  # semantic_detail: (B, T, K); position t predicts pair t
    detail_logits: Tensor | None = None  # (B, T, V), given the true semantic code of pair t
    condition_attention: Tensor | None = None  # (B,) last query's share on the prefix
    hidden_states: tuple[Tensor, ...] | None = None  # (B, L, D) before each layer, and the last
    attentions: tuple[Tensor, ...] | None = None  # (B, H, L, S) of every layer

    @property
    def past_key_values(self) -> Cache | None:
        """`cache` under the name that transformers had for it before 5.24."""
        return self.cache


class CodecladeTransformer(DecoderModel):
    """Autoregressive transformer over the tokens of an image (LlamaGen, arXiv 2406.06525)."""

    config: CodecladeConfig
    config_class = CodecladeConfig
    base_model_prefix = "codeclade"
    main_input_name = "input_ids"
    _no_split_modules = ["Block", "TextPrefix", *OWN_LAYERS]  # noqa: RUF012
    _can_compile_fullgraph = True

    def __init__(self, config: CodecladeConfig):
        super().__init__(config)
        self.prefix = TextPrefix(config) if config.text_dim else ClassPrefix(config)
        # Decoder blocks are the same for all schemes; what surrounds them is the scheme's.
        scheme = self.scheme
        self.token_embedding = scheme.embedding()
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = scheme.norm()
        self.head = scheme.head()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # A model made on the meta device has no values yet, not even these.
        if isinstance(module, ClusterTokenEmbedding):
            init.zeros_(module.cluster_of)

    def token_tables(self) -> tuple[str, str]:
        """Names of the embedding and of the linear layer whose rows are the vocabulary V."""
        return self.scheme.token_tables

    def check_loaded(self) -> None:
        """Raise a ValueError where a file's fields or clusters contradict each other."""
        self.config.check_loaded()
        self.scheme.check_loaded(self)

    def null_labels(self, count: int) -> Tensor:
        """The null class (count,): what unconditional rows are given."""
        return torch.full((count,), self.config.num_classes, device=self.device)

    @property
    def scheme(self) -> Scheme:
        """What a position holds, as `config.scheme` names it."""
        return scheme_class(self.config.scheme)(self.config)

    def use_clusters(self, mapping: Tensor) -> None:
        """Give a "cluster_token" model the cluster (V,) of every id, `ClusterMap.mapping`.

        Raises:
            ValueError: another scheme or length, or clusters that are not exactly 0..K-1.
        """
        self.scheme.use_clusters(self.token_embedding, mapping)

    def stage_logits(
        self,
        hidden: Tensor,
        step: int | slice,
        chosen: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits float32 of one stage of one position, while images are sampled.

        Args:
            hidden: (B, T, D) `hidden_states` of positions P-1.. so far; later ones are not read.
                Schemes that do not read earlier states also take the last position alone, (B, 1,
                D), with step -1.
            step: which token is predicted, or a slice of n tokens.
            chosen: (B,) or (B, n): what the first of two stages chose for this token; None asks for
                the first stage's logits.
            cache: "semantic_detail" keeps the keys of its head from the first to the second stage
                in it; give a fresh `DynamicCache` for every token.

        Returns:
            (B, V) of a one-stage model; else (B, K) for the first stage, (B, V) for the second.
            Ids outside the cluster have -1e30. With a slice (B, n, K) and (B, n, V).

        Raises:
            ValueError: `chosen` given to a model with one stage.
        """
        # By way of `forward`, where hooks bring the head's weights to the device.
        return cast(Tensor, self(stage=(hidden, step, chosen, cache)).logits)

    def forward(
        self,
        input_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_logits: bool = True,
        output_condition_attention: bool = False,
        *,
        stage: tuple[Tensor, int, Tensor | None, Cache | None] | None = None,
        **asked: Unpack[OutputFlags],
    ) -> Any:
        """Hidden states at every position, and the logits of the next token.

        Args:
            input_ids: (B, T) tokens, (B, T, 2) of "semantic_detail", or None for the prefix alone.
            class_labels: (B,) class ids, `num_classes` for the null class. Give the condition
                (labels or text) with the first call; later calls go on from the cache.
            past_key_values: a transformers cache owned by the caller, extended in place.
            labels: tokens to predict, shaped like `input_ids`, which may leave the last one out;
                -100 counts for nothing.
            text_embeds: (B, P, text_dim) caption features of a text-conditional model.
            attention_mask: (B, positions so far) 1 where visible: hides a caption's padding.
            return_logits: False leaves the head out; ask `stage_logits` for one position instead.
            output_condition_attention: also return `condition_attention`; needs a cache.
            stage: what `stage_logits` is given; nothing else is read then.
            asked: output_hidden_states, output_attentions, return_dict as in transformers, the
                config's where None; attentions need `attn_implementation="eager"`.

        Returns:
            `CodecladeOutput`, or with `return_dict=False` a tuple of what it holds: logits
            (B, P+T, V), or (B, T, V) where the prefix is in the cache.
            "cluster_token": `ClusterTokenHead` says what they are. "semantic_detail" has
            semantic_logits (B, T, K) and detail_logits (B, T, V) of the pairs in labels or
            input_ids, in calls that give the condition.

        Raises:
            ValueError: neither tokens nor condition given, or more tokens than the grid holds.
        """
        if stage is not None:
            logits = self.scheme.predictor(self.head).stage_logits(*stage, self.token_embedding)
            return CodecladeOutput(logits=logits)
        wanted = wanted_outputs(self.config, **asked)
        # What is new goes through the layers: the condition in the first call, tokens in any.
        conditioned = class_labels is not None or text_embeds is not None
        x = self._embedded(input_ids, class_labels, text_embeds)  # (B, L, D)
        places = self._places(x, attention_mask, past_key_values)
        states = decode_layers(
            self.layers, x, (*places, past_key_values), wanted, output_condition_attention
        )
        last = self.norm(states.last)
        # Logits of all positions are V numbers each; sampling needs those of the last one alone.
        found: dict[str, Any] = {}
        if return_logits:
            given = last, labels, input_ids, self.token_embedding, conditioned
            found = self.scheme.predictor(self.head).teacher_forced(*given)
        return wanted.form(
            CodecladeOutput(
                **found,
                cache=past_key_values,
                last_hidden_state=last,
                condition_attention=states.prefix_share,
                hidden_states=(*states.inputs, last) if wanted.hidden_states else None,
                attentions=states.attentions,
            )
        )

    def _embedded(
        self, input_ids: Tensor | None, class_labels: Tensor | None, text_embeds: Tensor | None
    ) -> Tensor:
        """The prefix of a condition, then tokens, as vectors (B, L, D)."""
        parts = []
        if class_labels is not None:
            parts.append(self.prefix(class_labels))
        elif text_embeds is not None:
            parts.append(self.prefix(text_embeds.to(self.dtype)))
        if input_ids is not None:
            parts.append(self.token_embedding(input_ids))
        if not parts:
            raise ValueError("give input_ids, or a condition (class_labels or text_embeds).")
        parts = [part.to(parts[0].device) for part in parts]  # layers may be on several devices
        return self.token_dropout(torch.cat(parts, dim=1))

    def _places(
        self, x: Tensor, attention_mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Mask, cosines and sines of the positions of x (B, L, D), which come after the cache's."""
        # Positions go on where the cache ends, so that a later call turns by the right angles.
        past = cache.get_seq_length() if cache is not None else 0
        # A compiled static cache counts on the device; asking it would stop the stream every token.
        if not isinstance(past, Tensor):
            self._check_length(past + x.shape[1])
        # A cache made for sampling has tables for every position; the prefix is like any prompt.
        if isinstance(cache, ImageCache) and past:
            return cache.prepared(x.shape[1], x.dtype)
        # The form of the mask depends on the attention backend, which may need none at all.
        config, positions = self.config, torch.arange(x.shape[1], device=x.device) + past
        mask = causal_mask(config, x, positions, attention_mask, cache)
        cos, sin = rotation(
            positions,
            config.grid_size,
            config.head_dim,
            config.rope_theta,
            config.prefix_length,
            config.positions_per_cell,
        )
        return mask, cos, sin

    def _check_length(self, length: int) -> None:
        longest = self.config.prefix_length + self.config.num_tokens
        if length > longest:
            raise ValueError(
                f"{length} positions do not fit: grid_size={self.config.grid_size} has room for "
                f"{longest}, prefix included."
            )
