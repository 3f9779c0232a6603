"""What installs an extra depends on where the package came from."""

import json

import pytest

from codeclade.cli import main
from codeclade.data.extras import install_command, missing_extra

ORIGINS = {
    "": "pip install 'codeclade[eval]'",
    json.dumps({"url": "file:///home/me/a%20b", "dir_info": {"editable": True}}): (
        "pip install --editable '/home/me/a b[eval]'"
    ),
    json.dumps({"url": "file:///home/me/src", "dir_info": {}}): (
        "pip install 'codeclade[eval] @ file:///home/me/src'"
    ),
    json.dumps({"url": "https://git.example/c.git", "vcs_info": {"vcs": "git"}}): (
        "pip install 'codeclade[eval] @ git+https://git.example/c.git'"
    ),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_command_fits_the_installation(origin):
    assert install_command("eval", origin) == ORIGINS[origin]


def test_a_missing_module_names_its_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # as if it were not there
    folder = tmp_path / "photos"
    folder.mkdir()
    given = [f"data={folder}", "image_size=32", "steps=1", "perceptual=none"]
    assert main(["train-tokenizer", "--out", str(tmp_path / "run"), *given]) == 2
    assert f"; {install_command('train')}" in capsys.readouterr().err
    assert missing_extra(ModuleNotFoundError("no", name="numba")) == ""
