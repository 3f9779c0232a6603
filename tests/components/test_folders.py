"""What is checked of a folder, and that good folders of every kind still load."""

import inspect
import json
from typing import Annotated, get_args, get_origin

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import codeclade
from builders import build_refiner, build_scheme, build_transformer, same
from codeclade import (
    ClusterMap,
    CodecladeConfig,
    CodecladePipeline,
    CodecladeTransformer,
    Refiner,
    RefinerConfig,
    VQModel,
)
from codeclade.components.contents import check_finite
from codeclade.components.fields import SETTINGS, check_fields, declared_fields
from codeclade.components.loading import check_component

KINDS = (VQModel, ClusterMap, CodecladeConfig, RefinerConfig)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_a_config_has_a_range(kind):
    def is_bounded(hint) -> bool:
        inner = [one for one in get_args(hint) if get_origin(hint) is not Annotated]
        return hint not in (int, float) and all(map(is_bounded, inner))

    fields = declared_fields(kind)
    assert len(fields) >= 5
    assert all(is_bounded(hint) for hint in fields.values())


@pytest.mark.parametrize("kind", [CodecladeConfig, RefinerConfig])
def test_defaults_are_what_fields_may_be(kind):
    check_fields(kind, json.loads(kind().to_json_string(use_diff=False)), "config.json")


def test_settings_are_those_of_the_pipeline():
    assert set(SETTINGS) < set(inspect.signature(CodecladePipeline.__init__).parameters)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "bf16"},
        {"max_shard_size": "20KB"},
        {"variant": "bf16", "max_shard_size": "20KB"},
    ],
)
@pytest.mark.parametrize("scheme", ["cluster", "semantic_detail"])
def test_variants_and_shards_load_alone_by_diffusers_and_as_a_pipeline(tmp_path, scheme, options):
    pipe = build_scheme(scheme).to(torch.bfloat16)
    pipe.save_pretrained(tmp_path, **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    given = {"dtype": torch.bfloat16, **variant}
    for entry in (CodecladePipeline, DiffusionPipeline):
        loaded = entry.from_pretrained(tmp_path, local_files_only=True, **given)
        assert same(loaded.transformer, pipe.transformer)
        assert same(loaded.vq_model, pipe.vq_model)
    alone = {"subfolder": "transformer", "torch_dtype": torch.bfloat16, **variant}
    assert same(CodecladeTransformer.from_pretrained(tmp_path, **alone), pipe.transformer)
    assert same(VQModel.from_pretrained(tmp_path, subfolder="vq_model", torch_dtype=torch.bfloat16,
                                        **variant), pipe.vq_model)  # fmt: skip


def test_a_variant_beside_plain_weights_of_another_precision(tmp_path):
    pipe = build_scheme("cluster")
    pipe.save_pretrained(tmp_path)
    pipe.to(torch.bfloat16).save_pretrained(tmp_path, variant="bf16")
    assert json.loads((tmp_path / "transformer/config.json").read_text())["dtype"] == "bfloat16"
    exact = build_scheme("cluster").transformer
    loaded = CodecladePipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert same(loaded.transformer, exact)


def test_device_maps_offloading_to_disk_and_auto_classes(tmp_path):
    model, refiner = build_transformer(), build_refiner()
    model.save_pretrained(tmp_path / "model")
    refiner.save_pretrained(tmp_path / "refiner")
    placed = CodecladeTransformer.from_pretrained(tmp_path / "model", device_map="cpu")
    assert same(placed, model)
    places = dict.fromkeys(("prefix", "token_embedding", "norm", "head"), "cpu")
    places["layers"] = "disk"
    away = CodecladeTransformer.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "away"
    )
    assert any(parameter.is_meta for parameter in away.parameters())
    ids = torch.zeros(1, 3, dtype=torch.int64)
    labels = torch.tensor([0])
    assert torch.allclose(away(ids, labels).logits, model(ids, labels).logits, atol=1e-5)
    assert same(AutoModel.from_pretrained(tmp_path / "refiner"), refiner)


