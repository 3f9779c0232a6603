"""Schemes: what the generator predicts at a position, one class each.

Token (LlamaGen, arXiv 2406.06525; IAR, arXiv 2501.00880), Cluster (MASC, arXiv 2510.04220; DCPE,
arXiv 2508.10719), ClusterToken (our own, docs/cluster_token.md), SemanticDetail (IAR2, arXiv
2510.06928). A scheme builds the layers before and after the decoder (heads.py), and knows what ids,
clusters, tokens and choices are to each other. Nothing else compares the names of schemes.

A scheme of your own: subclass `Scheme` and put the class into `SCHEMES`; docs/adding_a_scheme.md
has a whole example.

Shapes: B batch, T tokens, S stages of a position, N ids, V vocabulary, K coarse vocabulary
(clusters or semantic codes), D width. Fine ids are (B, T), or (B, T, 2) with a detail codebook.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .blocks import Output
from .cluster_checks import check_labels
from .cluster_map import ClusterMap
from .decoder_config import DecoderConfig
from .heads import (
    ClusterTokenEmbedding,
    ClusterTokenHead,
    Head,
    SemanticDetailEmbedding,
    SemanticDetailHead,
    TokenHead,
    clusters_of_all,
)

# What the rows of a table can stand for, in the order in which stages choose it.
KINDS = ("clusters", "ids", "details")


class Scheme:
    """Base of all schemes: one stage over the ids of the codebook, where nothing is overridden.

    Args:
        config: the generator's; `config.scheme` is the name of this class in `SCHEMES`.
    """

    name: str  # as configs and recipes spell it
    description: str  # what is predicted, for model cards; a phrase without full stop
    stages: tuple[str, ...]  # what every stage chooses, in the plural
    token_shape: tuple[int, ...] = ()  # of one token: () a number, (2,) a pair
    detail_codes = False  # ids are pairs of a tokenizer with a detail codebook
    predicts_clusters = False  # tokens are clusters; a member draw or a refiner turns them into ids
    holds_clusters = False  # the generator keeps the cluster of every id (`use_clusters`)
    # Tables of the generator by what their rows stand for, which is one of KINDS.
    tables: ClassVar[dict[str, tuple[str, ...]]] = {"ids": ("token_embedding", "head")}
    takes_slices = False  # the head's `stage_logits` takes several positions; see parallel.py
    reads_earlier_states = False  # the head needs the hidden states of earlier positions too

    def __init__(self, config: DecoderConfig):
        self.config = config

    # The config and the layers

    @classmethod
    def check_config(cls, config: DecoderConfig) -> None:
        """Raise a ValueError where fields of a new config do not fit this scheme."""
        # A coarse vocabulary is the first stage's, so two stages have one and one stage has none.
        coarse = config.coarse_vocab_size
        if (len(cls.stages) > 1) != (coarse is not None):
            wanted = "a number of " + cls.stages[0] if coarse is None else "None"
            raise ValueError(
                f"coarse_vocab_size={coarse} does not fit scheme {cls.name!r}; use {wanted}."
            )

    def embedding(self) -> nn.Module:
        """Layer from tokens (B, T, ...) to vectors (B, T, D)."""
        return nn.Embedding(self.config.vocab_size, self.config.hidden_size)

    def norm(self) -> nn.Module:
        """What the head's input goes through after the last block."""
        return nn.RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)

    def head(self) -> nn.Module:
        """A linear layer, or a module with `teacher_forced` and `stage_logits`; see heads.py."""
        return Output(self.config.hidden_size, self.config.vocab_size)

    def predictor(self, head: nn.Module) -> Head:
        """`teacher_forced` and `stage_logits` of a generator's head, which may be wrapped."""
        if hasattr(head, "teacher_forced"):
            return cast(Head, head)
        return TokenHead(head, self.config.prefix_length - 1)

    def use_clusters(self, embedding: nn.Module, mapping: Tensor) -> None:
        """Give a generator that holds clusters the cluster (N,) of every id.

        Raises:
            ValueError: a scheme that holds none, another length, or clusters that are not exactly
                0..K-1.
        """
        able = ", ".join(repr(name) for name, scheme in SCHEMES.items() if scheme.holds_clusters)
        raise ValueError(f"scheme {self.name!r} has no clusters; {able} has.")

    # Sizes

    @classmethod
    def sizes(cls, codes: int, details: int | None, clusters: int | None) -> tuple[int | None, ...]:
        """Vocabulary of every stage, for a codebook and its clusters; None where it is not known.

        Args:
            codes: N, or the number of semantic codes.
            details: number of detail codes; None: no detail codebook.
            clusters: K of the cluster map; None: no map.
        """
        given = {"clusters": clusters, "ids": codes, "details": details}
        # The semantic codes of a pair are what the rows of its table "ids" stand for.
        return tuple(given[kind] for kind in KINDS if kind in cls.tables)

    @property
    def two_stages(self) -> bool:
        """Whether the first stage can be held while the second is sampled."""
        return len(self.stages) > 1

    @property
    def token_tables(self) -> tuple[str, str]:
        """Of `tables`, the embedding and the head whose rows are the vocabulary V."""
        embedding, head = [self.tables[kind] for kind in KINDS if kind in self.tables][-1]
        return embedding, head

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """Vocabulary of every stage of this generator."""
        sizes = self.config.coarse_vocab_size, self.config.vocab_size
        return sizes if self.two_stages else sizes[1:]

    def num_clusters(self, cluster_map: ClusterMap | None) -> int | None:
        """How many clusters ids fall into; None where they have none."""
        if self.two_stages:
            return self.config.coarse_vocab_size
        return None if cluster_map is None else cluster_map.num_clusters

    def check_loaded(self, transformer: PreTrainedModel) -> None:
        """Raise a ValueError where buffers of a generator from a file are damaged."""

    def check_parts(self, transformer: PreTrainedModel, cluster_map: ClusterMap | None) -> None:
        """Raise a ValueError where generator and map do not belong together, sizes apart."""

    # Ids, clusters, tokens and choices

    def mapping(
        self, transformer: PreTrainedModel, cluster_map: ClusterMap | None
    ) -> Tensor | None:
        """Cluster (N,) of every id, which the next functions take; None where ids have none."""
        return None if cluster_map is None else cluster_map.mapping

    def ids_to_clusters(self, ids: Tensor, mapping: Tensor | None) -> Tensor:
        """Cluster (B, T) of every fine id."""
        # Callers ask first whether ids have clusters; where they do there is a mapping.
        return cast(Tensor, mapping).to(ids.device)[ids]

    def ids_to_tokens(self, ids: Tensor, mapping: Tensor | None) -> Tensor:
        """Fine ids in the transformer's vocabulary: (B, T, *token_shape)."""
        return ids

    def tokens_to_clusters(self, tokens: Tensor, mapping: Tensor | None) -> Tensor:
        """Cluster (B, T) of every token."""
        return self.ids_to_clusters(tokens, mapping)

    def tokens_to_choices(self, tokens: Tensor, mapping: Tensor | None) -> Tensor:
        """What every stage has to choose to give these tokens: (B, T, S).

        Of two stages the first chooses the cluster and the second one of its tokens.
        """
        stages = [self.ids_to_clusters(tokens, mapping)] if self.two_stages else []
        return torch.stack([*stages, tokens], dim=-1)

    def choices_to_tokens(self, choices: Tensor) -> Tensor:
        """Tokens (..., *token_shape) of the choices (..., S) of all stages."""
        return choices[..., -1]


