"""Settings of `codeclade train-generator`, and the architecture that they give."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..components.cluster_map import ClusterMap
from ..components.schemes import scheme_class
from ..components.transformer import CodecladeConfig
from ..data.captioned import CaptionedCodes
from ..data.codes import Codes
from ..data.component_configs import HEAD_SETTINGS
from .context_noise import KINDS
from .embedding_priors import PRIORS
from .growing import growth_steps
from .low_rank import PARTS, check_low_rank
from .recipe import DECODER_SIZES, RunRecipe

CONDITIONS = ("class", "text")


@dataclass(kw_only=True)
class GeneratorRecipe(RunRecipe):
    """Settings of `codeclade train-generator`."""

    HARMLESS: ClassVar[tuple[str, ...]] = (
        *RunRecipe.HARMLESS, "sample_every", "compile", "use_best",
    )  # fmt: skip

    scheme: str = ""  # empty: with a map "cluster", with pairs "semantic_detail", else "token"
    condition: str = "class"  # class, or text: features that encode-text made of captions
    embedding_prior: str = "none"  # none, tree, codebook, both, context, or a random_ control
    cluster_loss_weight: float = 0.0  # IAR: weight of the cluster loss; scheme "token" with a map
    tree_loss_weight: float = 0.0  # of the cross-entropies in cuts of the codes' merge tree
    alignment_weight: float = 0.0  # reAR: of cosines between hidden states and code vectors
    context_noise: str = "none"  # input tokens replaced at first: none, uniform (reAR), cluster
    context_noise_clusters: int = 1024  # clusters of the tree that "cluster" noise stays within
    sparse_head: bool = False  # cluster_token: loss from the right cluster's members, less memory
    grow: dict = field(default_factory=dict)  # clusters by step, {0: 512, 1000: 1024, 2000: all}
    hidden_size: int = 768  # width D
    num_hidden_layers: int = 12  # blocks
    num_attention_heads: int = 12  # heads a block; D must be a multiple of 4 times as many
    intermediate_size: int = 2048  # width inside the feed-forward layers
    head_layers: int = 5  # semantic_detail: blocks of the head, which runs three times a position
    head_window: int = 2  # semantic_detail: rows above and columns aside that the head looks at
    head_mlp: bool = True  # semantic_detail: a hidden layer of 2 D before each output, as in IAR2
    dropout: float = 0.1  # of embedded tokens, residual branches and feed-forward layers
    token_dropout: float | None = None  # null: that of dropout
    residual_dropout: float | None = None  # null: that of dropout
    feed_forward_dropout: float | None = None  # null: that of dropout
    drop_path: float = 0.0  # chance of leaving the last block's branches out, less in earlier ones
    class_dropout: float = 0.1  # share of classes replaced by the null class, for guidance
    init_from: str = ""  # pipeline folder or Hub id to start from: other classes, grid, clusters
    lora_rank: int = 0  # above 0: low-rank updates of the blocks (LoRA), merged when saved
    lora_alpha: float = 0.0  # scale of the updates times their rank; 0 = the rank
    lora_dropout: float = 0.0  # of what the updates read
    lora_whole: list = field(  # trained whole beside the updates: prefix, token_embedding, head
        default_factory=lambda: ["prefix"]
    )
    gradient_checkpointing: bool = False  # blocks are computed again in the backward pass
    compile: bool = False  # torch.compile of the blocks
    use_best: bool = False  # finish with the weights of the lowest validation loss, not the last
    sample_every: int = 0  # steps between sheets of generated images, with fixed seeds; 0 = none
    guidance_scale: float = 2.0  # saved with the finished pipeline as its default
    temperature: float = 1.0  # saved default; 0 is arg-max
    top_k: int = 0  # saved default; 0 keeps all
    top_p: float = 1.0  # saved default; 1 keeps all
    guidance_schedule: str | dict | None = None  # saved default: a name, or name and parameters

    def __post_init__(self):
        super().__post_init__()
        choices = {"condition": CONDITIONS, "embedding_prior": PRIORS, "context_noise": KINDS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
                )
        for name in ("cluster_loss_weight", "tree_loss_weight", "alignment_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        # A prior's tables and a growing table would both say what a row is.
        self.grow = growth_steps(self.grow)
        if self.grow and self.embedding_prior != "none":
            raise ValueError(f"grow does not go with embedding_prior={self.embedding_prior}.")
        self._check_low_rank()
        if self.sample_every < 0:
            raise ValueError(f"sample_every is {self.sample_every}; it must be 0 or more.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be 0 or more and below 1.")

    def _check_low_rank(self) -> None:
        if self.lora_rank < 0 or self.lora_alpha < 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_rank={self.lora_rank}, lora_alpha={self.lora_alpha} and "
                f"lora_dropout={self.lora_dropout} must be 0 or more, and the last below 1."
            )
        foreign = [name for name in self.lora_whole if name not in PARTS]
        if foreign:
            raise ValueError(f"lora_whole has {foreign[0]!r}; it may have {', '.join(PARTS)}.")
        if self.lora_rank:
            tables = {"grow": bool(self.grow), "embedding_prior": self.embedding_prior != "none"}
            check_low_rank(self.lora_rank, self.init_from, tables)


def generator_config(
    recipe: GeneratorRecipe, codes: Codes, cluster_map: ClusterMap | None
) -> CodecladeConfig:
    """Architecture for the codes of one tokenizer in the recipe's scheme.

    Raises:
        ValueError: a scheme that the codes or the presence of a map do not fit.
    """
    # Codes and map say which scheme is meant where the recipe does not.
    size, details = codes.header["codebook_size"], codes.header["detail_codebook_size"]
    default = "semantic_detail" if details else "token" if cluster_map is None else "cluster"
    scheme = recipe.scheme or default
    kind = scheme_class(scheme)
    if kind.detail_codes != bool(details):
        raise ValueError(
            f"scheme {scheme!r} does not fit codes with {details or 'no'} detail codes."
        )
    # A generator of single ids or of pairs may carry a map that only redrawing and the app use.
    needs_map = kind.predicts_clusters or kind.holds_clusters or recipe.cluster_loss_weight > 0
    if needs_map and cluster_map is None:
        raise ValueError(
            f"scheme {scheme!r} with cluster_loss_weight={recipe.cluster_loss_weight} "
            "needs a cluster map."
        )
    if kind.detail_codes and recipe.cluster_loss_weight > 0:
        raise ValueError("cluster_loss_weight has a loss of single ids, not of pairs.")
    # A sparse head scores the ids of one cluster alone.
    if recipe.sparse_head and not kind.holds_clusters:
        raise ValueError(f"sparse_head is of scheme 'cluster_token', not {scheme!r}.")
    if recipe.sparse_head and (recipe.tree_loss_weight or recipe.cluster_loss_weight):
        raise ValueError("sparse_head has no logits of all ids, which tree and cluster loss need.")
    # What is left follows: vocabularies from the scheme, sizes from the codes and the recipe.
    clusters = cluster_map.num_clusters if cluster_map is not None else None
    *coarse, vocab_size = kind.sizes(size, details, clusters)
    return CodecladeConfig(
        vocab_size=vocab_size,
        coarse_vocab_size=coarse[0] if coarse else None,
        scheme=scheme,
        grid_size=codes.header["grid_size"],
        **condition_sizes(codes),
        **dropouts(recipe),
        **recipe.pick(*DECODER_SIZES, *HEAD_SETTINGS, "class_dropout"),
    )


def read_codes(recipe: GeneratorRecipe, folder: Path) -> Codes:
    """Code shards of one split, with features of captions where the recipe conditions on text.

    Raises:
        ValueError: shards or features that are not there.
    """
    return CaptionedCodes(folder) if recipe.condition == "text" else Codes(folder)


def condition_sizes(codes: Codes) -> dict[str, int]:
    """Fields of a config that say what a generator is conditioned on."""
    if isinstance(codes, CaptionedCodes):
        length, width = codes.prefix_length, codes.text_dim
        return {"num_classes": 0, "prefix_length": length, "text_dim": width}
    return {"num_classes": len(codes.header["class_names"])}


def dropouts(recipe: GeneratorRecipe) -> dict[str, float]:
    """The three dropouts of a config: each its own, or else the common one."""
    own = recipe.pick("token_dropout", "residual_dropout", "feed_forward_dropout")
    return {name: recipe.dropout if value is None else value for name, value in own.items()}