def test_quantized_weights_are_not_taken_for_damaged_ones(tmp_path):
    build_transformer().save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights, content = load_file(file), json.loads(config.read_text())
    method = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.write_text(json.dumps(content | {"quantization_config": method}))
    with pytest.raises(ValueError, match="no weight is quantized"):
        check_component(CodecladeTransformer, tmp_path)
    # As bitsandbytes stores a layer: whole numbers, and their scale beside them.
    name = "layers.0.attention.qkv.weight"
    quantized = {name: weights[name].mul(20).to(torch.int8), f"{name[:-7]}.SCB": torch.ones(96)}
    save_file(weights | quantized, file, metadata={"format": "pt"})
    check_component(CodecladeTransformer, tmp_path)
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="unexpected keys"):
        check_component(CodecladeTransformer, tmp_path)


def test_numbers_that_are_not_finite_are_named_in_any_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model = build_transformer().to(dtype)
        check_finite(model)
        model.norm.weight.data.fill_(torch.finfo(dtype).max)  # their differences overflow
        check_finite(model)
        model.layers[1].attention.out.weight.data[0, 0] = float("nan")
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(ValueError, match=rf"layers\.1\.attention\.out\.weight, {name}"):
            check_finite(model)
    check_finite(build_transformer().to("meta"))


def test_weights_too_large_for_half_precision_are_said_and_not_infinite(tmp_path):
    model = build_transformer()
    model.norm.weight.data[3] = 1e6
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite: norm\.weight, float16"):
        CodecladeTransformer.from_pretrained(tmp_path, dtype=torch.float16)


def test_a_damaged_tree_is_one_sentence_however_it_comes():
    labels, codebook = torch.arange(4) // 2, torch.randn(4, 3)
    good = [[0, 1], [2, 3], [4, 5]]
    tree = ClusterMap.from_labels(labels, codebook, children=good, heights=[1, 1, 2])
    assert tree.cut(2).mapping.tolist() == [0, 0, 1, 1]
    for children, heights in (
        ([[0, 1], [2, 9], [4, 5]], [1, 1, 2]),
        ([[0, 1], [0, 3], [4, 5]], [1, 1, 2]),
        ([[0, 1], [2, -1], [4, 5]], [1, 1, 2]),
        (good, [1, float("nan"), 2]),
        (good, [3, 2, 1]),
    ):
        with pytest.raises(ValueError, match="the merge tree is damaged"):
            ClusterMap.from_labels(labels, codebook, children=children, heights=heights)


def test_labels_that_are_no_cut_of_their_tree_are_refused(tmp_path):
    good = ClusterMap.from_pretrained(codeclade.bundled(), subfolder="cluster_map")
    good.mapping.copy_(good.mapping.roll(1))
    good.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mapping is not its merge tree cut at 512 clusters"):
        ClusterMap.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [Refiner, CodecladeTransformer])
def test_a_folder_of_another_class_is_refused(tmp_path, kind):
    model = build_transformer() if kind is Refiner else build_refiner()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        kind.from_pretrained(tmp_path)


def test_nothing_outside_the_folder_is_read(tmp_path):
    build_scheme("token").save_pretrained(tmp_path / "pipe", max_shard_size="20KB")
    index = tmp_path / "pipe/transformer/model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(content["weight_map"].values())
    (tmp_path / "pipe/transformer" / first).rename(tmp_path / "elsewhere.safetensors")
    places = {n: f.replace(first, "../../elsewhere.safetensors") for n, f in
              content["weight_map"].items()}  # fmt: skip
    index.write_text(json.dumps(content | {"weight_map": places}))
    for entry in (CodecladePipeline, DiffusionPipeline):
        with pytest.raises(OSError, match="is no name of a shard"):
            entry.from_pretrained(tmp_path / "pipe")
