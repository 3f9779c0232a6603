"""Real components at tiny size, shared by all tests.

Every fixture here is a builder: call it with the constructor fields that should differ.
"""

import os
import shutil
import sys
import tempfile

os.environ["TQDM_DISABLE"] = "1"  # bars would stand between the lines that tests read
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="codeclade-tests-")  # read at import time

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import nn

from codeclade import ClusterMap, CodecladeConfig, CodecladePipeline, CodecladeTransformer, VQModel

torch.set_num_threads(1)  # tiny matrices gain nothing from more

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", b"127.0.0.1", b"localhost", None, "")


def stay_on_this_machine(event: str, arguments: tuple) -> None:
    """Audit hook: a test that wants to talk to another machine fails."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in LOOPBACK:
        raise PermissionError(f"tests reach no other machine, but {host!r} was asked for.")


sys.addaudithook(stay_on_this_machine)

NAMES = {
    0: "goldfish, Carassius auratus",
    1: "tabby, tabby cat",
    2: "golden retriever",
    3: "crane",  # the bird
    4: "crane",  # the machine
}


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


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


@pytest.fixture(scope="session")
def tiny_vq():
    """Build a VQModel: 16x16 pixels, 4x4 tokens, 32 codes."""
    return build_vq


@pytest.fixture(scope="session")
def tiny_map():
    """Build a ClusterMap with tree from a codebook: 12 clusters."""
    return build_map


@pytest.fixture(scope="session")
def tiny_transformer():
    """Build a CodecladeTransformer: 4x4 tokens, 5 classes."""
    return build_transformer


@pytest.fixture(scope="session")
def tiny_pipeline():
    """Build a pipeline of scheme "cluster" or "token"."""
    return build_pipeline


@pytest.fixture(scope="session")
def relabelled():
    """Number clusters by their smallest member."""
    return by_smallest_member
