"""Whether the parts of a pipeline belong together, said in one sentence where they do not.

Codes are counted in three places: the tokenizer's codebook, the cluster map made from it, and the
vocabulary of the generator trained on either.
"""

from .cluster_map import ClusterMap
from .refiner import Refiner
from .transformer import CodecladeTransformer
from .vq_model import VQModel

LARGEST_SCALE = 4  # LlamaGen's largest images have twice the side of its tokenizer's


def check_components(
    vq_model: VQModel,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap | None,
    refiner: Refiner | None,
) -> None:
    """Raise a ValueError unless tokenizer, map, generator and refiner speak of the same codes."""
    scheme = transformer.scheme
    codes, details = vq_model.codebook_size, vq_model.detail_codebook_size
    # Which parts there must be.
    if scheme.predicts_clusters and cluster_map is None:
        raise ValueError(f"a transformer of scheme {scheme.name!r} needs a cluster_map.")
    if cluster_map is not None and not cluster_map.matches(vq_model.codebook):
        raise ValueError(
            f"cluster_map was made from another codebook than vq_model's "
            f"{tuple(vq_model.codebook.shape)}; cluster that codebook again."
        )
    if (details is not None) != scheme.detail_codes:
        raise ValueError(
            f"a transformer of scheme {scheme.name!r} does not fit a vq_model with "
            f"detail_codebook_size={details}."
        )
    # A generator may be trained on larger images than its tokenizer, but not at any distance.
    side = transformer.config.grid_size * vq_model.downsample
    trained = vq_model.config["sample_size"]
    if side > LARGEST_SCALE * trained:
        raise ValueError(
            f"transformer has grid_size={transformer.config.grid_size}, images of {side} pixels, "
            f"but vq_model was trained on {trained}; up to {LARGEST_SCALE} times that."
        )
    # The vocabulary of every stage is what the other parts have.
    clusters = None if cluster_map is None else cluster_map.num_clusters
    sizes = scheme.sizes(codes, details, clusters)
    for what, predicted, there in zip(scheme.stages, scheme.vocabularies, sizes, strict=True):
        if there is not None and predicted != there:
            raise ValueError(
                f"transformer predicts {predicted} {what}, but there are {there}; "
                "load the parts that were trained together."
            )
    # Equal sizes may still be different clusters; that only the scheme and the refiner can tell.
    scheme.check_parts(transformer, cluster_map)
    if refiner is not None:
        refiner.check_cluster_map(cluster_map)
        ours, theirs = transformer.config.grid_size, refiner.config.grid_size
        if theirs < ours:
            raise ValueError(
                f"refiner was made for {theirs} x {theirs} tokens, the transformer makes {ours} x "
                f"{ours}; load the parts that were trained together."
            )
