"""Adapters of published families: one shape, strict in both directions; a new one is one file."""

import importlib
import sys
import types
from typing import ClassVar

import pytest
import torch

from builders import build_scheme, build_transformer, build_vq
from codeclade import CodecladePipeline, Refiner, RefinerConfig
from codeclade.checkpoints import registry
from codeclade.checkpoints.adapter import StateDictAdapter
from codeclade.checkpoints.conversion import write_folder, write_published
from codeclade.checkpoints.family import PublishedFamily
from codeclade.checkpoints.llamagen import LlamaGen, LlamaGenTokenizer
from codeclade.checkpoints.registry import FAMILIES, Entry, load_family
from codeclade.cli import main

VQ = {"block_out_channels": (32, 32), "latent_channels": 32, "norm_num_groups": 32}
GIVEN = {"grid_size": 4, "num_attention_heads": 2}
PAIRS = {"scheme": "semantic_detail", "coarse_vocab_size": 32, "vocab_size": 24}
PAIRS |= {"positions_per_cell": 2, "head_layers": 1}


def refiner() -> Refiner:
    torch.manual_seed(0)
    fields = {"codebook_size": 32, "num_clusters": 12, "grid_size": 4, "num_classes": 5}
    fields |= {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    return Refiner(RefinerConfig(**fields))


MODELS = {  # a component that every adapter takes
    "llamagen tokenizer": lambda: build_vq(**VQ),
    "llamagen generator": build_transformer,
    "dcpe tokenizer": lambda: build_vq(**VQ),
    "dcpe generator": lambda: build_transformer(scheme="cluster"),
    "dcpe refiner": refiner,
    "iar tokenizer": lambda: build_vq(**VQ),
    "iar generator": build_transformer,
    "iar2 tokenizer": lambda: build_vq(**VQ, detail_codebook_size=24),
    "iar2 generator": lambda: build_transformer(**PAIRS),
}
ADAPTERS = {
    f"{name} {part}": adapter
    for name in FAMILIES
    for part in ("tokenizer", "generator", "refiner")
    if (adapter := getattr(load_family(name), part)) is not None
}


def given(name: str) -> dict:
    return {} if name.endswith("tokenizer") else GIVEN


def test_every_adapter_is_tried_here():
    assert set(ADAPTERS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_four_functions_round_trip_byte_for_byte(name):
    adapter, model = ADAPTERS[name], MODELS[name]()
    ours = model.state_dict()
    theirs = adapter.to_published(ours)
    assert adapter.recognizes(theirs) and not adapter.recognizes(ours)
    back = adapter.from_published(theirs)
    assert list(back) == list(ours)
    assert all(torch.equal(back[key], value) for key, value in ours.items())
    fields = adapter.config_from(theirs, **given(name))
    assert (
        all(model.config[k] == v for k, v in fields.items())
        if name.endswith("tokenizer")
        else all(getattr(model.config, key) == value for key, value in fields.items())
    )
    built = adapter.build(theirs, **given(name))
    assert not built.training and list(built.state_dict()) == list(ours)
    again = adapter.published_weights(built)
    assert all(torch.equal(again[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", MODELS)
def test_wrong_weights_are_named_as_they_are_published(name):
    adapter = ADAPTERS[name]
    theirs = adapter.published_weights(MODELS[name]())
    some = "encoder.conv_in.weight" if name.endswith("tokenizer") else "layers.1.ffn_norm.weight"
    some = some if some in theirs else "layers.0.ffn_norm.weight"
    for change, words in (
        ({some: torch.ones(3)}, rf"^{some} has shape \(3,\), but this {adapter.what} needs"),
        ({some: torch.full_like(theirs[some], torch.nan)}, rf"^{some} holds NaN or infinite"),
        ({some: theirs[some].long()}, rf"^{some} holds int64, not floating-point"),
        ({"more.weight": torch.ones(1)}, rf"no {adapter.what} checkpoint: unexpected more\.weight"),
    ):
        with pytest.raises(ValueError, match=words):
            adapter.build(theirs | change, **given(name))
    del theirs[some]
    with pytest.raises(ValueError, match=rf"no {adapter.what} checkpoint: missing {some}"):
        adapter.build(theirs, **given(name))


def test_a_layer_of_a_large_number_builds_no_layers():
    adapter = ADAPTERS["llamagen generator"]
    theirs = adapter.published_weights(build_transformer())
    theirs["layers.999999999.ffn_norm.weight"] = torch.ones(32)
    with pytest.raises(ValueError, match="this is no LlamaGen generator checkpoint: missing"):
        adapter.build(theirs, **GIVEN)


@pytest.mark.parametrize("heads", [0, -2, 3, 64])
def test_heads_that_do_not_fit_are_refused(heads):
    adapter = ADAPTERS["llamagen generator"]
    theirs = adapter.published_weights(build_transformer())
    with pytest.raises(ValueError, match=f"{heads} heads do not divide a width of 32"):
        adapter.build(theirs, grid_size=4, num_attention_heads=heads)


def test_what_no_family_publishes_is_not_written(tmp_path):
    build_scheme("cluster_token").save_pretrained(tmp_path / "pipe")
    (tmp_path / "back").mkdir()
    with pytest.raises(ValueError, match="no published family holds this CodecladeTransformer"):
        write_published(tmp_path / "pipe", tmp_path / "back")
    assert not list((tmp_path / "back").iterdir())
    assert (
        main(["convert", "to-llamagen", str(tmp_path / "pipe"), "--out", str(tmp_path / "b")]) == 2
    )


def test_an_unknown_family_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="'vqgan' is unknown; use one of llamagen, dcpe"):
        write_folder(tmp_path / "x", "vqgan", "vq.pt", None)


def test_a_new_family_is_one_module_and_one_entry(tmp_path, monkeypatch, capsys):
    """A toy project whose tokenizer has other names; the command line knows it by its entry."""

    class ToyTokenizer(LlamaGenTokenizer):
        what = "Toy tokenizer"
        names: ClassVar = {
            f"toy.{theirs}": ours for theirs, ours in LlamaGenTokenizer.names.items()
        }
        required = tuple(f"toy.{key}" for key in LlamaGenTokenizer.required)

        def config_from(self, state_dict, **given):
            plain = {key.removeprefix("toy."): value for key, value in state_dict.items()}
            return super().config_from(plain)

    class Toy(LlamaGen):
        method = "Toy"
        tokenizer = ToyTokenizer()

    module = types.ModuleType("codeclade.checkpoints.toy")
    module.FAMILY = Toy()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.FAMILIES, "toy", Entry("Toy: for a test"))
    model = build_vq(**VQ)
    torch.save(module.FAMILY.tokenizer.published_weights(model), tmp_path / "toy.pt")
    gpt = load_family("llamagen").generator.published_weights(build_transformer())
    torch.save(gpt, tmp_path / "gpt.pt")
    files = ["--vq", tmp_path / "toy.pt", "--gpt", tmp_path / "gpt.pt", "--image-size", 8]
    files += ["--heads", 2, "--out", tmp_path / "pipe"]
    assert main(["convert", "toy", *map(str, files)]) == 0, capsys.readouterr().err
    loaded = CodecladePipeline.from_pretrained(tmp_path / "pipe")
    assert torch.equal(loaded.vq_model.codebook, model.codebook)


def test_families_have_the_shape_that_the_registry_promises():
    for name in FAMILIES:
        module = importlib.import_module(f"codeclade.checkpoints.{name}")
        assert isinstance(module.FAMILY, PublishedFamily)
        for part in ("tokenizer", "generator"):
            assert isinstance(getattr(module.FAMILY, part), StateDictAdapter)
        required = {flag.replace("-", "_") for flag in FAMILIES[name].files}
        assert set(module.FAMILY.required_files) <= required
