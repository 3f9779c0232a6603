"""CodecladeTransformer: LlamaGen's decoder, predicting codebook ids or clusters token by token.

LlamaGen (arXiv 2406.06525): RMSNorm, SwiGLU, 2-D rotary positions, a class or text prefix.
Must stay numerically equal to the published c2i_*.pt and t2i_*.pt (see hub/convert.py).

Shapes: B batch, P prefix positions (1 for a class), T tokens, L = P + T, D width, H heads,
h = D / H, V vocabulary, G token grid side.
Float32 whatever the dtype: rotation, RMSNorm statistics, logits, loss.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

SCHEMES = ("token", "cluster")


class CodecladeConfig(PreTrainedConfig):
    """Architecture of a `CodecladeTransformer`; the defaults are LlamaGen-B over 16384 ids.

    Raises:
        ValueError: an unknown scheme, or a width the heads do not divide into multiples of 4.
    """

    model_type = "codeclade"

    def __init__(
        self,
        vocab_size: int = 16384,  # V: number of ids N, or of clusters K
        scheme: str = "token",  # what the vocabulary is: "token" ids or "cluster" numbers
        grid_size: int = 16,  # G
        num_classes: int = 1000,  # class-conditional models; the null class comes on top
        text_dim: int | None = None,  # width of text features; makes the model text-conditional
        prefix_length: int = 1,  # P: 1 for a class, 120 for LlamaGen's captions
        hidden_size: int = 768,  # D
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,  # H
        intermediate_size: int = 2048,  # SwiGLU width
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        token_dropout: float = 0.1,  # dropouts act in training only
        residual_dropout: float = 0.1,
        feed_forward_dropout: float = 0.1,
        class_dropout: float = 0.1,  # share of conditions replaced by the null condition
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if scheme not in SCHEMES:
            raise ValueError(f"scheme {scheme!r} is unknown; use one of {', '.join(SCHEMES)}.")
        if hidden_size % (4 * num_attention_heads):
            raise ValueError(
                f"hidden_size={hidden_size} must be a multiple of 4 * num_attention_heads="
                f"{4 * num_attention_heads}, for the two rotation axes."
            )
        self.vocab_size = vocab_size
        self.scheme = scheme
        self.grid_size = grid_size
        self.num_classes = num_classes
        self.text_dim = text_dim
        self.prefix_length = prefix_length
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.token_dropout = token_dropout
        self.residual_dropout = residual_dropout
        self.feed_forward_dropout = feed_forward_dropout
        self.class_dropout = class_dropout
        self.initializer_range = initializer_range
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @property
    def num_key_value_heads(self) -> int:
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_tokens(self) -> int:
        """T of a whole image."""
        return self.grid_size**2


@dataclass
class CodecladeOutput(ModelOutput):
    """What `CodecladeTransformer.forward` returns."""

    loss: Tensor | None = None  # mean cross-entropy in nats
    logits: Tensor | None = None  # (B, L, V) float32; position P-1+t predicts token t
    past_key_values: Cache | None = None


def rotation(positions: Tensor, config: CodecladeConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, h/2) of 2-D rotary positions, float32.

    Sequence position p holds grid cell p - P in raster order; the first half of the pairs turns with
    the row, the second with the column. Prefix positions have cosine AND sine 0: their queries and
    keys vanish, which the published weights rely on.
    """
    quarter = config.head_dim // 4
    exponent = torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter
    frequencies = config.rope_theta**-exponent
    cell = positions - config.prefix_length
    row, column = cell // config.grid_size, cell % config.grid_size
    angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=-1)
    visible = (cell >= 0).unsqueeze(-1)
    return angles.cos() * visible, angles.sin() * visible


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (0,1), (2,3), ... of x (B, H, L, h) by angles given as (L, h/2)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).type_as(x)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention of (B, H, L, h) tensors; also returns the probabilities (B, H, L, S)."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).type_as(query), dropout)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Multi-head causal self-attention with 2-D rotary positions."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: CodecladeConfig, layer_index: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_index
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, cache) -> Tensor:
        heads = self.config.num_attention_heads
        query, key, value = self.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)  # (B, H, L, h)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        scaling = self.config.head_dim**-0.5
        mixed, _ = attend(self, query, key, value, mask, scaling=scaling)  # (B, L, H, h)
        return self.dropout(self.out(mixed.flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: CodecladeConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.feed_forward_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class Block(GradientCheckpointingLayer):
    """Pre-norm decoder block."""

    def __init__(self, config: CodecladeConfig, layer_index: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer_index)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, cache) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, cos, sin, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class ClassPrefix(nn.Module):
    """Class label to one prefix vector; row `num_classes` is the null class."""

    def __init__(self, config: CodecladeConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_classes + 1, config.hidden_size)
        self.null, self.drop = config.num_classes, config.class_dropout

    def forward(self, class_labels: Tensor) -> Tensor:
        if self.training and self.drop:
            dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.drop
            class_labels = class_labels.masked_fill(dropped, self.null)
        return self.embedding(class_labels).unsqueeze(1)  # (B, 1, D)


class TextPrefix(nn.Module):
    """Text features (B, P, text_dim) to prefix vectors; `null` is the learned empty caption."""

    def __init__(self, config: CodecladeConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.text_dim, config.hidden_size, bias=False)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.null = nn.Parameter(torch.empty(config.prefix_length, config.text_dim))
        self.drop = config.class_dropout

    def forward(self, text_embeds: Tensor) -> Tensor:
        if self.training and self.drop:
            dropped = torch.rand(len(text_embeds), 1, 1, device=text_embeds.device) < self.drop
            text_embeds = torch.where(dropped, self.null.to(text_embeds), text_embeds)
        return self.fc2(F.gelu(self.fc1(text_embeds), approximate="tanh"))  # (B, P, D)


class CodecladeTransformer(PreTrainedModel):
    """Autoregressive transformer over the tokens of an image (LlamaGen, arXiv 2406.06525)."""

    config_class = CodecladeConfig
    base_model_prefix = "codeclade"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: CodecladeConfig):
        super().__init__(config)
        self.prefix = TextPrefix(config) if config.text_dim else ClassPrefix(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.head:
            init.zeros_(module.weight)  # the first loss is exactly ln V
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, TextPrefix):
            init.normal_(module.null, std=self.config.text_dim**-0.5)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but strict: a missing or unexpected weight is an error, not a warning.

        Raises:
            ValueError: naming the weights.
        """
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[problem]:
                names = ", ".join(sorted(str(key) for key in report[problem])[:5])
                raise ValueError(f"{args[0]} has {problem.replace('_', ' ')}: {names}.")
        return (model, report) if output_loading_info else model

    def null_labels(self, count: int) -> Tensor:
        """The null class (count,): what unconditional rows are given."""
        return torch.full((count,), self.config.num_classes, device=self.device)

    def forward(
        self,
        input_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> CodecladeOutput:
        """Logits of the next token at every position.

        Args:
            input_ids: (B, T) tokens, or None for the prefix alone.
            class_labels: (B,) class ids, `num_classes` for the null class. Give the condition
                (labels or text) with the first call; later calls go on from the cache.
            past_key_values: a transformers cache owned by the caller, extended in place.
            labels: (B, T) tokens to predict; `input_ids` may leave the last one out.
            text_embeds: (B, P, text_dim) caption features of a text-conditional model.
            attention_mask: (B, positions so far) 1 where visible: hides a caption's padding.

        Returns:
            `CodecladeOutput`: logits (B, P+T, V), or (B, T, V) where the prefix is in the cache.

        Raises:
            ValueError: neither tokens nor condition given, or more tokens than the grid holds.
        """
        parts = []
        if class_labels is not None:
            parts.append(self.prefix(class_labels))
        elif text_embeds is not None:
            parts.append(self.prefix(text_embeds.to(self.dtype)))
        if input_ids is not None:
            parts.append(self.token_embedding(input_ids))
        if not parts:
            raise ValueError("give input_ids, or a condition (class_labels or text_embeds).")
        x = self.token_dropout(torch.cat(parts, dim=1))  # (B, L, D)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(x.shape[1], device=x.device) + past
        if not isinstance(past, Tensor):
            self._check_length(past + x.shape[1])
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=positions.unsqueeze(0),
        )
        cos, sin = rotation(positions, self.config)
        for layer in self.layers:
            x = layer(x, mask, cos, sin, past_key_values)
        logits = self.head(self.norm(x)).float()
        loss = None
        if labels is not None:
            first = self.config.prefix_length - 1
            predicted = logits[:, first : first + labels.shape[1]]
            loss = F.cross_entropy(predicted.flatten(0, 1), labels.flatten())
        return CodecladeOutput(loss=loss, logits=logits, past_key_values=past_key_values)

    def _check_length(self, length: int) -> None:
        longest = self.config.prefix_length + self.config.num_tokens
        if length > longest:
            raise ValueError(
                f"{length} positions do not fit: grid_size={self.config.grid_size} has room for "
                f"{longest}, prefix included."
            )
