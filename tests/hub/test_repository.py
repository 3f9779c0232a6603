"""What a folder becomes as a repository: kinds, files, indexes, and what never leaves a machine."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codeclade import CodecladePipeline
from codeclade.evaluation.search import Trial, save_trials
from codeclade.hub.push import prepare
from codeclade.hub.repository import read_repository, stored_weights


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
        "modeling_codeclade_transformer.py",
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


TRAINING = {
    "stage": "generator",
    "data": "/home/alice/photos",
    "images": 3,
    "classes": 2,
    "steps": 3,
    "seconds": 9.0,
    "machine": "1 x x86_64 (cpu)",
    "recipe": {"data": "/home/alice/photos", "codes": "~/alice/codes", "x": "..\\alice\\y"},
    "logged": {},
}


def test_no_path_of_this_machine_leaves_it(saved, tmp_path):
    assert str(tmp_path) in (saved / "model_index.json").read_text()
    (saved / "training.json").write_text(json.dumps(TRAINING))
    recipe = "# of alice: C:\\alice\\x\ndata: /home/alice/photos  # 1/2, zh-plus/tiny-imagenet\n"
    (saved / "recipe.yaml").write_text(recipe.replace("of alice", "of us"))
    provenance = {"files": [{"name": "C:\\alice\\vq.pt", "bytes": 3}]}
    (saved / "provenance.json").write_text(json.dumps(provenance))
    result = {"metric": "KID", "value": 1, "dataset": "/home/alice/val", "protocol": "p"}
    (saved / "evaluation.json").write_text(json.dumps([result]))
    repository = prepare(saved, "user/tiny")
    for name in repository.files:
        assert str(tmp_path).encode() not in content(repository, name), name
        assert b"alice" not in content(repository, name), name
    recipe = json.loads(content(repository, "training.json"))["recipe"]
    assert recipe == {"data": "photos", "codes": "codes", "x": "y"}
    text = content(repository, "recipe.yaml").decode()
    assert text == "# of us: x\ndata: photos  # 1/2, zh-plus/tiny-imagenet\n"


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


CODES = {
    "images": 2,
    "views": 1,
    "grid_size": 2,
    "codebook_size": 32,
    "detail_codebook_size": None,
    "class_names": ["a", "b"],
    "recipe": {"data": "/home/somebody/photos"},
}


def test_code_shards_are_a_dataset(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        header = CODES | {"split": split, "shards": ["codes-00000.safetensors"]}
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
    assert stored_weights(tmp_path) == (sum(p.numel() for p in part.parameters()), "float32")


def test_only_files_with_a_place_are_sent(saved):
    kept = set(read_repository(saved).files)
    for name in (
        "weights.pt",
        "notes.py",
        "secrets.json",
        "token.txt",
        "private/family.jpg",
        "checkpoints/optimizer.safetensors",
        "transformer/optimizer.safetensors",
        "unused.png",
        ".env",
        ".git/config.json",
    ):
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_bytes(b"x")
    save_file({"step": torch.zeros(1)}, saved / "transformer" / "optimizer.safetensors")
    (saved / "samples.png").write_bytes(b"png")
    (saved / "shown.png").write_bytes(b"png")
    (saved / "README.md").write_text("![a picture](shown.png)")
    repository = read_repository(saved)
    assert set(repository.files) == kept | {"samples.png", "shown.png", "README.md"}
    assert repository.left_out == [
        "checkpoints/optimizer.safetensors",
        "notes.py",
        "private/family.jpg",
        "secrets.json",
        "token.txt",
        "transformer/optimizer.safetensors",
        "unused.png",
        "weights.pt",
    ]


def test_what_evaluate_writes(saved):
    """Numbers and the search go; the values of single images are for `compare` here."""
    kept = set(read_repository(saved).files)
    result = {"metric": "KID", "value": 1, "dataset": "d", "protocol": "p"}
    (saved / "evaluation.json").write_text(json.dumps([result]))
    np.savez(saved / "evaluation-images.npz", psnr=np.ones(3))
    (saved / ".samples-00").mkdir()
    np.save(saved / ".samples-00" / "000000.npy", np.zeros(3))
    trials = [Trial({"guidance_scale": scale, "top_k": 0}, 9 - scale) for scale in (1.0, 2.0)]
    save_trials(trials, "FD-x", saved / "search.json")
    repository = prepare(saved, "user/tiny")
    sent = {"evaluation.json", "search.json", "search.png", "README.md"}
    assert set(repository.files) == kept | sent
    assert repository.left_out == ["evaluation-images.npz"]
    points = json.loads(content(repository, "search.json"))
    assert points[1] == {"guidance_scale": 2.0, "top_k": 0, "FD-x": 7.0, "standard_error": None}
    card = content(repository, "README.md").decode()
    assert "](search.png)" in card and "[search.json](search.json)" in card
    # A curve without its points is any picture, and is not sent.
    (saved / "search.json").unlink()
    repository = prepare(saved, "user/tiny")
    assert repository.left_out == ["evaluation-images.npz", "search.png"]
    assert "## Search" not in content(repository, "README.md").decode()


def test_symbolic_links_are_refused(saved, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (saved / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match=r"extra\.json is a symbolic link"):
        read_repository(saved)


def test_what_cannot_be_pushed(saved, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        read_repository(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is no pipeline, .*; did you mean .*(first|pipe)\?"):
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


def test_a_missing_shard_is_named(tiny_pipeline, tmp_path):
    tiny_pipeline("token").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted((tmp_path / "transformer").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=rf"{shard.name} is missing: model\.safetensors\.index"):
        read_repository(tmp_path)


def test_weights_without_numbers_are_refused(saved):
    save_file({}, saved / "transformer" / "model.safetensors")
    with pytest.raises(OSError, match=r"model\.safetensors holds no weights"):
        read_repository(saved)


def test_listed_code_shards_must_be_there(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "codes.json"
    for name in ("codes-00000.safetensors", "../secret.safetensors"):
        path.write_text(json.dumps(CODES | {"shards": [name]}))
        with pytest.raises(OSError, match=r"is missing: .*codes\.json lists it"):
            read_repository(tmp_path)
    (tmp_path / "train" / "codes-00000.safetensors").write_bytes(b"")
    path.write_text(json.dumps(CODES | {"shards": ["codes-00000.safetensors"]}))
    with pytest.raises(OSError, match="truncated"):
        read_repository(tmp_path)


def test_the_dtype_of_the_config_is_that_of_the_plain_weights(tiny_pipeline, tmp_path):
    """Saving a variant rewrites config.json, by whose dtype transformers loads the plain file."""
    tiny_pipeline("cluster").save_pretrained(tmp_path)
    tiny_pipeline("cluster").to(torch.bfloat16).save_pretrained(tmp_path, variant="bf16")
    path = tmp_path / "transformer" / "config.json"
    assert json.loads(path.read_text())["dtype"] == "bfloat16"
    repository = read_repository(tmp_path)
    assert json.loads(content(repository, "transformer/config.json"))["dtype"] == "float32"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("model_index.json", "[]", "must hold an object, not list"),
        ("model_index.json", "null", "must hold an object, not NoneType"),
        ("model_index.json", "{", r"is no valid JSON"),
        (
            "model_index.json",
            '{"_class_name": []}',
            "holds a None, not a codeclade pipeline|\\[\\]",
        ),
        ("model_index.json", '{"_class_name": "VQModel"}', "holds a VQModel, not a codeclade"),
        ("transformer/config.json", "[]", r"transformer/config\.json must hold an object"),
        ("transformer/config.json", "{}", r"transformer/config\.json: scheme must be text"),
        ("vq_model/config.json", '{"block_out_channels": 3}', "block_out_channels must be a list"),
        ("evaluation.json", "{}", "must hold a list, not dict"),
        ("evaluation.json", '["KID"]', "must be a list of objects"),
        ("evaluation.json", '[{"metric": 3}]', "metric must be text, got 3"),
        (
            "evaluation.json",
            '[{"metric": "KID", "value": NaN, "dataset": "d", "protocol": "p"}]',
            "value must be a number, got nan",
        ),
        ("training.json", "[]", "must hold an object, not list"),
        ("training.json", '{"stage": "generator"}', "data must be text, got None"),
        ("provenance.json", "[]", "must hold an object"),
        ("provenance.json", '{"method": 3}', "method must be text, got 3"),
        ("provenance.json", '{"files": [{"name": "x"}]}', "bytes must be a whole number"),
    ],
)
def test_a_malformed_file_is_named(saved, name, text, words):
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_repository(saved)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"../vq_model": ["codeclade", "VQModel"]}, "'../vq_model' is no name of a component"),
        ({"refiner": ["os", "system"]}, "refiner is a system of os, which nobody knows"),
        ({"refiner": ["codeclade", "Unet"]}, "refiner is a Unet of codeclade, which nobody knows"),
        ({"id2label": {"0": 3}}, "id2label must map class numbers to names"),
        ({"id2label": {"zero": "a"}}, "id2label must map class numbers to names"),
    ],
)
def test_an_index_that_lies_is_refused(saved, changes, words):
    path = saved / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=words):
        read_repository(saved)


def test_damaged_weights_are_named(saved):
    file = saved / "vq_model" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    for folder in (saved, saved / "vq_model"):
        with pytest.raises(OSError, match="is truncated"):
            read_repository(folder)
