"""DCPE's published checkpoints (arXiv 2508.10719): generators over clusters and their refine net.

DCPE-*.pt are LlamaGen generators over 8192 clusters, idx_to_cluster.pt is the cluster of every id,
the refine net a one-layer transformer beside them; the converted models are numerically equal to
them. The index is never recomputed: published ones may differ in a few merges from an exact
clustering.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..components.cluster_map import ClusterMap
from ..components.refiner import Refiner, RefinerConfig
from ..components.vq_model import VQModel
from .adapter import shape_of
from .containers import StateDict, load_mapping
from .family import PublishedFamily
from .llamagen import (
    GENERATOR_NAMES,
    BlockAdapter,
    LlamaGenGenerator,
    LlamaGenTokenizer,
)

REFINER_NAMES = GENERATOR_NAMES | {"tok_embeddings": "cluster_embedding"}
GUIDANCE = {768: 2.0, 1024: 1.85, 1280: 1.85}  # of the published evaluations, by width


class DcpeGenerator(LlamaGenGenerator):
    """LlamaGen's layout over clusters."""

    what = "DCPE generator"

    def config_from(self, state_dict: StateDict, **given: Any) -> dict[str, Any]:
        """As in the parent class, of scheme "cluster"."""
        return super().config_from(state_dict, **given) | {"scheme": "cluster"}


class DcpeRefiner(BlockAdapter):
    """DCPE's refine net: causal, unmasked, arg-max."""

    what = "DCPE refine net"
    names = REFINER_NAMES
    required = (
        "cls_embedding.embedding_table.weight",
        "tok_embeddings.weight",
        "layers.0.feed_forward.w1.weight",
        "output.weight",
    )

    def recognizes(self, state_dict: StateDict) -> bool:
        """As in the parent class; a generator has as many rows in as out."""
        return super().recognizes(state_dict) and (
            state_dict["tok_embeddings.weight"].shape != state_dict["output.weight"].shape
        )

    def end_fields(self, state_dict: StateDict) -> dict[str, Any]:
        """Fields of a `RefinerConfig`.

        Raises:
            ValueError: a generator.
        """
        # Clusters in, codes out: the two tables alone tell a refine net from a generator, which has
        # the same names, and which could be given in its place by mistake.
        num_clusters, width = shape_of(state_dict, "tok_embeddings.weight", 2)
        codebook_size = shape_of(state_dict, "output.weight", 2)[0]
        if codebook_size == num_clusters:
            raise ValueError(
                f"this is no {self.what} checkpoint: it has {num_clusters} rows in and out, as a "
                "generator."
            )
        return {
            "codebook_size": codebook_size,
            "num_clusters": num_clusters,
            "hidden_size": width,
            # The table has no last row for a null class, as a generator's has.
            "num_classes": shape_of(state_dict, "cls_embedding.embedding_table.weight", 2)[0],
        }

    def new_model(self, fields: dict[str, Any]) -> Refiner:
        return Refiner(RefinerConfig(**fields))

    def published_weights(self, model: nn.Module) -> StateDict:
        """As in the parent class.

        Raises:
            ValueError: a refiner that is not of DCPE's kind.
        """
        # What the published layout has no place for must not be dropped without a word.
        config = model.config
        same = (
            config.causal and config.num_classes and not (config.context_dim or config.null_class)
        )
        if not same or config.mask_to_members:
            raise ValueError(
                "this refiner is not of DCPE's kind, which is causal and unmasked with a class "
                "prefix, no null class and no context."
            )
        return super().published_weights(model)


def cluster_map_from_index(index: Tensor, codebook: Tensor) -> ClusterMap:
    """A `ClusterMap` from the tensor of idx_to_cluster.pt (N,) and the codebook (N, d) it is for.

    Raises:
        ValueError: a tensor that is no such index, or one for another codebook size.
    """
    if not isinstance(index, Tensor) or index.ndim != 1 or index.is_floating_point():
        what = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"an idx_to_cluster file holds integers of shape (N,), this one {what}.")
    return ClusterMap.from_labels(index, codebook, method="dcpe")


class Dcpe(PublishedFamily):
    """A generator over clusters, its own cluster index and, if given, its refine net."""

    method = "DCPE"
    paper = "arXiv 2508.10719"
    license = "mit"
    license_statement = "DCPE's code is published under the MIT license."
    tokenizer = LlamaGenTokenizer()
    generator = DcpeGenerator()
    refiner = DcpeRefiner()
    guidance = GUIDANCE
    required_files = ("idx_to_cluster",)

    def build_cluster_map(self, vq_model: VQModel, **files: str | Path | None) -> ClusterMap:
        """The map of idx_to_cluster.pt."""
        # Read, not recomputed: the generator was trained on these very clusters.
        index = load_mapping(files["idx_to_cluster"])
        try:
            return cluster_map_from_index(index, vq_model.codebook)
        except ValueError as error:
            raise ValueError(f"{files['idx_to_cluster']}: {error}") from None


FAMILY = Dcpe()
