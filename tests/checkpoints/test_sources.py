"""Where codebooks and tokenizers come from: nothing is asked of the Hub that is no Hub id."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from codeclade.checkpoints.codebooks import load_codebook, load_tokenizer
from codeclade.checkpoints.sources import find_source
from codeclade.cli import main

KEY = "quantize.embedding.weight"


@pytest.fixture
def asked(monkeypatch):
    """Repositories that somebody wanted to read."""
    names = []

    def model_info(api, repo, **options):
        names.append(repo)
        raise OSError("no network here")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    return names


@pytest.mark.parametrize(
    "name",
    [
        "rows", "runs/tokenizer/", "./runs/tokenizer", "../runs/tokenizer", "/runs/tokenizer",
        "~/runs/tokenizer", "-a/b", "a/b--c", "a/..", "a b/c", "a//b", "C:\\runs\\tokenizer", "",
        "https://huggingface.co/a/b", "a" * 200 + "/b",
    ],
)  # fmt: skip
def test_a_missing_name_that_is_no_hub_id_is_refused_at_once(name, asked):
    if name == "runs/tokenizer/":  # like a folder, and a Hub id as well: asked once
        with pytest.raises(ValueError, match="neither a file or folder here nor"):
            find_source(name)
        assert asked == ["runs/tokenizer"]
        return
    with pytest.raises(ValueError) as caught:
        find_source(name)
    assert not asked and len(str(caught.value)) < 300


def test_a_hub_id_is_asked_for_once(asked, capsys, tmp_path):
    command = ["cluster", "nobody/nothing", "--clusters", "3", "--out", str(tmp_path / "map")]
    assert main(command) == 2
    assert asked == ["nobody/nothing"]
    assert "neither a file or folder here nor a repository" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weight_map": {KEY: "../secret.safetensors"}}, r"names \.\./secret"),
        ({"weight_map": {KEY: "/etc/passwd"}}, "names /etc/passwd"),
        (
            {"weight_map": {KEY: "gone.safetensors"}},
            r"names gone\.safetensors, which is not",
        ),
        ({"weight_map": {KEY: 3}}, "names 3"),
        ({"weight_map": [KEY]}, "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_names_shards_beside_it(tmp_path, content, words):
    save_file({KEY: torch.randn(4, 2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({KEY: torch.randn(4, 2)}, folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_codebook(folder)
    good = {"weight_map": {KEY: "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(good))
    assert load_codebook(folder).shape == (4, 2)


def test_the_tokenizer_of_every_family_is_recognized(tmp_path, tiny_vq):
    from codeclade.checkpoints.iar2 import FAMILY as IAR2
    from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN

    fields = {"block_out_channels": (32, 32), "latent_channels": 32, "norm_num_groups": 32}
    for family, details in ((LLAMAGEN, None), (IAR2, 24)):
        model = tiny_vq(**fields, detail_codebook_size=details)
        torch.save(family.tokenizer.published_weights(model), tmp_path / "vq.pt")
        found = load_tokenizer(tmp_path / "vq.pt")
        assert found.detail_codebook_size == details
        assert torch.equal(found.codebook, model.codebook)
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="this is no LlamaGen tokenizer checkpoint"):
        load_tokenizer(tmp_path / "vq.pt")
