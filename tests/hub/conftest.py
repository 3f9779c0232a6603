"""A Hub that pushes go to, and a pipeline to push."""

import pytest
from huggingface_hub import constants

from fake_hub import server as hub_server
from fake_hub.client import TOKENS


@pytest.fixture
def hub(tmp_path, monkeypatch, loopback_only):
    """A Hub that this process pushes to by LFS as `tester`."""
    with hub_server.serve(tmp_path / "hub", tokens=TOKENS, xet=False) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_tester")
        yield server


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    tiny_pipeline("cluster").save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"
