"""A Hub that pushes go to, a pipeline to push, and an interpreter without this package."""

import os
import subprocess
import sys
import venv

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


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """An interpreter that has every library of this one, but no codeclade."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (inside,) = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (inside / "libraries.pth").write_text("\n".join(libraries))  # their own .pth are not followed
    interpreter = folder / "bin" / "python"
    code = "from importlib.util import find_spec as f; print(f('codeclade'), bool(f('torch')))"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter, "-c", code], capture_output=True, text=True, check=True, env=clean
    )
    wanted = "None True"
    assert done.stdout.strip() == wanted, "codeclade must be installed in editable mode here"
    return interpreter


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    tiny_pipeline("cluster").save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"