class Token(Scheme):
    """Ids of the codebook, one softmax over all of them."""

    name = "token"
    description = "codebook ids, one by one"
    stages = ("tokens",)
    takes_slices = True


class Cluster(Scheme):
    """Clusters instead of ids; what lies inside a cluster is chosen after all are sampled."""

    name = "cluster"
    description = "clusters of codebook ids"
    stages = ("clusters",)
    takes_slices = True
    predicts_clusters = True
    tables: ClassVar = {"clusters": ("token_embedding", "head")}

    def ids_to_tokens(self, ids, mapping):
        return self.ids_to_clusters(ids, mapping)

    def tokens_to_clusters(self, tokens, mapping):
        return tokens


class ClusterToken(Scheme):
    """A cluster, then an id of it; `transformer.token_embedding` holds the clusters."""

    name = "cluster_token"
    description = "a cluster, then an id of it, in one model"
    stages = ("clusters", "tokens")
    takes_slices = True
    holds_clusters = True
    tables: ClassVar = {
        "ids": ("token_embedding.token", "head.tokens"),
        "clusters": ("token_embedding.cluster", "head.clusters"),
    }

    def embedding(self):
        return ClusterTokenEmbedding(self.config)

    def head(self):
        return ClusterTokenHead(self.config)

    def use_clusters(self, embedding, mapping):
        config = self.config
        if mapping.shape != (config.vocab_size,):
            raise ValueError(
                f"mapping has shape {tuple(mapping.shape)}, but there are {config.vocab_size} ids."
            )
        # An unused cluster could be sampled, but has no id to go on with.
        check_labels(mapping, config.coarse_vocab_size)
        cast(ClusterTokenEmbedding, embedding).cluster_of.copy_(mapping)

    def check_loaded(self, transformer):
        cluster_of = cast(ClusterTokenEmbedding, transformer.token_embedding).cluster_of
        # All zeros are a new model's, which has not been given its clusters yet.
        if not cluster_of.is_meta and cluster_of.any():
            check_labels(cluster_of, self.config.coarse_vocab_size)

    def check_parts(self, transformer, cluster_map):
        cluster_of = cast(ClusterTokenEmbedding, transformer.token_embedding).cluster_of.cpu()
        if len(cluster_of.unique()) != self.config.coarse_vocab_size:
            raise ValueError("transformer has no clusters yet; give it some by use_clusters.")
        if cluster_map is not None and not torch.equal(cluster_map.mapping.cpu(), cluster_of):
            raise ValueError("cluster_map has other clusters than transformer.")

    def mapping(self, transformer, cluster_map) -> Tensor:
        embedding = cast(ClusterTokenEmbedding, transformer.token_embedding)
        device = embedding.cluster_of.device
        # Offloaded buffers have no values where they wait, but come when they are asked for.
        return clusters_of_all(embedding, torch.device("cpu") if device.type == "meta" else device)


class SemanticDetail(Scheme):
    """A semantic code, then a detail code, which is given the semantic one."""

    name = "semantic_detail"
    description = "pairs of a semantic and a detail code"
    stages = ("semantic codes", "detail codes")
    takes_slices = True
    token_shape = (2,)
    detail_codes = True
    tables: ClassVar = {
        "ids": ("token_embedding.semantic", "head.semantic.2"),
        "details": ("token_embedding.detail", "head.detail.2"),
    }
    reads_earlier_states = True

    def embedding(self):
        return SemanticDetailEmbedding(self.config)

    def norm(self):
        return nn.Identity()  # the head normalizes after blocks of its own

    def head(self):
        return SemanticDetailHead(self.config)

    def ids_to_clusters(self, ids, mapping):
        return ids[..., 0]  # the semantic codes, which stand for clusters here

    def tokens_to_choices(self, tokens, mapping):
        return tokens

    def choices_to_tokens(self, choices):
        return choices


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme for scheme in (Token, Cluster, ClusterToken, SemanticDetail)
}


def scheme_class(name: Any) -> type[Scheme]:
    """The class of a scheme.

    Raises:
        ValueError: a name that `SCHEMES` does not have.
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme {name!r} is unknown; use one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]
