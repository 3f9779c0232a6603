"""Real components at tiny size, with random weights everywhere."""

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import nn

from codeclade import ClusterMap, CodecladeConfig, CodecladePipeline, CodecladeTransformer, VQModel

NAMES = {
    0: "goldfish, Carassius auratus",
    1: "tabby, tabby cat",
    2: "golden retriever",
    3: "crane",  # the bird
    4: "crane",  # the machine
}
SCHEMES = ("token", "cluster", "cluster_token", "semantic_detail")
COARSE = {"cluster_token": 12, "semantic_detail": 32}  # first-stage vocabulary
DETAILS = 24


def by_smallest_member(labels) -> torch.Tensor:
    """The same partition with clusters numbered in order of their smallest member."""
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(int(label), len(number)) for label in labels])


def build_vq(seed: int = 0, **changes) -> VQModel:
    fields = {
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 1,
        "latent_channels": 8,
        "codebook_size": 32,
        "codebook_dim": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VQModel(**(fields | changes)).eval()


def build_map(codebook: torch.Tensor, clusters: int = 12) -> ClusterMap:
    """Average linkage by scipy, tree included."""
    tree = linkage(codebook.detach().double().numpy(), "average")
    labels = by_smallest_member(fcluster(tree, clusters, "maxclust"))
    return ClusterMap.from_labels(
        labels, codebook, children=tree[:, :2].astype(int), heights=tree[:, 2]
    )


def build_transformer(seed: int = 0, **changes) -> CodecladeTransformer:
    """Random weights everywhere: the zero-initialised head would make every test pass."""
    fields = {
        "vocab_size": 32,
        "grid_size": 4,
        "num_classes": 5,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CodecladeTransformer(CodecladeConfig(**(fields | changes)))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
            elif isinstance(module, nn.RMSNorm):
                nn.init.normal_(module.weight, mean=1.0, std=0.1)
    return model.eval()


def build_pipeline(scheme: str = "cluster", seed: int = 0, **settings) -> CodecladePipeline:
    vq_model = build_vq(seed)
    cluster_map = build_map(vq_model.codebook) if scheme == "cluster" else None
    vocab_size = cluster_map.num_clusters if cluster_map is not None else vq_model.codebook_size
    transformer = build_transformer(seed, scheme=scheme, vocab_size=vocab_size)
    pipe = CodecladePipeline(vq_model, transformer, cluster_map, **({"id2label": NAMES} | settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
