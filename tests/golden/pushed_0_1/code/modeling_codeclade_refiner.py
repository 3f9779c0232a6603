"""Refiner: a grid of clusters to codebook ids, all positions at once.

One class, three methods: DCPE's refine net (arXiv 2508.10719; causal, arg-max over all ids), CTF's
second stage (arXiv 2503.16194; bidirectional, sampled among the cluster's members) and MASC's
hierarchical decoding (arXiv 2510.04220; the generator's hidden states come in too).
Must stay numerically equal to DCPE's released refine net (see hub/dcpe.py).

Shapes: B batch, P prefix positions (1 with classes, else 0), T tokens, L = P + T, D width, N ids,
K clusters, C width of the generator's hidden states.
Float32 whatever the dtype: rotation, RMSNorm statistics, logits, loss.
"""

# codeclade 0.1.0 (MIT licence), put together from src/codeclade/components/ (loading.py,
# sampling.py, transformer.py, refiner.py), so that this repository loads where codeclade is not
# installed.

from dataclasses import dataclass
from typing import Any

from diffusers.models.modeling_utils import ModelMixin as ClusterMap
from transformers import initialization as init
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput


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


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance u + s (c - u) of logits (B, V); s a number or (B, 1)."""
    return unconditional + scale * (conditional - unconditional)


def filter_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the `top_k` largest of each row (ties with the last kept stay); 0 keeps all."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def filter_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most likely entries whose probabilities reach `top_p`; 1.0 keeps all."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
    return logits.masked_fill(drop, -torch.inf)


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities (B, V) after temperature, then top-k, then top-p (LlamaGen's order)."""
    return filter_top_p(filter_top_k(logits / temperature, top_k), top_p).softmax(-1)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Indices (B,) drawn from rows of `probs` (B, V) by one number in [0, 1) each (B,)."""
    wide = torch.float32 if probs.device.type == "mps" else torch.float64
    cumulative = probs.to(wide).cumsum(-1)
    target = uniforms.to(probs.device, wide).unsqueeze(-1) * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return index.clamp_max(probs.shape[-1] - 1)


def sample(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Tokens (B,) from logits (B, V); temperature 0 is arg-max."""
    if temperature == 0:
        return logits.argmax(-1)
    return draw(probabilities(logits.float(), temperature, top_k, top_p), uniforms)


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


