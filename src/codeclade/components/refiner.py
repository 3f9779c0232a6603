"""Refiner: a grid of clusters to codebook ids, all positions at once.

One class, three methods: DCPE's refine net (arXiv 2508.10719; causal, arg-max over all ids), CTF's
second stage (arXiv 2503.16194; bidirectional, sampled among the cluster's members) and MASC's
hierarchical decoding (arXiv 2510.04220; the generator's hidden states come in too).
Must stay numerically equal to DCPE's released refine net (see checkpoints/dcpe.py).

Shapes: B batch, P prefix positions (1 with classes, else 0), T tokens, L = P + T, D width, N ids,
K clusters, C width of the generator's hidden states.
What is float32 whatever the dtype stands in blocks.py.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from .blocks import (
    Block,
    DecoderModel,
    Output,
    OutputFlags,
    causal_mask,
    decode_layers,
    rotation,
    wanted_outputs,
)
from .cluster_map import ClusterMap
from .decoder_config import DecoderConfig
from .fields import Count, CountOrZero, Grid, Layers, Share, Temperature, Width
from .prefixes import ClassPrefix
from .sampling import guide, sample
from .transformer import CodecladeTransformer

WAYS = ("refiner", "member")  # how clusters become ids


class RefinerConfig(DecoderConfig):
    """Architecture of a `Refiner`; the defaults are DCPE's refine net.

    The fields of `DecoderConfig` are fields here too.

    Raises:
        ValueError: a width the heads do not divide into multiples of 4, or class dropout without a
            null class.
    """

    model_type = "codeclade_refiner"
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]  # noqa: RUF012 (Trainer's)

    def __init__(
        self,
        codebook_size: Count = 16384,  # N
        num_clusters: Count = 8192,  # K
        grid_size: Grid = 16,
        num_classes: CountOrZero = 1000,  # 0: no class prefix
        *,
        null_class: bool = False,  # one more class row, for guidance
        context_dim: Width | None = None,  # C: hidden states of the generator are an input (MASC)
        num_hidden_layers: Layers = 1,
        causal: bool = True,  # DCPE attends to earlier clusters only, CTF to all
        mask_to_members: bool = False,  # only ids of the given cluster have a probability
        sampling_temperature: Temperature = 0.0,  # of `refine` where none is given; 0 is arg-max
        token_dropout: Share = 0.0,
        class_dropout: Share = 0.0,  # share of classes replaced by the null class
        **kwargs,
    ):
        # Sizes, and what a position sees; the shared fields are the base's.
        self.codebook_size = codebook_size
        self.num_clusters = num_clusters
        self.context_dim = context_dim
        self.causal = causal
        self.mask_to_members = mask_to_members
        # Otherwise dropped labels would index past the last row of the class table.
        if class_dropout and not null_class:
            raise ValueError(
                f"class_dropout={class_dropout} needs null_class=True: dropped classes become it."
            )
        self.null_class = null_class
        self.sampling_temperature = sampling_temperature
        super().__init__(
            grid_size,
            num_classes,
            num_hidden_layers=num_hidden_layers,
            token_dropout=token_dropout,
            class_dropout=class_dropout,
            **kwargs,
        )

    @property
    def prefix_length(self) -> int:
        return 1 if self.num_classes else 0


@dataclass
class RefinerOutput(ModelOutput):
    """What `Refiner.forward` returns."""

    loss: Tensor | None = None  # mean cross-entropy in nats
    logits: Tensor | None = None  # (B, T, N) float32; position t speaks of token t
    hidden_states: tuple[Tensor, ...] | None = None  # (B, L, D) before each layer, and the last
    attentions: tuple[Tensor, ...] | None = None  # (B, H, L, S) of every layer


class Refiner(DecoderModel):
    """Network from clusters to ids, not autoregressive: one forward pass refines a whole image."""

    config: RefinerConfig
    config_class = RefinerConfig
    base_model_prefix = "refiner"
    main_input_name = "clusters"

    def __init__(self, config: RefinerConfig):
        super().__init__(config)
        self.prefix = ClassPrefix(config, config.null_class) if config.num_classes else None
        self.cluster_embedding = nn.Embedding(config.num_clusters, config.hidden_size)
        self.context = (
            nn.Linear(config.context_dim, config.hidden_size) if config.context_dim else None
        )
        self.token_dropout = nn.Dropout(config.token_dropout)
        # Attention backends read causality from the layer where there is no mask.
        blocks = [Block(config, i) for i in range(config.num_hidden_layers)]
        for block in blocks:
            block.attention.is_causal = config.causal
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Output(config.hidden_size, config.codebook_size)  # the loss starts at ln N
        self.post_init()

    def token_tables(self) -> tuple[str, str]:
        """Names of the table of clusters and of the linear layer whose rows are ids."""
        return "cluster_embedding", "head"

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
        # What is needed follows from the config, so a missing input is named here and not by a
        # torch error deep inside.
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
        **asked: Unpack[OutputFlags],
    ) -> Any:
        """Logits of the id at every position.

        Args:
            clusters: (B, T) in raster order.
            class_labels: (B,), needed where the config has classes.
            context: (B, T, C) hidden states of the generator (see `generator_states`), needed where
                the config has a context_dim.
            mapping: (N,) cluster of every id, needed where the config masks to members; other ids
                get the logit -inf.
            labels: (B, T) ids to predict; -100 counts for nothing.
            asked: output_hidden_states, output_attentions, return_dict as in transformers, the
                config's where None; attentions need `attn_implementation="eager"`.

        Returns:
            `RefinerOutput`, or with `return_dict=False` a tuple of what it holds.

        Raises:
            ValueError: an input that is missing or of a wrong shape.
        """
        self._check_inputs(clusters, class_labels, context, mapping)
        config, wanted = self.config, wanted_outputs(self.config, **asked)
        # A position knows its cluster and, in MASC, what the generator saw when it chose it.
        x = self.cluster_embedding(clusters)  # (B, T, D)
        if self.context is not None:
            x = x + self.context(cast(Tensor, context).to(x))
        if self.prefix is not None:
            x = torch.cat([self.prefix(class_labels).to(x.device), x], dim=1)  # (B, L, D)
        x = self.token_dropout(x)
        positions = torch.arange(x.shape[1], device=x.device)
        # No mask at all where a refiner is bidirectional: every position sees the whole image.
        mask = causal_mask(config, x, positions) if config.causal else None
        cos, sin = rotation(
            positions, config.grid_size, config.head_dim, config.rope_theta, config.prefix_length
        )
        states = decode_layers(self.layers, x, (mask, cos, sin, None), wanted)
        # The prefix predicts nothing, so it is cut before the head, the largest matrix here.
        normed = self.norm(states.last)
        logits = self.head(normed[:, config.prefix_length :]).float()
        # Exactly -inf, not a large number: an id outside its cluster must never be drawn.
        if config.mask_to_members:
            cluster_of = cast(Tensor, mapping).to(logits.device)
            outside = cluster_of != clusters.to(logits.device).unsqueeze(-1)  # (B, T, N)
            logits = logits.masked_fill(outside, -torch.inf)
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return wanted.form(
            RefinerOutput(
                loss=loss,
                logits=logits,
                hidden_states=(*states.inputs, normed) if wanted.hidden_states else None,
                attentions=states.attentions,
            )
        )

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
        # The method decides how ids are chosen: DCPE takes the arg-max, CTF samples.
        if temperature is None:
            temperature = self.config.sampling_temperature
        # One number decides a token, whoever draws it; a pipeline hands in its own.
        if uniforms is None:
            device = generator.device if generator is not None else clusters.device
            uniforms = torch.rand(clusters.shape, generator=generator, device=device)
        mapping = None if cluster_map is None else cluster_map.mapping
        logits = self(clusters, class_labels, context, mapping, return_dict=True).logits
        # Guidance costs a second pass, so it is left out where it would change nothing.
        if guidance_scale > 1:
            if not self.config.null_class:
                raise ValueError(
                    f"guidance_scale={guidance_scale} needs a refiner with a null class."
                )
            null = torch.full_like(cast(Tensor, class_labels), self.config.num_classes)
            unconditional = self(clusters, null, context, mapping, return_dict=True).logits
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


@torch.no_grad()
def generator_states(
    transformer: CodecladeTransformer, clusters: Tensor, **condition: Tensor
) -> Tensor:
    """Hidden states (B, T, C) from which a generator predicted clusters (B, T).

    One teacher-forced pass; the states are those its head reads, and the
    context of MASC's refiner.

    Args:
        condition: `class_labels`, or `text_embeds` and `attention_mask`.
    """
    if "attention_mask" in condition:
        # The mask spans the whole image, but the last cluster is predicted and never fed in.
        length = transformer.config.prefix_length + clusters.shape[1] - 1
        condition["attention_mask"] = condition["attention_mask"][:, :length]
    known = {"input_ids": clusters[:, :-1], "return_logits": False, "return_dict": True}
    output = transformer(**known, **condition)
    return output.last_hidden_state[:, -clusters.shape[1] :]


class Refining(NamedTuple):
    """How clusters become ids: what a call says of it."""

    way: str | None = None  # "refiner" or "member"; None: the refiner, if there is one
    # What the generator was given: class_labels, or text_embeds and attention_mask.
    condition: dict[str, Tensor] | None = None
    settings: dict[str, Any] | None = None  # temperature, top_k, guidance_scale of `refine`


def check_way(way: str | None, refiner: Refiner | None) -> None:
    """Raise a ValueError unless clusters can become ids in this way."""
    if way not in (None, *WAYS) or (way == "refiner" and refiner is None):
        there = "one is loaded" if refiner is not None else "none is loaded"
        raise ValueError(f"refine={way!r} must be one of {WAYS}; as to refiners, {there}.")


def check_refiner_settings(
    settings: dict[str, Any] | None, way: str | None, refiner: Refiner | None
) -> None:
    """Raise a ValueError unless these are settings of `Refiner.refine` that it can have."""
    if not settings:
        return
    if refiner is None or way == "member":
        raise ValueError(f"refiner_settings={settings!r} are of a refiner, and none is asked here.")
    # Names first, then kinds and signs, then what this refiner was trained for.
    kinds = {"temperature": (int, float), "top_k": (int,), "guidance_scale": (int, float)}
    for name, value in settings.items():
        if name not in kinds:
            raise ValueError(
                f"refiner_settings has no {name!r}; it has {', '.join(map(repr, kinds))}."
            )
        if not (isinstance(value, kinds[name]) and 0 <= value < math.inf):
            kind = "a whole number" if name == "top_k" else "a number"
            raise ValueError(
                f"refiner_settings {name}={value!r} must be {kind}, 0 or more and finite."
            )
    scale = settings.get("guidance_scale", 1.0)
    if scale > 1 and not refiner.config.null_class:
        raise ValueError(
            f"refiner_settings guidance_scale={scale} needs a refiner with a null class."
        )


def clusters_to_ids(
    clusters: Tensor,
    uniforms: Tensor,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap,
    refiner: Refiner | None,
    refining: Refining,
) -> Tensor:
    """Ids (B, T) of clusters (B, T), by a refiner or by a uniform member draw.

    Args:
        uniforms: (B, T) numbers in [0, 1).
        transformer: the generator that made the clusters, for a refiner that reads its states.

    Raises:
        ValueError: an unknown way, or "refiner" without a refiner.
    """
    # The member draw needs no network; it is what MASC and DCPE do by default.
    check_way(refining.way, refiner)
    if refiner is None or refining.way == "member":
        return cluster_map.draw_members(clusters, uniforms=uniforms)
    condition, context = refining.condition or {}, None
    # The states are computed anew in one pass: clusters that were edited, or given to `redraw`,
    # have none from sampling.
    if refiner.config.context_dim:
        if not condition:
            raise ValueError("this refiner reads the generator's states; give class_labels.")
        context = generator_states(transformer, clusters, **condition)
    labels = condition.get("class_labels")
    given = refining.settings or {}
    return refiner.refine(clusters, labels, cluster_map, context, uniforms=uniforms, **given)
