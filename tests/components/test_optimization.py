"""Weights in other forms: how near their products are, and what an optimized pipeline refuses."""

import pytest
import torch

from builders import SCHEMES, build_pipeline, build_scheme
from codeclade import CodecladePipeline
from codeclade.components.optimization import FORMS, has_bfloat16_products, optimize

needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16_products(), reason="this processor has no products of bfloat16"
)


def logits(pipe, scheme: str) -> torch.Tensor:
    """Teacher-forced logits of a fixed image."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 16, 2) if scheme == "semantic_detail" else (2, 16)
    tokens = torch.randint(12, shape, generator=generator)
    with torch.no_grad():
        output = pipe.transformer(tokens, torch.tensor([1, 3]))
    return output.semantic_logits if scheme == "semantic_detail" else output.logits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("packed", torch.float32),
        pytest.param("packed", torch.bfloat16, marks=needs_bfloat16),
        ("int8", torch.bfloat16),
    ],
)
def test_products_of_optimized_weights_are_near(scheme, weights, dtype):
    pipe = build_scheme(scheme)
    exact = logits(pipe, scheme)
    pipe.transformer.to(dtype)
    plain = logits(pipe, scheme)
    found = logits(pipe.optimize(weights), scheme)
    scale = exact.std()
    if dtype == torch.float32:
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * scale.item())
    else:  # rounding to 8 bits may cost about as much again as bfloat16 does
        allowed = 1.2 if weights == "packed" else 2.5
        assert (found - exact).square().mean() < (allowed * (plain - exact)).square().mean()


@pytest.mark.parametrize("weights", FORMS)
def test_an_optimized_pipeline_makes_images(weights):
    pipe = build_scheme("token")
    pipe.transformer.to(torch.bfloat16 if weights == "int8" else torch.float32)
    settings = {"guidance_scale": 2.0, "temperature": 0, "output_type": "ids"}
    before = pipe([1, 2], **settings).images
    after = pipe.optimize(weights)([1, 2], **settings).images
    assert (before == after).float().mean() > 0.3  # greedy choices of a random model are narrow
    assert pipe([1, 2], output_type="pt").images.shape == (2, 3, 16, 16)


def test_int8_rounds_to_the_nearest_of_255_steps():
    layer = torch.nn.Linear(40, 30, bias=True).to(torch.bfloat16)
    x = torch.randn(20, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight, bias = layer.weight.detach().float(), layer.bias.detach().float()
    optimize(layer, "int8")
    for rows in (x[:1], x[:3], x):  # the kernel of few rows, and the product of many
        with torch.no_grad():
            found = layer(rows).float()
        step = weight.abs().amax(1) / 127
        exact = rows.float() @ weight.T + bias
        bound = rows.float().abs().sum(1, keepdim=True) * step / 2 + 0.02 * exact.abs() + 0.02
        assert ((found - exact).abs() < bound).all()


def test_bad_requests_are_refused_before_anything_changes(tmp_path):
    pipe = build_pipeline()
    with pytest.raises(ValueError, match=r"weights='int4' must be one of"):
        pipe.optimize("int4")
    with pytest.raises(ValueError, match=r"'int8' is for torch\.bfloat16 on a CPU; this model is"):
        pipe.optimize("int8")
    pipe.save_pretrained(tmp_path)  # nothing has happened yet
    pipe.optimize()
    with pytest.raises(ValueError, match="optimized already"):
        pipe.optimize()
    with pytest.raises(ValueError, match="cannot be saved; save it before"):
        pipe.save_pretrained(tmp_path / "again")
    pipe.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"was optimized for torch\.float32 on a CPU"):
        pipe(1)


def test_a_processor_without_bfloat16_products_is_told_what_to_do(monkeypatch):
    name = "codeclade.components.optimization.has_bfloat16_products"
    monkeypatch.setattr(name, lambda: False)
    pipe = build_pipeline()
    pipe.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"load the pipeline with dtype=torch\.float32"):
        pipe.optimize()
    pipe.transformer.to(torch.float32)
    pipe.optimize()


def test_partial_pipelines_are_optimized_as_far_as_they_go(tmp_path):
    build_pipeline("token").save_pretrained(tmp_path)
    first = CodecladePipeline.from_pretrained(tmp_path, vq_model=None).optimize()
    assert first(1, output_type="ids").images.shape == (1, 4, 4)
    second = CodecladePipeline.from_pretrained(tmp_path, transformer=None)
    with pytest.raises(ValueError, match="without transformer, so it cannot be optimized"):
        second.optimize()


def test_channels_last_changes_no_number():
    pipe = build_pipeline("token")
    given = {"output_type": "pt", "temperature": 0}
    before = pipe(1, **given).images
    torch.testing.assert_close(pipe.optimize()(1, **given).images, before, rtol=0, atol=1e-5)
    assert pipe.vq_model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
