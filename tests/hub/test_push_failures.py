"""Push: refusals, lost connections and dry runs leave nothing half-published."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from codeclade import ClusterMap, CodecladePipeline
from codeclade.cli import main
from codeclade.data.codes import Codes, codes_folder
from codeclade.hub.push import push
from fake_hub.client import head
from fresh_loading import fresh, image_hash

pytest_plugins = "fake_hub.fixtures"


def test_offline_mode_is_named(saved, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.constants.HF_HUB_OFFLINE", True)
    assert main(["push", str(saved), "tester/tiny", "--no-samples"]) == 2
    assert "HF_HUB_OFFLINE is set; unset it" in capsys.readouterr().err


@pytest.mark.slow  # a process of its own
def test_private_repositories(hub, saved, tmp_path):
    push(saved, "tester/hidden", private=True)
    load = """
from codeclade import CodecladePipeline
try:
    CodecladePipeline.from_pretrained("tester/hidden", token="hf_other")
except OSError as error:
    print("refused")
print(image_hash(CodecladePipeline.from_pretrained("tester/hidden")))
"""
    expected = image_hash(CodecladePipeline.from_pretrained(saved))
    assert fresh(hub, tmp_path / "home", load) == ["refused", expected]


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        (None, "tester/tiny", "without a valid token; run `hf auth login`"),
        ("hf_wrong", "tester/tiny", "without a valid token; run `hf auth login`"),
        ("hf_other", "tester/tiny", "this token may not write to tester/tiny"),
        ("hf_reader", "tester/tiny", "this token may not write to tester/tiny"),
        ("hf_tester", "someone/tiny", "this token may not write to someone/tiny"),
    ],
)
def test_missing_rights_are_one_sentence(hub, saved, token, name, words, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(saved), name, "--no-samples"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("codeclade push: ") and words in error
    assert not hub.repositories


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/repos/create", 402, "asks for payment for tester/tiny"),
        ("/commit/", 402, "asks for payment for tester/tiny"),
        ("/commit/", 409, "in use by another operation"),
        ("/commit/", 412, "somebody committed to tester/tiny in the meantime"),
        ("/commit/", 413, "larger than the Hub takes"),
        ("/commit/", 400, "the Hub refused tester/tiny (status 400); it says: "),
        ("/commit/", 403, "this token may not write to tester/tiny; use one with write access"),
    ],
)
def test_refusals_are_one_sentence(hub, saved, path, status, words, capsys):
    hub.fail_on("POST", path, status=status, times=None, message="because of <reasons>")
    assert main(["push", str(saved), "tester/tiny", "--no-samples"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("codeclade push: ") and words in error
    assert "because of <reasons>" in error
    if ("model", "tester/tiny") in hub.repositories:
        assert set(hub.repository("tester/tiny").resolve().files) == {".gitattributes"}


def test_a_lost_connection_publishes_nothing_and_is_resumed(hub, saved, capsys, waits):
    push(saved, "tester/tiny")
    before = head(hub)
    pipe = CodecladePipeline.from_pretrained(saved)
    for part in (pipe.vq_model, pipe.transformer):
        for parameter in part.parameters():
            parameter.data.mul_(2)
    pipe.save_pretrained(saved)
    file = (saved / "transformer" / "model.safetensors").read_bytes()
    size, sha = len(file), hashlib.sha256(file).hexdigest()
    lost = hub.drop_on("PUT", sha, times=None, after_bytes=size // 2)
    assert main(["push", str(saved), "tester/tiny", "--no-samples"]) == 2
    error = capsys.readouterr().err
    assert "was lost" in error and "Run the same command again" in error
    assert lost.hits and head(hub) == before
    lost.times = 0
    sent = len(hub.requests("PUT"))
    assert main(["push", str(saved), "tester/tiny", "--no-samples"]) == 0
    again = hub.requests("PUT")[sent:]
    assert [line.path.split("/")[-1] for line in again] == [sha] and head(hub) != before


def test_a_dry_run_sends_nothing(hub, saved, capsys):
    (saved / "old.pt").write_bytes(b"x")
    assert main(["push", str(saved), "tester/tiny", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert not hub.log
    size = (saved / "transformer" / "model.safetensors").stat().st_size
    assert re.search(rf"^ +{size:,}  transformer/model.safetensors$", output, re.MULTILINE)
    assert "README.md" in output and "in 13 files for tester/tiny; samples.png will be" in output
    assert "left out, as no repository file: old.pt" in output


@pytest.mark.parametrize(
    "name",
    ["tiny", "../tiny", "a/../b", "a/..", "a/b/c", "/a/b", "a b/c", "-a/b", ".a/b", "a/", ""],
)
def test_names_that_are_none(saved, name, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(saved), "--no-samples", "--", name]) == 2
    assert "is no repository name; give user/name" in capsys.readouterr().err


def test_an_unreachable_hub_is_one_sentence(saved, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(saved), "tester/tiny", "--no-samples"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and "the connection to http://127.0.0.1:9" in error


def test_objects_are_pushed_like_folders(hub, tiny_pipeline):
    pipe = tiny_pipeline("cluster")
    push(pipe.cluster_map, "tester/map", license="mit")
    files = hub.repository("tester/map").resolve().files
    assert "modeling_codeclade_cluster_map.py" in files and "README.md" in files
    assert isinstance(pipe.cluster_map, ClusterMap)


def test_code_shards_are_trained_on_by_id(hub, tmp_path, monkeypatch):
    ids = torch.arange(24).reshape(3, 2, 4).to(torch.uint16)
    header = {"images": 3, "views": 2, "grid_size": 2, "codebook_size": 32, "class_names": ["a"]}
    header |= {"detail_codebook_size": None, "recipe": {"data": "/home/somebody/photos"}}
    for split in ("train", "validation"):
        (tmp_path / "codes" / split).mkdir(parents=True)
        name = tmp_path / "codes" / split / "codes-00000.safetensors"
        save_file({"ids": ids, "labels": torch.zeros(3, dtype=torch.int32)}, name)
        own = json.dumps(header | {"split": split, "shards": [name.name]})
        (name.parent / "codes.json").write_text(own)
    assert main(["push", str(tmp_path / "codes"), "tester/codes", "--license", "cc0-1.0"]) == 0
    files = hub.repository("tester/codes", "dataset").resolve().files
    card = ModelCard(files["README.md"].content.decode())
    assert "--codes tester/codes" in card.text and "| train | 3 | 2 | 1 |" in card.text
    assert card.data.license == "cc0-1.0"
    assert "Images of photos as codes" in card.text
    assert b"somebody" not in files["README.md"].content + files["train/codes.json"].content
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = codes_folder("tester/codes")
    assert torch.equal(Codes(folder / "train").ids, ids) and len(Codes(folder / "validation")) == 3
    with pytest.raises(ValueError, match="there is no folder nowhere/at/all of code shards, and"):
        codes_folder("nowhere/at/all")


def test_an_own_readme_is_kept(hub, saved, capsys):
    text = "---\nlicense: mit\n---\n# Mine\n"
    (saved / "README.md").write_text(text)
    push(saved, "tester/tiny")
    assert hub.repository("tester/tiny").resolve().files["README.md"].content == text.encode()
    assert main(["push", str(saved), "tester/tiny", "--no-samples", "--license", "mit"]) == 2
    assert "README.md is there; state the license mit in it" in capsys.readouterr().err
    (saved / "README.md").write_text("---\nlicense: [\n---\n")
    assert main(["push", str(saved), "tester/tiny", "--no-samples"]) == 2
    assert "is no valid YAML" in capsys.readouterr().err


def test_no_token_is_ever_written(hub, saved):
    push(saved, "tester/tiny")
    for name, file in hub.repository("tester/tiny").resolve().files.items():
        assert b"hf_tester" not in (file.content or b""), name
    assert os.environ["HF_TOKEN"] == "hf_tester" and not list(Path(saved).rglob("*token*"))
