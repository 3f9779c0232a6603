"""Fixtures for tests that use the test Hub: `pytest_plugins = "fake_hub.fixtures"`."""

import socket
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants, file_download
from huggingface_hub.utils import _http

from fake_hub import server as hub_server
from fake_hub.client import TOKENS, write_files


@pytest.fixture
def waits(monkeypatch):
    """No waiting between retries; the list of waits that the client wanted."""
    wanted = []
    no_sleep = SimpleNamespace(**vars(time) | {"sleep": wanted.append})
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", no_sleep)
    return wanted


@pytest.fixture
def loopback_only(monkeypatch):
    """This process reaches no other address."""
    resolve = socket.getaddrinfo

    def checked(host, *arguments, **options):
        assert host == "127.0.0.1", host
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", checked)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def hub(tmp_path, monkeypatch, waits, loopback_only):
    """A Hub with Git LFS, for clients in this process."""
    settings = {"tokens": TOKENS, "organizations": {"guild": ["tester"]}}
    with hub_server.serve(tmp_path / "hub", xet=False, **settings) as server:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def api(hub):
    return HfApi(hub.endpoint, token="hf_tester")


@pytest.fixture
def folder(tmp_path):
    return write_files(tmp_path / "folder")
