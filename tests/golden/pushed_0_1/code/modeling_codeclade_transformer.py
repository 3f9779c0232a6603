"""CodecladeTransformer: LlamaGen's decoder, predicting an image's codes one position at a time.

LlamaGen (arXiv 2406.06525): RMSNorm, SwiGLU, 2-D rotary positions, a class or text prefix; IAR2:
pairs of codes and a head with local context. Must stay numerically equal to the published
c2i_*.pt, t2i_*.pt and IAR2-*.pth (see hub/convert.py).

Schemes, by stages of one position: "token" (an id), "cluster" (a cluster), "cluster_token" (a
cluster, then an id of it), "semantic_detail" (a semantic code, then a detail code).

Shapes: B batch, P prefix positions (1 for a class), T tokens, L = P + T, D width, H heads,
h = D / H, V vocabulary, K coarse vocabulary, G token grid side, S keys seen so far.
Float32 whatever the dtype: rotation, RMSNorm statistics, logits, loss.
"""

# codeclade 0.1.0 (MIT licence), put together from src/codeclade/components/ (heads.py, loading.py,
# transformer.py), so that this repository loads where codeclade is not installed.

from dataclasses import dataclass
from typing import Any

from transformers import initialization as init
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput


class Output(nn.Linear):
    """Last layer of a head; starts at zero, so that the first loss is exactly ln V."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__(width, vocab_size, bias=False)


class TokenHead(Output):
    """Logits of the ids or clusters: one linear layer."""

    def __init__(self, config):
        super().__init__(config.hidden_size, config.vocab_size)
        self.first = config.prefix_length - 1

    def teach(self, hidden: Tensor, labels: Tensor | None, _, embedding: nn.Module) -> dict:
        logits = self(hidden).float()
        if labels is None:
            return {"logits": logits}
        predicted = logits[:, self.first : self.first + labels.shape[1]]
        return {
            "logits": logits,
            "loss": F.cross_entropy(predicted.flatten(0, 1), labels.flatten()),
        }


def cluster_logsumexp(logits: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    """log sum_{i in c} exp(l_i) for every cluster c: (..., K) from logits (..., V).

    Args:
        clusters: (V,) cluster of every entry; sizes may differ, an empty cluster has -inf.
    """
    index = clusters.expand_as(logits)
    empty = logits.new_zeros(*logits.shape[:-1], num_clusters)
    peak = torch.full_like(empty, -torch.inf).scatter_reduce(-1, index, logits.detach(), "amax")
    return peak + empty.scatter_add(-1, index, (logits - peak[..., clusters]).exp()).log()


class ClusterTokenEmbedding(nn.Module):
    """Ids to vectors: u_i = E_token[i] + E_cluster[c(i)], so members of a cluster share a part.

    Buffer `cluster_of` (V,): c(i), saved with the weights.
    """

    def __init__(self, config):
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.cluster = nn.Embedding(config.coarse_vocab_size, config.hidden_size)
        self.register_buffer("cluster_of", torch.zeros(config.vocab_size, dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.cluster(self.cluster_of[ids])


class ClusterTokenHead(nn.Module):
    """A cluster, then one of its ids, with an exact likelihood.

        p(i | h) = p(c | h) p(i | h, c)                       with c = c(i), the cluster of id i
        p(c | h) = exp(a_c) / sum_k exp(a_k)                                   a = A h, (K,)
        p(i | h, c) = [c(i) = c] exp(l_i) / sum_{j in c} exp(l_j)              l = W h, (V,)

    h is the normalised last hidden state. Loss: -log p(i | h), the joint likelihood; a fresh model
    has ln K + mean ln|c(i)|. `logits` of a whole forward pass are log p(i | h) of every id i, so
    their softmax is the model's distribution; `cluster_logits` are a.
    """

    def __init__(self, config):
        super().__init__()
        self.clusters = Output(config.hidden_size, config.coarse_vocab_size)
        self.tokens = Output(config.hidden_size, config.vocab_size)
        self.first = config.prefix_length - 1

    def teach(self, hidden: Tensor, labels: Tensor | None, _, embedding: nn.Module) -> dict:
        cluster_of, coarse = embedding.cluster_of, self.clusters(hidden).float()
        fine = self.tokens(hidden).float()
        shift = coarse.log_softmax(-1) - cluster_logsumexp(fine, cluster_of, coarse.shape[-1])
        logits = fine + shift[..., cluster_of]
        output = {"logits": logits, "cluster_logits": coarse}
        if labels is not None:
            predicted = logits[:, self.first : self.first + labels.shape[1]]
            output["loss"] = -predicted.gather(-1, labels.unsqueeze(-1)).mean()
        return output

    def stage_logits(self, hidden, step: int, chosen: Tensor | None, cache, embedding) -> Tensor:
        if chosen is None:
            return self.clusters(hidden[:, step]).float()
        outside = embedding.cluster_of != chosen.unsqueeze(-1)  # (B, V)
        # Finite, so that guidance between two masked rows stays a number.
        return self.tokens(hidden[:, step]).float().masked_fill(outside, -1e30)


class SemanticDetailEmbedding(nn.Module):
    """Pairs (B, T, 2) of a semantic and a detail code to one vector each (IAR2's fusion)."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.semantic = nn.Embedding(config.coarse_vocab_size, width)
        self.detail = nn.Embedding(config.vocab_size, width)
        self.mix = nn.Sequential(
            nn.Linear(2 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        semantic, detail = pairs.unbind(-1)
        return self.mix(torch.cat([self.semantic(semantic), self.detail(detail)], dim=-1))


def neighbours(cells: Tensor, grid_size: int, window: int) -> Tensor:
    """Raster cells (n, m) that come before `cells` (n,) in a window, -1 where outside the grid.

    In order: `window` rows above with 2 * window + 1 columns each, then `window` cells to the left.
    """
    span = torch.arange(-window, window + 1, device=cells.device)
    row, column = (grid.flatten() for grid in torch.meshgrid(span, span, indexing="ij"))
    earlier = window * (2 * window + 1) + window
    row = (cells // grid_size).unsqueeze(-1) + row[:earlier]
    column = (cells % grid_size).unsqueeze(-1) + column[:earlier]
    inside = (row >= 0) & (column >= 0) & (column < grid_size)
    return torch.where(inside, row * grid_size + column, -1)


class SemanticDetailHead(nn.Module):
    """IAR2's head: blocks over [local context g, hidden state h, semantic code E1(k)], causal.

    g joins the compressed hidden states of the 12 cells around; the second token gives the semantic
    logits, the third, which has seen the semantic code, the detail logits.
    """

    def __init__(self, config, blocks: list[nn.Module]):
        super().__init__()
        self.config, width = config, config.hidden_size
        count = 2 * config.head_window * (config.head_window + 1)
        self.compress = nn.Sequential(
            nn.Linear(width, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, width // count, bias=False),
        )
        self.combine = nn.Sequential(
            nn.Linear(count * (width // count), 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width, bias=False),
        )
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, config.rms_norm_eps)
        for name, size in (("semantic", config.coarse_vocab_size), ("detail", config.vocab_size)):
            layers = nn.Linear(width, 2 * width), nn.GELU(), Output(2 * width, size)
            self.add_module(name, nn.Sequential(*layers))

    def run(self, x: Tensor, start: int, cache: Cache | None) -> Tensor:
        """Blocks and norm on tokens start.. of the three, x (B, n, D)."""
        count = x.shape[1]
        # The first token has no rotation at all (q = k = 0), the other two an angle of zero.
        cos = (torch.arange(start, start + count, device=x.device) > 0).float().unsqueeze(-1)
        mask = torch.full((count, start + count), -torch.inf, dtype=x.dtype, device=x.device)
        mask = mask.triu(start + 1)
        for block in self.blocks:
            x = block(x, mask, cos, torch.zeros_like(cos), cache)
        return self.norm(x)

    def teach(self, hidden, labels: Tensor | None, pairs: Tensor | None, embedding) -> dict:
        known = pairs if labels is None else labels
        if known is None:
            return {}
        first, count = self.config.prefix_length - 1, known.shape[1]
        hidden = hidden[:, first : first + count]
        cells = torch.arange(count, device=hidden.device)
        index = neighbours(cells, self.config.grid_size, self.config.head_window)
        around = self.compress(F.pad(hidden, (0, 0, 0, 1)))[:, index]  # index -1 is the zero row
        local = self.combine(around.flatten(-2))
        x = torch.stack([local, hidden, embedding.semantic(known[..., 0])], dim=2)  # (B, T, 3, D)
        x = self.run(x.flatten(0, 1), 0, None).unflatten(0, (-1, count))
        semantic, detail = self.semantic(x[:, :, 1]).float(), self.detail(x[:, :, 2]).float()
        output = {"semantic_logits": semantic, "detail_logits": detail}
        if labels is not None:
            coarse = F.cross_entropy(semantic.flatten(0, 1), labels[..., 0].flatten())
            fine = F.cross_entropy(detail.flatten(0, 1), labels[..., 1].flatten())
            output["loss"] = self.config.semantic_loss_weight * coarse + fine
        return output

    def stage_logits(self, hidden, step: int, chosen: Tensor | None, cache, embedding) -> Tensor:
        if chosen is not None:
            return self.detail(
                self.run(embedding.semantic(chosen)[:, None], 2, cache)[:, 0]
            ).float()
        cell = torch.tensor([step], device=hidden.device)
        index = neighbours(cell, self.config.grid_size, self.config.head_window)[0]
        around = hidden[:, index] * (index >= 0).unsqueeze(-1)  # (B, 12, D)
        local = self.combine(self.compress(around).flatten(-2))
        x = self.run(torch.stack([local, hidden[:, step]], dim=1), 0, cache)
        return self.semantic(x[:, 1]).float()


class StrictLoading:
    """Mixin before diffusers' or transformers' model class: incomplete weights are an error."""

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in the parent class, but strict: a missing or unexpected weight is no mere warning.

        Raises:
            ValueError: naming the weights.
        """
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[problem]:
                names = ", ".join(sorted(str(key) for key in report[problem])[:5])
                raise ValueError(f"the checkpoint has {problem.replace('_', ' ')}: {names}.")
        return (model, report) if output_loading_info else model

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs):
        """diffusers reads config.json here; `auto_map` is for AutoModel, so it needs no warning."""
        config_dict = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return super().extract_init_dict(config_dict, **kwargs)


TWO_STAGES = ("cluster_token", "semantic_detail")


SCHEMES = ("token", "cluster", *TWO_STAGES)


class CodecladeConfig(PreTrainedConfig):
    """Architecture of a `CodecladeTransformer`; the defaults are LlamaGen-B over 16384 ids.

    Raises:
        ValueError: an unknown scheme, a two-stage scheme without coarse_vocab_size (or the other
            way round), or a width the heads do not divide into multiples of 4.
    """

    model_type = "codeclade"

    def __init__(
        self,
        vocab_size: int = 16384,  # V: number of ids N, of clusters K, or of detail codes
        scheme: str = "token",  # what a position holds; one of SCHEMES
        coarse_vocab_size: int | None = None,  # two stages: K clusters or semantic codes
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
        positions_per_cell: int = 1,  # 2 in the published IAR2 weights: neighbours share an angle
        head_layers: int = 5,  # semantic_detail: blocks of the head
        head_window: int = 2,  # semantic_detail: rows above and columns aside the head looks at
        semantic_loss_weight: float = 1.0,  # semantic_detail: weight of the semantic stage
        token_dropout: float = 0.1,  # dropouts act in training only
        residual_dropout: float = 0.1,
        feed_forward_dropout: float = 0.1,
        class_dropout: float = 0.1,  # share of conditions replaced by the null condition
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if scheme not in SCHEMES:
            raise ValueError(f"scheme {scheme!r} is unknown; use one of {', '.join(SCHEMES)}.")
        if (scheme in TWO_STAGES) != (coarse_vocab_size is not None):
            raise ValueError(
                f"coarse_vocab_size={coarse_vocab_size} does not fit scheme {scheme!r}: "
                f"{' and '.join(TWO_STAGES)} need a number, the other schemes have none."
            )
        if hidden_size % (4 * num_attention_heads):
            raise ValueError(
                f"hidden_size={hidden_size} must be a multiple of 4 * num_attention_heads="
                f"{4 * num_attention_heads}, for the two rotation axes."
            )
        self.vocab_size = vocab_size
        self.scheme = scheme
        self.coarse_vocab_size = coarse_vocab_size
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
        self.positions_per_cell = positions_per_cell
        self.head_layers = head_layers
        self.head_window = head_window
        self.semantic_loss_weight = semantic_loss_weight
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
    def num_stages(self) -> int:
        """Choices made at every position."""
        return 2 if self.scheme in TWO_STAGES else 1

    @property
    def num_tokens(self) -> int:
        """T of a whole image."""
        return self.grid_size**2


@dataclass
class CodecladeOutput(ModelOutput):
    """What `CodecladeTransformer.forward` returns."""

    loss: Tensor | None = None  # mean cross-entropy a token (or pair) in nats
    logits: Tensor | None = None  # (B, L, V) float32; position P-1+t predicts token t
    past_key_values: Cache | None = None
    cluster_logits: Tensor | None = None  # cluster_token: (B, L, K), positions as `logits`
    semantic_logits: Tensor | None = None  # semantic_detail: (B, T, K); position t predicts pair t
    detail_logits: Tensor | None = None  # (B, T, V), given the true semantic code of pair t
    hidden_states: Tensor | None = None  # (B, L, D), what the head reads
    condition_attention: Tensor | None = None  # (B,) last query's share on the prefix


def rotation(positions: Tensor, config: CodecladeConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, h/2) of 2-D rotary positions, float32.

    Sequence position p holds grid cell p - P in raster order; the first half of the pairs turns
    with the row, the second with the column. Prefix positions have cosine AND sine 0: their queries
    and keys vanish, which the published weights rely on. With `positions_per_cell` 2, as in IAR2's
    published weights, position p takes the angles of cell (p - P) // 2.
    """
    quarter = config.head_dim // 4
    exponent = torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter
    frequencies = config.rope_theta**-exponent
    cell = positions - config.prefix_length
    turned = cell // config.positions_per_cell
    row, column = turned // config.grid_size, turned % config.grid_size
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
    """Multi-head causal self-attention with 2-D rotary positions.

    `plain` keeps to `eager_attention`: the head's batch of B * T short sequences is larger than
    fused kernels are made for.
    """

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: CodecladeConfig, layer_index: int, plain: bool = False):
        super().__init__()
        self.config, self.layer_idx, self.plain = config, layer_index, plain
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, cache) -> Tensor:
        heads = self.config.num_attention_heads
        query, key, value = self.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)  # (B, H, L, h)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = "eager" if self.plain else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        scaling = self.config.head_dim**-0.5
        mixed, _ = attend(self, query, key, value, mask, scaling=scaling)  # (B, L, H, h)
        return self.dropout(self.out(mixed.flatten(2)))

    def prefix_share(self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, cache):
        """Share (B,) of the last query's attention that falls on the prefix, mean over heads.

        Computed beside the fused attention, from the query of x (B, L, D) and the cached keys.
        """
        heads = self.config.num_attention_heads
        query = self.qkv(x[:, -1:]).unflatten(-1, (3, heads, -1))[:, :, 0].transpose(1, 2)
        query = rotate(query, cos[-1:], sin[-1:])  # (B, H, 1, h)
        scores = (query @ cache.layers[self.layer_idx].keys.mT).float() * self.config.head_dim**-0.5
        # No mask means causal; places of a static cache that are not filled yet are hidden as well.
        visible = torch.arange(scores.shape[-1], device=x.device) < cache.get_seq_length()
        if mask is not None:
            last = mask[..., -1:, : scores.shape[-1]]
            visible = visible & (last if last.dtype == torch.bool else last >= 0)
        scores = scores.masked_fill(~visible, -torch.inf)
        weights = scores.softmax(-1)  # (B, H, 1, S)
        return weights[..., : self.config.prefix_length].sum(-1).mean((1, 2))


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

    def __init__(self, config: CodecladeConfig, layer_index: int, plain: bool = False):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer_index, plain)
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


class CodecladeTransformer(StrictLoading, PreTrainedModel):
    """Autoregressive transformer over the tokens of an image (LlamaGen, arXiv 2406.06525)."""

    config_class = CodecladeConfig
    base_model_prefix = "codeclade"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers reads a list)
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: CodecladeConfig):
        super().__init__(config)
        self.prefix = TextPrefix(config) if config.text_dim else ClassPrefix(config)
        if config.scheme == "semantic_detail":
            self.token_embedding = SemanticDetailEmbedding(config)
        elif config.scheme == "cluster_token":
            self.token_embedding = ClusterTokenEmbedding(config)
        else:
            self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        if config.scheme == "semantic_detail":
            self.norm = nn.Identity()  # the head normalises after blocks of its own
            blocks = [Block(config, i, plain=True) for i in range(config.head_layers)]
            self.head = SemanticDetailHead(config, blocks)
        else:
            self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
            kind = ClusterTokenHead if config.scheme == "cluster_token" else TokenHead
            self.head = kind(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Output):
            init.zeros_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, TextPrefix):
            init.normal_(module.null, std=self.config.text_dim**-0.5)

    def null_labels(self, count: int) -> Tensor:
        """The null class (count,): what unconditional rows are given."""
        return torch.full((count,), self.config.num_classes, device=self.device)

    def use_clusters(self, mapping: Tensor) -> None:
        """Give a "cluster_token" model the cluster (V,) of every id, `ClusterMap.mapping`.

        Raises:
            ValueError: another scheme or length, or clusters that are not exactly 0..K-1.
        """
        config = self.config
        if config.scheme != "cluster_token":
            raise ValueError(f"scheme {config.scheme!r} has no clusters; 'cluster_token' has.")
        if mapping.shape != (config.vocab_size,):
            raise ValueError(
                f"mapping has shape {tuple(mapping.shape)}, but there are {config.vocab_size} ids."
            )
        used = mapping.unique()
        if used[0] != 0 or used[-1] != len(used) - 1 or len(used) != config.coarse_vocab_size:
            raise ValueError(f"mapping must use every cluster 0..{config.coarse_vocab_size - 1}.")
        self.token_embedding.cluster_of.copy_(mapping)

    def stage_logits(
        self, hidden: Tensor, step: int, chosen: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Logits float32 of one stage of one position, while a two-stage model samples images.

        Args:
            hidden: (B, T, D) `hidden_states` of positions P-1.. so far; later ones are not read.
            step: which token is predicted.
            chosen: (B,) the cluster or semantic code of this token; None asks for its logits.
            cache: "semantic_detail" keeps the keys of its head from the first to the second stage
                in it; give a fresh `DynamicCache` for every token.

        Returns:
            (B, K) for the first stage, (B, V) for the second. Ids outside the cluster have -1e30.
        """
        return self.head.stage_logits(hidden, step, chosen, cache, self.token_embedding)

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
    ) -> CodecladeOutput:
        """Hidden states at every position, and the logits of the next token.

        Args:
            input_ids: (B, T) tokens, (B, T, 2) of "semantic_detail", or None for the prefix alone.
            class_labels: (B,) class ids, `num_classes` for the null class. Give the condition
                (labels or text) with the first call; later calls go on from the cache.
            past_key_values: a transformers cache owned by the caller, extended in place.
            labels: tokens to predict, shaped like `input_ids`, which may leave the last one out.
            text_embeds: (B, P, text_dim) caption features of a text-conditional model.
            attention_mask: (B, positions so far) 1 where visible: hides a caption's padding.
            return_logits: False leaves the head out; ask `stage_logits` for one position instead.
            output_condition_attention: also return `condition_attention`; needs a cache.

        Returns:
            `CodecladeOutput`: logits (B, P+T, V), or (B, T, V) where the prefix is in the cache.
            "cluster_token": `ClusterTokenHead` says what they are. "semantic_detail" has
            semantic_logits (B, T, K) and detail_logits (B, T, V) of the pairs in labels or
            input_ids, in calls that give the condition.

        Raises:
            ValueError: neither tokens nor condition given, or more tokens than the grid holds.
        """
        parts = []
        if class_labels is not None:
            parts.append(self.prefix(class_labels))
        elif text_embeds is not None:
            parts.append(self.prefix(text_embeds.to(self.dtype)))
        conditioned = bool(parts)
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
            before = x
            x = layer(x, mask, cos, sin, past_key_values)
        output = CodecladeOutput(past_key_values=past_key_values, hidden_states=self.norm(x))
        if output_condition_attention:
            normed = layer.attention_norm(before)
            output.condition_attention = layer.attention.prefix_share(
                normed, mask, cos, sin, past_key_values
            )
        if return_logits and (conditioned or self.config.scheme != "semantic_detail"):
            given = output.hidden_states, labels, input_ids, self.token_embedding
            for name, value in self.head.teach(*given).items():
                output[name] = value
        return output

    def _check_length(self, length: int) -> None:
        longest = self.config.prefix_length + self.config.num_tokens
        if length > longest:
            raise ValueError(
                f"{length} positions do not fit: grid_size={self.config.grid_size} has room for "
                f"{longest}, prefix included."
            )
