"""LoRA through PEFT: what is trained, what is frozen, and that merging keeps the model."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from builders import build_scheme
from codeclade import CodecladePipeline, CodecladeTransformer
from codeclade.data.codes import Codes
from codeclade.training.generator import train_generator, validation_loss
from codeclade.training.run import Run
from generator_runs import RECIPE, write_codes


def fine_tune(tmp_path, scheme: str, name: str = "run", **changes):
    """A source, a fine-tuned pipeline, and the codes."""
    source = build_scheme(scheme)
    if not (tmp_path / "source").exists():
        source.save_pretrained(tmp_path / "source")
        write_codes(tmp_path / "codes", source.vq_model, pairs=scheme == "semantic_detail")
    recipe = replace(
        RECIPE,
        scheme=scheme,
        init_from=str(tmp_path / "source"),
        **{"lora_rank": 2, "ema_decay": 0.0} | changes,
    )
    cluster_map = source.cluster_map if scheme.startswith("cluster") else None
    parts = source.vq_model, cluster_map, tmp_path / name
    return source, train_generator(recipe, tmp_path / "codes", *parts)


@pytest.mark.parametrize("scheme", ["token", "cluster", "semantic_detail"])
def test_blocks_change_by_low_rank_and_the_rest_is_frozen(tmp_path, scheme):
    pytest.importorskip("peft")
    source, pipe = fine_tune(tmp_path, scheme)
    before, after = source.transformer.state_dict(), pipe.transformer.state_dict()
    assert set(after) == set(before)
    changed = set()
    for name, value in after.items():
        if name.startswith("prefix"):
            continue
        difference = (value - before[name]).float()
        if difference.abs().max() == 0:
            continue
        changed.add(name)
        assert torch.linalg.matrix_rank(difference, atol=1e-5) <= 2, name
    kinds = ("attention.qkv", "attention.out", "feed_forward.gate")
    kinds += ("feed_forward.up", "feed_forward.down")
    blocks = [name for name in before if name.startswith(("layers.", "head.blocks."))]
    assert changed == {name for name in blocks if any(kind in name for kind in kinds)}
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


def test_the_saved_model_is_the_trained_one(tmp_path):
    pytest.importorskip("peft")
    fine_tune(tmp_path, "token", lora_alpha=8.0, lora_whole=["prefix", "head"])
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    loaded = CodecladePipeline.from_pretrained(tmp_path / "run" / "pipeline").transformer
    found = validation_loss(loaded.eval(), Codes(tmp_path / "codes" / "validation"), None)
    assert found == pytest.approx(log[-1]["validation_loss"], abs=1e-5)
    assert set(loaded.state_dict()) == set(CodecladeTransformer(loaded.config).state_dict())
    assert not torch.equal(loaded.head.weight, build_scheme("token").transformer.head.weight)


def test_a_stopped_run_ends_bit_equal(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    settings = {"lora_dropout": 0.1, "ema_decay": 0.9, "save_every": 2, "use_best": True}
    _, whole = fine_tune(tmp_path, "token", "whole", **settings)
    save = Run.save

    def save_then_stop(run, step):
        save(run, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path, "token", **settings)
    monkeypatch.setattr(Run, "save", save)
    _, resumed = fine_tune(tmp_path, "token", **settings)
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(value, resumed.transformer.state_dict()[name]), name


def test_without_peft_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="lora_rank=4 needs the package peft, which is not"):
        replace(RECIPE, lora_rank=4, init_from="runs/generator/pipeline")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 4}, "lora_rank=4 needs init_from"),
        ({"lora_rank": -1}, "lora_rank=-1, .* must be 0 or more"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 must be 0 or more, and the last below 1"),
        ({"lora_whole": ["layers"]}, "lora_whole has 'layers'; it may have prefix, token_emb"),
        (
            {"lora_rank": 4, "init_from": "p", "embedding_prior": "tree"},
            "lora_rank=4 does not go with embedding_prior",
        ),
        (
            {"lora_rank": 4, "init_from": "p", "grow": {0: 4, 2: "all"}},
            "lora_rank=4 does not go with grow",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(RECIPE, **changes)