class RefinerConfig(PreTrainedConfig):
    """Architecture of a `Refiner`; the defaults are DCPE's refine net.

    Raises:
        ValueError: a width the heads do not divide into multiples of 4, or class dropout without a
            null class.
    """

    model_type = "codeclade_refiner"

    def __init__(
        self,
        codebook_size: int = 16384,  # N
        num_clusters: int = 8192,  # K
        grid_size: int = 16,
        num_classes: int = 1000,  # 0: no class prefix
        null_class: bool = False,  # one more class row, for guidance
        context_dim: int | None = None,  # C: hidden states of the generator are an input (MASC)
        hidden_size: int = 768,  # D
        num_hidden_layers: int = 1,
        num_attention_heads: int = 12,
        intermediate_size: int = 2048,  # SwiGLU width
        causal: bool = True,  # DCPE attends to earlier clusters only, CTF to all
        mask_to_members: bool = False,  # only ids of the given cluster have a probability
        sampling_temperature: float = 0.0,  # of `refine` where none is given; 0 is arg-max
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        token_dropout: float = 0.0,  # dropouts act in training only
        residual_dropout: float = 0.1,
        feed_forward_dropout: float = 0.1,
        class_dropout: float = 0.0,  # share of classes replaced by the null class
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if hidden_size % (4 * num_attention_heads):
            raise ValueError(
                f"hidden_size={hidden_size} must be a multiple of 4 * num_attention_heads="
                f"{4 * num_attention_heads}, for the two rotation axes."
            )
        if class_dropout and not null_class:
            raise ValueError(
                f"class_dropout={class_dropout} needs null_class=True: dropped classes become it."
            )
        self.codebook_size = codebook_size
        self.num_clusters = num_clusters
        self.grid_size = grid_size
        self.num_classes = num_classes
        self.null_class = null_class
        self.context_dim = context_dim
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.causal = causal
        self.mask_to_members = mask_to_members
        self.sampling_temperature = sampling_temperature
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
    def prefix_length(self) -> int:
        return 1 if self.num_classes else 0

    @property
    def positions_per_cell(self) -> int:
        return 1  # `rotation` asks

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
class RefinerOutput(ModelOutput):
    """What `Refiner.forward` returns."""

    loss: Tensor | None = None  # mean cross-entropy in nats
    logits: Tensor | None = None  # (B, T, N) float32; position t speaks of token t


class RefinerPrefix(nn.Module):
    """Class label to one prefix vector; the null class, where there is one, is the last row."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        rows = config.num_classes + int(config.null_class)
        self.embedding = nn.Embedding(rows, config.hidden_size)
        self.null, self.drop = config.num_classes, config.class_dropout

    def forward(self, class_labels: Tensor) -> Tensor:
        if self.training and self.drop:
            dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.drop
            class_labels = class_labels.masked_fill(dropped, self.null)
        return self.embedding(class_labels).unsqueeze(1)  # (B, 1, D)


class Refiner(StrictLoading, PreTrainedModel):
    """Network from clusters to ids, not autoregressive: one forward pass refines a whole image."""

    config_class = RefinerConfig
    base_model_prefix = "refiner"
    main_input_name = "clusters"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers reads a list)
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: RefinerConfig):
        super().__init__(config)
        self.prefix = RefinerPrefix(config) if config.num_classes else None
        self.cluster_embedding = nn.Embedding(config.num_clusters, config.hidden_size)
        self.context = (
            nn.Linear(config.context_dim, config.hidden_size) if config.context_dim else None
        )
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        for layer in self.layers:
            layer.attention.is_causal = config.causal
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.codebook_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.head:
            init.zeros_(module.weight)  # the first loss is exactly ln N, or mean ln of cluster size
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)

    def check_cluster_map(self, cluster_map: ClusterMap | None) -> None:
        """Raise a ValueError unless this refiner speaks of the map's clusters and ids."""
        config = self.config
        there = getattr(cluster_map, "num_clusters", 0), getattr(cluster_map, "codebook_size", 0)
        if (config.num_clusters, config.codebook_size) != there:
            raise ValueError(
                f"refiner turns {config.num_clusters} clusters into {config.codebook_size} ids, "
                f"but cluster_map has {there[0]} clusters of {there[1]} ids."
            )

    def _check_inputs(self, clusters: Tensor, class_labels, context, mapping) -> None:
        config = self.config
        if clusters.ndim != 2 or clusters.shape[1] > config.num_tokens:
            raise ValueError(
                f"clusters must have shape (B, T) with T up to {config.num_tokens}, got "
                f"{tuple(clusters.shape)}."
            )
        wanted = (
            ("class_labels", class_labels, bool(config.num_classes)),
            ("context", context, bool(config.context_dim)),
            ("mapping", mapping, config.mask_to_members),
        )
        for name, value, needed in wanted:
            if needed and value is None:
                raise ValueError(f"this refiner needs {name}; give it.")
        if mapping is not None and mapping.shape != (config.codebook_size,):
            raise ValueError(
                f"mapping has shape {tuple(mapping.shape)}, but this refiner speaks of "
                f"{config.codebook_size} ids."
            )

    def forward(
        self,
        clusters: Tensor,
        class_labels: Tensor | None = None,
        context: Tensor | None = None,
        mapping: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> RefinerOutput:
        """Logits of the id at every position.

        Args:
            clusters: (B, T) in raster order.
            class_labels: (B,), needed where the config has classes.
            context: (B, T, C) hidden states of the generator (see `generator_states`), needed where
                the config has a context_dim.
            mapping: (N,) cluster of every id, needed where the config masks to members; other ids
                get the logit -inf.
            labels: (B, T) ids to predict.

        Raises:
            ValueError: an input that is missing or of a wrong shape.
        """
        self._check_inputs(clusters, class_labels, context, mapping)
        x = self.cluster_embedding(clusters)  # (B, T, D)
        if self.context is not None:
            x = x + self.context(context.to(x.dtype))
        if self.prefix is not None:
            x = torch.cat([self.prefix(class_labels), x], dim=1)  # (B, L, D)
        x = self.token_dropout(x)
        positions = torch.arange(x.shape[1], device=x.device)
        mask = None
        if self.config.causal:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=x,
                attention_mask=None,
                past_key_values=None,
                position_ids=positions.unsqueeze(0),
            )
        cos, sin = rotation(positions, self.config)
        for layer in self.layers:
            x = layer(x, mask, cos, sin, None)
        logits = self.head(self.norm(x[:, self.config.prefix_length :])).float()
        if self.config.mask_to_members:
            outside = mapping.to(clusters.device) != clusters.unsqueeze(-1)  # (B, T, N)
            logits = logits.masked_fill(outside, -torch.inf)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return RefinerOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def refine(
        self,
        clusters: Tensor,
        class_labels: Tensor | None = None,
        cluster_map: ClusterMap | None = None,
        context: Tensor | None = None,
        uniforms: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Ids (B, T) of clusters (B, T).

        Where the config masks to members, every id lies in its cluster, always.

        Args:
            class_labels, context: as for `forward`.
            cluster_map: needed where the config masks to members.
            uniforms: (B, T) numbers in [0, 1), one a token; or
            generator: their source.
            temperature: divides the logits, 0 is arg-max; None: the config's
                `sampling_temperature`.
            top_k: sample among the k most likely ids; 0 means all.
            guidance_scale: classifier-free guidance, active above 1; needs a null class.

        Raises:
            ValueError: an input that is missing, or guidance without a null class.
        """
        if temperature is None:
            temperature = self.config.sampling_temperature
        if uniforms is None:
            device = generator.device if generator is not None else clusters.device
            uniforms = torch.rand(clusters.shape, generator=generator, device=device)
        mapping = None if cluster_map is None else cluster_map.mapping
        logits = self(clusters, class_labels, context, mapping).logits
        if guidance_scale > 1:
            if not self.config.null_class:
                raise ValueError(
                    f"guidance_scale={guidance_scale} needs a refiner with a null class."
                )
            null = torch.full_like(class_labels, self.config.num_classes)
            unconditional = self(clusters, null, context, mapping).logits
            logits = torch.where(  # both are -inf outside the cluster, where guidance makes NaN
                logits.isfinite(), guide(logits, unconditional, guidance_scale), logits
            )
        # One image at a time: the draw works in float64, B * T * N of them would be gigabytes.
        return torch.stack(
            [
                sample(image, row, temperature, top_k)
                for image, row in zip(logits, uniforms.to(logits.device), strict=True)
            ]
        )
