"""Whether the parts of a pipeline belong together, said in one sentence where they do not.

Codes are counted in three places: the tokenizer's codebook, the cluster map made from it, and the
vocabulary of the generator trained on either.
"""

import torch

from .cluster_map import ClusterMap
from .refiner import Refiner
from .transformer import CodecladeTransformer
from .vq_model import VQModel


def check_components(
    vq_model: VQModel,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap | None,
    refiner: Refiner | None,
) -> None:
    """Raise a ValueError unless tokenizer, map, generator and refiner speak of the same codes."""
    config = transformer.config
    codes, details = vq_model.codebook_size, vq_model.detail_codebook_size
    if config.scheme == "cluster" and cluster_map is None:
        raise ValueError("a transformer of scheme 'cluster' needs a cluster_map.")
    if cluster_map is not None and not cluster_map.matches(vq_model.codebook):
        raise ValueError(
            f"cluster_map was made from another codebook than vq_model's "
            f"{tuple(vq_model.codebook.shape)}; cluster that codebook again."
        )
    if (details is not None) != (config.scheme == "semantic_detail"):
        raise ValueError(
            f"a transformer of scheme {config.scheme!r} does not fit a vq_model with "
            f"detail_codebook_size={details}; detail codes go with 'semantic_detail'."
        )
    expected = {
        "token": [("tokens", config.vocab_size, codes)],
        "cluster": [("clusters", config.vocab_size, getattr(cluster_map, "num_clusters", 0))],
        "cluster_token": [("tokens", config.vocab_size, codes)],
        "semantic_detail": [
            ("semantic codes", config.coarse_vocab_size, codes),
            ("detail codes", config.vocab_size, details),
        ],
    }
    for what, predicted, there in expected[config.scheme]:
        if predicted != there:
            raise ValueError(
                f"transformer predicts {predicted} {what}, but there are {there}; "
                "load the parts that were trained together."
            )
    if config.scheme == "cluster_token":
        cluster_of = transformer.token_embedding.cluster_of.cpu()
        if len(cluster_of.unique()) != config.coarse_vocab_size:
            raise ValueError("transformer has no clusters yet; give it some by use_clusters.")
        if cluster_map is not None and not torch.equal(cluster_map.mapping.cpu(), cluster_of):
            raise ValueError("cluster_map has other clusters than transformer.")
    if refiner is not None:
        refiner.check_cluster_map(cluster_map)
