"""A saved pipeline comes back the same; a damaged or mixed-up one is answered with one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from codeclade import CodecladePipeline

SETTINGS = {"guidance_scale": 3.0, "temperature": 0.8, "top_k": 9, "top_p": 0.9}


def ids_of(pipe: CodecladePipeline, seed: int = 0, **arguments) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pipe.set_progress_bar_config(disable=True)
    return pipe([0, 1, 4], generator=generator, output_type="latent", **arguments).images


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    """Folder of a saved pipeline of scheme "cluster"."""
    tiny_pipeline("cluster", **SETTINGS).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("max_shard_size", [None, "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["token", "cluster"])
def test_a_loaded_pipeline_makes_the_same_ids(
    tiny_pipeline, tmp_path, scheme, dtype, max_shard_size
):
    pipe = tiny_pipeline(scheme, **SETTINGS).to(dtype)
    pipe.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    for part in ("vq_model", "transformer"):
        shards = len(list((tmp_path / part).glob("*.safetensors")))
        assert (shards > 1) == (max_shard_size is not None)
    loaded = CodecladePipeline.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype
    assert (loaded.cluster_map is None) == (scheme == "token")
    assert torch.equal(ids_of(loaded), ids_of(pipe))
    images = [
        p("tabby", generator=torch.Generator().manual_seed(2), output_type="pt").images
        for p in (pipe, loaded)
    ]
    assert torch.equal(*images)


def test_a_second_round_trip_changes_nothing(saved, tmp_path):
    first = CodecladePipeline.from_pretrained(saved)
    first.save_pretrained(tmp_path / "again")
    again = CodecladePipeline.from_pretrained(tmp_path / "again")
    assert torch.equal(ids_of(first), ids_of(again))
    before, after = (
        json.loads((folder / "model_index.json").read_text()) | {"_name_or_path": None}
        for folder in (saved, tmp_path / "again")
    )
    assert before == after


def test_defaults_and_names_come_back_from_the_index(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert {key: index[key] for key in SETTINGS} == SETTINGS
    loaded = CodecladePipeline.from_pretrained(saved)
    assert {key: loaded.config[key] for key in SETTINGS} == SETTINGS
    assert loaded.guidance_scale == 3.0
    assert loaded.get_label_ids(["golden retriever", "tabby cat"]) == [2, 1]
    assert torch.equal(ids_of(loaded), ids_of(loaded, **SETTINGS))
    assert not torch.equal(ids_of(loaded), ids_of(loaded, top_k=0, top_p=1.0, temperature=2.0))


def test_weights_of_half_precision_keep_tree_and_mapping(saved):
    exact = CodecladePipeline.from_pretrained(saved).cluster_map
    half = CodecladePipeline.from_pretrained(saved, dtype=torch.bfloat16).cluster_map
    assert torch.equal(half.mapping, exact.mapping)
    assert torch.equal(half.merges, exact.merges)
    assert torch.equal(half.heights, exact.heights)


def test_a_component_can_be_given_instead_of_loaded(saved, tiny_pipeline):
    other = tiny_pipeline("cluster", seed=0).transformer
    shutil.rmtree(saved / "transformer")
    loaded = CodecladePipeline.from_pretrained(saved, transformer=other)
    assert loaded.transformer is other
    assert torch.equal(ids_of(loaded), ids_of(tiny_pipeline("cluster", **SETTINGS)))


def test_parts_that_do_not_belong_together_are_refused(
    tiny_pipeline, tiny_vq, tiny_map, tiny_transformer
):
    clustered = tiny_pipeline("cluster")
    vq_model, transformer = clustered.vq_model, clustered.transformer
    with pytest.raises(ValueError, match="scheme 'cluster' needs a cluster_map"):
        CodecladePipeline(vq_model, transformer)
    with pytest.raises(ValueError, match="cluster_map was made from another codebook"):
        CodecladePipeline(tiny_vq(seed=1), transformer, clustered.cluster_map)
    with pytest.raises(ValueError, match="predicts 12 clusters, but there are 11"):
        CodecladePipeline(vq_model, transformer, tiny_map(vq_model.codebook, 11))
    with pytest.raises(ValueError, match="predicts 31 tokens, but there are 32"):
        CodecladePipeline(vq_model, tiny_transformer(vocab_size=31))


def test_a_default_that_the_index_cannot_hold_is_refused(tiny_pipeline):
    with pytest.raises(ValueError, match="the default guidance_scale is one number"):
        tiny_pipeline("cluster", guidance_scale=[2.0, 3.0])


def test_a_map_of_another_codebook_is_refused(saved, tiny_vq):
    tiny_vq(seed=1).save_pretrained(saved / "vq_model")
    with pytest.raises(ValueError, match="cluster_map was made from another codebook"):
        CodecladePipeline.from_pretrained(saved)


def weight_file(folder, part: str):
    (file,) = (folder / part).glob("*.safetensors")
    return file


PARTS = ["vq_model", "transformer", "cluster_map"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_named(saved, part, keep):
    file = weight_file(saved, part)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(OSError, match=rf"{part}/{file.name} is truncated: \d+ bytes of \d+"):
        CodecladePipeline.from_pretrained(saved)


@pytest.mark.parametrize("part", PARTS)
def test_missing_weights_are_named(saved, part):
    weight_file(saved, part).unlink()
    with pytest.raises(OSError, match=rf"{part} holds no weights"):
        CodecladePipeline.from_pretrained(saved)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_component_is_named(saved, part):
    shutil.rmtree(saved / part)
    with pytest.raises(OSError, match=rf"{part} is missing: model_index.json names it"):
        CodecladePipeline.from_pretrained(saved)


@pytest.mark.parametrize("part", ["vq_model", "transformer"])
def test_a_missing_shard_is_named(tiny_pipeline, tmp_path, part):
    tiny_pipeline("token").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted((tmp_path / part).glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name) as caught:
        CodecladePipeline.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_missing_inside_a_file_is_named(saved, part):
    file = weight_file(saved, part)
    weights = load_file(file)
    name = {"vq_model": "quant_conv.weight", "transformer": "norm.weight", "cluster_map": "mapping"}
    weights.pop(name[part])
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises((ValueError, OSError), match=name[part]):
        CodecladePipeline.from_pretrained(saved)


def test_a_folder_without_index_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"model_index\.json"):
        CodecladePipeline.from_pretrained(tmp_path)
