"""Generators whose linear layers were wrapped (PEFT) or quantized (TorchAO), as others do it."""

import importlib.util

import pytest
import torch

from builders import SCHEMES, build_scheme
from codeclade import CodecladeTransformer
from codeclade.training.low_rank import merged


def head_and_tables(model) -> list[str]:
    """Names of the linear layers of the head and of the tables of the token embedding."""
    kinds = torch.nn.Linear, torch.nn.Embedding
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return [name for name in layers if name.startswith(("head", "token_embedding"))]


def arguments(scheme: str) -> dict:
    """A call of a generator of `build_scheme`, with labels."""
    shape = (2, 16, 2) if scheme == "semantic_detail" else (2, 16)
    ids = torch.randint(0, 12, shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids[:, :-1], "class_labels": torch.tensor([0, 3]), "labels": ids}


def images(pipe) -> torch.Tensor:
    """Two images, always by the same draws."""
    generator = torch.Generator().manual_seed(0)
    return pipe([0, 3], generator=generator, output_type="pt").images


@pytest.mark.parametrize("targets", ["all-linear", "head and tables"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_peft_wraps_any_layer(scheme, targets):
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import BaseTunerLayer

    pipe = build_scheme(scheme)
    model, given = pipe.transformer, arguments(scheme)
    before, pictures = model(**given), images(pipe)
    chosen = targets if targets == "all-linear" else head_and_tables(model)
    # A fresh update is zero and changes nothing.
    config = peft.LoraConfig(r=2, target_modules=chosen)
    peft.inject_adapter_in_model(config, model)
    # By itself PEFT leaves the vocabulary's own layer out.
    wrapped = isinstance(model.get_output_embeddings(), BaseTunerLayer)
    assert wrapped == (targets != "all-linear")
    assert torch.equal(model(**given).loss, before.loss)
    assert torch.equal(images(pipe), pictures)
    # All updates learn, the head's as well.
    model(**given).loss.backward()
    updates = {name: p for name, p in model.named_parameters() if "lora_" in name}
    unused = [name for name, p in updates.items() if "_B" in name and p.grad is None]
    assert not unused
    # Merged they are the ordinary model that computes the same.
    generator = torch.Generator().manual_seed(0)
    for parameter in updates.values():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    changed = model(**given)
    assert not torch.allclose(changed.loss, before.loss)
    plain = merged(model)
    torch.testing.assert_close(plain(**given).loss, changed.loss, rtol=1e-4, atol=0)
    assert set(plain.state_dict()) == set(CodecladeTransformer(plain.config).state_dict())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_peft_trains_the_head_whole(scheme):
    peft = pytest.importorskip("peft")
    pipe = build_scheme(scheme)
    model, given = pipe.transformer, arguments(scheme)
    before = model(**given).loss
    config = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["head"])
    pipe.transformer = peft.get_peft_model(model, config).base_model.model
    assert torch.equal(pipe.transformer(**given).loss, before)
    assert torch.isfinite(images(pipe)).all()


@pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="needs torchao")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_torchao_quantizes_saves_and_loads(scheme, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    pipe = build_scheme(scheme)
    given = arguments(scheme)
    exact = pipe.transformer(**given).loss
    pipe.transformer.save_pretrained(tmp_path / "plain")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    load = CodecladeTransformer.from_pretrained
    quantized = load(tmp_path / "plain", quantization_config=config).eval()
    kinds = {type(p).__name__ for p in quantized.parameters()}
    assert any("Int8" in kind for kind in kinds)
    loss = quantized(**given).loss
    assert 0 < abs(loss - exact) < 0.05
    quantized.save_pretrained(tmp_path / "quantized")
    loaded = load(tmp_path / "quantized").eval()
    assert torch.equal(loaded(**given).loss, loss)
    pipe.transformer = loaded
    assert torch.isfinite(images(pipe)).all()
