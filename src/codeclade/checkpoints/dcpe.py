"""DCPE's published refine net and cluster index to a `Refiner` and a `ClusterMap`, and back.

DCPE (arXiv 2508.10719): DCPE-*.pt are LlamaGen generators over 8192 clusters (see hub/convert.py),
idx_to_cluster.pt the cluster of every id, the refine net a one-layer transformer beside them.
"""

import torch
from torch import Tensor

from ..components.cluster_map import ClusterMap
from ..components.refiner import Refiner, RefinerConfig
from .llamagen import (
    GPT_NAMES,
    HEADS,
    IGNORED,
    StateDict,
    _count,
    _load_strictly,
    _rename,
    _require,
    _reverse,
)

REFINER_NAMES = GPT_NAMES | {"tok_embeddings": "cluster_embedding"}
INDEX = "idx_to_cluster"


def refiner_from_dcpe(
    state_dict: StateDict, *, grid_size: int = 16, num_attention_heads: int | None = None
) -> Refiner:
    """DCPE's refine net as a `Refiner` in eval mode: causal, unmasked, arg-max.

    Args:
        state_dict: DCPE's key names, as `load_checkpoint` gives them.
        grid_size: token grid side; not in the file, 16 for the published 256 px models.
        num_attention_heads: taken from the width where it is one of the published sizes.

    Raises:
        ValueError: weights missing, unexpected or of a wrong shape, or heads that cannot be known.
    """
    what = "DCPE refine net"
    state_dict = {key: value for key, value in state_dict.items() if not IGNORED.match(key)}
    table, feed_forward = "cls_embedding.embedding_table.weight", "layers.0.feed_forward.w1.weight"
    _require(state_dict, [table, "tok_embeddings.weight", feed_forward, "output.weight"], what)
    num_clusters, width = state_dict["tok_embeddings.weight"].shape
    codebook_size = state_dict["output.weight"].shape[0]
    if codebook_size == num_clusters:
        raise ValueError(
            f"this is no {what} checkpoint: it has {num_clusters} rows in and out, as a generator."
        )
    if num_attention_heads is None:
        if width not in HEADS:
            raise ValueError(
                f"width {width} is no published size ({', '.join(map(str, HEADS))}); "
                "give num_attention_heads."
            )
        num_attention_heads = HEADS[width]
    config = RefinerConfig(
        codebook_size=codebook_size,
        num_clusters=num_clusters,
        grid_size=grid_size,
        num_classes=state_dict[table].shape[0],
        hidden_size=width,
        num_hidden_layers=_count(state_dict, r"layers\.(\d+)\."),
        num_attention_heads=num_attention_heads,
        intermediate_size=state_dict[feed_forward].shape[0],
    )
    with torch.device("meta"):
        model = Refiner(config)
    _load_strictly(model, _rename(state_dict, REFINER_NAMES), what)
    return model.eval()


def refiner_to_dcpe(model: Refiner) -> StateDict:
    """Inverse of `refiner_from_dcpe`: DCPE's key names.

    Raises:
        ValueError: a refiner that is not of DCPE's kind.
    """
    config = model.config
    same = config.causal and config.num_classes and not (config.context_dim or config.null_class)
    if not same or config.mask_to_members:
        raise ValueError(
            "this refiner is not of DCPE's kind, which is causal and unmasked with a class prefix, "
            "no null class and no context."
        )
    return _rename(model.state_dict(), _reverse(REFINER_NAMES))


def cluster_map_from_dcpe(index: Tensor, codebook: Tensor) -> ClusterMap:
    """A `ClusterMap` from the tensor of idx_to_cluster.pt (N,) and the codebook (N, d) it is for.

    Raises:
        ValueError: a tensor that is no such index, or one for another codebook size.
    """
    if not isinstance(index, Tensor) or index.ndim != 1 or index.is_floating_point():
        what = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"an {INDEX} file holds integers of shape (N,), this one {what}.")
    return ClusterMap.from_labels(index, codebook, method="dcpe")
