"""What a folder becomes as a repository: kinds, files, indexes, and what never leaves a machine."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from codeclade import CodecladePipeline
from codeclade.hub.repository import count_parameters, read_repository


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    """Folder of a pipeline that was loaded once, so that diffusers wrote its path into it."""
    tiny_pipeline("cluster").save_pretrained(tmp_path / "first")
    CodecladePipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def content(repository, name: str) -> bytes:
    found = repository.files[name]
    return found if isinstance(found, bytes) else found.read_bytes()


def test_a_pipeline(saved, tiny_pipeline):
    repository = read_repository(saved)
    assert (repository.kind, repository.class_name) == ("pipeline", "CodecladePipeline")
    assert repository.repo_type == "model" and repository.left_out == []
    assert set(repository.files) == {
        "model_index.json",
        "pipeline.py",
        "vq_model/config.json",
        "vq_model/diffusion_pytorch_model.safetensors",
        "vq_model/modeling_codeclade_vq_model.py",
        "cluster_map/config.json",
        "cluster_map/diffusion_pytorch_model.safetensors",
        "cluster_map/modeling_codeclade_cluster_map.py",
        "transformer/config.json",
        "transformer/model.safetensors",
        "transformer/modeling_codeclade_transformer.py",
    }
    index = json.loads(content(repository, "model_index.json"))
    assert index["_class_name"] == ["pipeline", "CodecladePipeline"]
    assert index["vq_model"] == ["modeling_codeclade_vq_model", "VQModel"]
    assert index["refiner"] == [None, None]
    assert index["id2label"]["2"] == "golden retriever"
    assert list(repository.parts) == ["vq_model", "cluster_map", "transformer"]
    for name in ("vq_model", "transformer"):
        part = getattr(tiny_pipeline("cluster"), name)
        assert repository.parts[name].parameters == sum(p.numel() for p in part.parameters())


def test_no_path_of_this_machine_leaves_it(saved, tmp_path):
    assert str(tmp_path) in (saved / "model_index.json").read_text()
    (saved / "training.json").write_text(
        json.dumps({"recipe": {"data": str(tmp_path / "photos"), "steps": 3}})
    )
    repository = read_repository(saved)
    for name in repository.files:
        assert str(tmp_path).encode() not in content(repository, name), name
    assert json.loads(content(repository, "training.json"))["recipe"]["data"] == "photos"


def test_the_folder_itself_is_not_touched(saved):
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    read_repository(saved)
    assert before == {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}


@pytest.mark.parametrize("part", ["vq_model", "cluster_map", "transformer"])
def test_one_component(saved, part):
    repository = read_repository(saved / part)
    assert repository.kind == "model"
    config = json.loads(content(repository, "config.json"))
    module, class_name = config["auto_map"]["AutoModel"].split(".")
    assert class_name == repository.class_name
    assert f"class {class_name}" in content(repository, f"{module}.py").decode()
    assert ("AutoConfig" in config["auto_map"]) == (part == "transformer")
    assert "_name_or_path" not in config


def test_code_shards_are_a_dataset(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        header = {"split": split, "recipe": {"data": "/home/somebody/photos"}}
        (tmp_path / split / "codes.json").write_text(json.dumps(header))
        save_file({"ids": torch.zeros(2, 1, 4)}, tmp_path / split / "codes-00000.safetensors")
    (tmp_path / "train" / "codes.partial.json").write_text("{}")
    repository = read_repository(tmp_path)
    assert (repository.kind, repository.repo_type) == ("codes", "dataset")
    assert len(repository.files) == 4
    assert b"somebody" not in content(repository, "train/codes.json")


def test_variants_and_shards_are_counted_once(tiny_pipeline, tmp_path):
    part = tiny_pipeline("token").transformer
    part.save_pretrained(tmp_path, max_shard_size="20KB")
    part.save_pretrained(tmp_path, variant="bf16")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert count_parameters(tmp_path) == sum(p.numel() for p in part.parameters())


def test_foreign_files_stay_home(saved):
    (saved / "weights.pt").write_bytes(b"x")
    (saved / ".env").write_text("HF_TOKEN=hf_secret")
    (saved / "notes.py").write_text("import os")
    (saved / "samples.png").write_bytes(b"png")
    repository = read_repository(saved)
    assert sorted(repository.left_out) == ["notes.py", "weights.pt"]
    assert "samples.png" in repository.files and ".env" not in repository.files


def test_symbolic_links_are_refused(saved, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (saved / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match=r"extra\.json is a symbolic link"):
        read_repository(saved)


def test_what_cannot_be_pushed(saved, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        read_repository(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is no pipeline, .*; did you mean .*first\?|pipe\?"):
        read_repository(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="describes no codeclade component"):
        read_repository(other)
    (other / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    with pytest.raises(ValueError, match="holds a DiTPipeline, not a codeclade pipeline"):
        read_repository(other)
    shutil.rmtree(saved / "transformer")
    with pytest.raises(OSError, match="transformer is missing"):
        read_repository(saved)


def test_damaged_weights_are_named(saved):
    file = saved / "vq_model" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    for folder in (saved, saved / "vq_model"):
        with pytest.raises(OSError, match="is truncated"):
            read_repository(folder)
