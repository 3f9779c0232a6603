"""Tiny pipelines of every scheme, with random weights everywhere."""

from codeclade import CodecladePipeline
from conftest import NAMES, build_map, build_transformer, build_vq

SCHEMES = ("token", "cluster", "cluster_token", "semantic_detail")
COARSE = {"cluster_token": 12, "semantic_detail": 32}  # first-stage vocabulary
DETAILS = 24


def build_scheme(scheme: str, seed: int = 0, grid_size: int = 4, **settings) -> CodecladePipeline:
    """4x4 tokens of 4x4 pixels; 32 codes in 12 clusters, or 32 semantic and 24 detail codes."""
    pairs = scheme == "semantic_detail"
    vq_model = build_vq(seed, detail_codebook_size=DETAILS if pairs else None)
    cluster_map = None if pairs else build_map(vq_model.codebook)
    vocab_size = {"cluster": 12, "semantic_detail": DETAILS}.get(scheme, 32)
    transformer = build_transformer(
        seed,
        scheme=scheme,
        vocab_size=vocab_size,
        coarse_vocab_size=COARSE.get(scheme),
        grid_size=grid_size,
    )
    if scheme == "cluster_token":
        transformer.use_clusters(cluster_map.mapping)
    pipe = CodecladePipeline(vq_model, transformer, cluster_map, **({"id2label": NAMES} | settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe
