"""What all tests share: builders of tiny components as fixtures, and no other machine reached.

Every fixture here is a builder: call it with the constructor fields that should differ.
"""

import os
import shutil
import sys
import tempfile

os.environ["TQDM_DISABLE"] = "1"  # bars would stand between the lines that tests read
# Tiny matrices gain nothing from more threads, which wait for each other beside another process.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="codeclade-tests-")  # read at import time
os.environ["CODECLADE_FEATURES"] = os.path.join(os.environ["HF_HOME"], "features")

import pytest
import torch
from accelerate.state import AcceleratorState

from builders import build_map, build_pipeline, build_transformer, build_vq, by_smallest_member

torch.set_num_threads(1)

# Files that take longest begin first, those that wait beside those that compute, so that several
# processes end together.
LONGEST = ("test_browser", "test_clustering", "test_queue", "test_processes", "test_push",
           "test_evaluate", "test_app", "test_app_input", "test_scikit_learn")  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


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


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def own_accelerator():
    """Accelerate keeps precision and passes per process; every test has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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
