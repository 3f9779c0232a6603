"""The tokenizer in half precision, in slices, compiled, and with diffusers' ways of returning."""

import json

import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput

from builders import build_scheme, build_vq
from codeclade import CodecladePipeline, VQModel
from codeclade.components import vq_model
from codeclade.components.loading import check_component

KEPT = ("encoder.", "quant_conv.", "quantize.")


@pytest.fixture(params=[None, 24], ids=["one", "pairs"])
def vq(request):
    return build_vq(detail_codebook_size=request.param)


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("way", ["to", "half", "loaded"])
def test_ids_are_those_of_float32_in_half_precision(vq, pixels, way, tmp_path):
    expected = vq.encode(pixels).ids
    if way == "loaded":
        vq.save_pretrained(tmp_path)
        half = VQModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    else:
        half = vq.half() if way == "half" else vq.to(torch.float16)
    assert half.dtype == torch.float16
    for name, value in half.state_dict().items():
        assert (value.dtype == torch.float32) == name.startswith(KEPT), name
    assert torch.equal(half.encode(pixels.half().float()).ids, half.encode(pixels.half()).ids)
    assert torch.equal(half.encode(pixels).ids, expected)
    assert half.decode(expected).isfinite().all()


def test_wider_dtypes_and_a_way_back(vq):
    vq.to(torch.bfloat16).to(torch.float64)
    assert {value.dtype for value in vq.state_dict().values()} == {torch.float64}


def test_slices_give_the_whole(vq, pixels):
    ids = vq.encode(pixels).ids
    images = vq.decode(ids)
    seen = []
    hook = vq.decoder.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    vq.enable_slicing(2)
    torch.testing.assert_close(vq.decode(ids), images)
    assert torch.equal(vq.encode(pixels).ids, ids) and seen == [2, 1]
    vq.disable_slicing()
    vq.decode(ids)
    hook.remove()
    assert seen == [2, 1, 3]
    with pytest.raises(ValueError, match="images=0 must be 1 or more"):
        vq.enable_slicing(0)


def test_returns_as_diffusers_autoencoders_do(vq, pixels):
    ids = vq.encode(pixels).ids
    images = vq.decode(ids)
    assert isinstance(vq.decode(ids, return_dict=True), DecoderOutput)
    assert torch.equal(vq.decode(ids, return_dict=True).sample, images)
    assert torch.equal(vq.decode(ids, return_dict=False)[0], images)
    assert torch.equal(vq(pixels, return_dict=False)[0], images)
    assert type(vq.encode(pixels, return_dict=False)) is tuple


def test_weights_can_be_stored_in_eight_bits(vq, pixels):
    ids = vq.encode(pixels).ids
    expected = vq.decode(ids)
    vq.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    stored = {value.dtype for value in vq.decoder.state_dict().values()}
    assert torch.float8_e4m3fn in stored and torch.equal(vq.encode(pixels).ids, ids)
    error = (vq.decode(ids) - expected).abs().mean() / expected.abs().mean()
    assert 0 < error < 0.25


def test_checkpointing_gives_equal_gradients(vq, pixels):
    def gradients():
        vq.zero_grad()
        latents = vq.encode(pixels).latents
        vq.decode_codes(latents).square().mean().backward()
        return [p.grad.clone() for p in vq.parameters() if p.grad is not None]

    vq.train()
    expected = gradients()
    vq.enable_gradient_checkpointing()
    assert vq.encoder.gradient_checkpointing and vq.decoder.gradient_checkpointing
    torch.testing.assert_close(gradients(), expected)


@pytest.mark.parametrize("details", [None, pytest.param(24, marks=pytest.mark.slow)])
def test_encoding_and_decoding_are_one_graph_each(details, pixels):
    vq = build_vq(detail_codebook_size=details)
    ids = vq.encode(pixels).ids
    torch._dynamo.reset()
    decode = torch.compile(vq.decode, backend="eager", fullgraph=True)
    torch.testing.assert_close(decode(ids), vq.decode(ids))
    encode = torch.compile(vq.encode, backend="eager", fullgraph=True)
    assert torch.equal(encode(pixels).ids, ids)
    program = torch.export.export(vq, (pixels,))
    torch.testing.assert_close(program.module()(pixels), vq(pixels))


def test_a_decoder_that_overflows_is_named():
    pipe = build_scheme("token")
    with torch.no_grad():
        pipe.vq_model.decoder.conv_out.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"not finite in torch\.float32"):
        pipe(1)


def too_large(force_upcast: bool):
    """A pipeline whose decoder has weights beyond float16."""
    pipe = build_scheme("token")
    pipe.vq_model = build_vq(force_upcast=force_upcast)
    with torch.no_grad():
        pipe.vq_model.post_quant_conv.weight.mul_(1e6)
        pipe.vq_model.decoder.conv_in.weight.mul_(1e6)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe) -> torch.Tensor:
    ids = torch.arange(16).view(1, 4, 4)  # the same ids, whatever the dtype of the generator
    settings = {"mask_image": torch.zeros(1, 16, 16), "output_type": "pt"}
    return pipe(1, ids=ids, **settings).images


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["to", "half", "loaded", "alone", "layerwise"])
def test_a_tokenizer_that_forces_float32_decodes_as_in_float32(way, dtype, pixels, tmp_path):
    pipe = too_large(force_upcast=True)
    expected, codes = picture(pipe), pipe.vq_model.encode(pixels).latents
    assert expected.isfinite().all()
    if way == "to":
        pipe.to(dtype)
    elif way == "half":
        pipe.vq_model.half().bfloat16()
    elif way == "layerwise":
        pipe.vq_model.enable_layerwise_casting(torch.float8_e4m3fn, dtype)
    else:
        pipe.save_pretrained(tmp_path)
        pipe = CodecladePipeline.from_pretrained(tmp_path, dtype=dtype)
        assert pipe.transformer.dtype == dtype
    if way == "alone":
        alone = {"subfolder": "vq_model", "torch_dtype": dtype, "device_map": "cpu"}
        pipe.vq_model = VQModel.from_pretrained(tmp_path, **alone)
    vq_model = pipe.vq_model
    assert vq_model.config["force_upcast"] is True and vq_model.dtype == torch.float32
    assert {value.dtype for value in vq_model.state_dict().values()} == {torch.float32}
    assert torch.equal(picture(pipe), expected)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert vq_model.encode(pixels.to(kind)).latents.dtype == torch.float32
        images = vq_model.decode_codes(codes.to(kind))
        assert images.dtype == torch.float32 and images.isfinite().all()
    with torch.autocast("cpu", dtype):
        assert torch.equal(vq_model.decode(vq_model.encode(pixels).ids), vq_model(pixels))
        inside = vq_model(pixels)
    assert torch.equal(inside, vq_model(pixels)) and inside.dtype == torch.float32


def test_without_forcing_weights_beyond_float16_are_said(tmp_path):
    pipe = too_large(force_upcast=False)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite: (decoder|post_quant).*, float16"):
        CodecladePipeline.from_pretrained(tmp_path, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16; .*force_upcast=True"):
        picture(pipe.to(torch.float16))
    given = {"torch_dtype": torch.float16, "force_upcast": True}
    loaded = VQModel.from_pretrained(tmp_path / "vq_model", **given)
    assert loaded.dtype == torch.float32 and loaded.config["force_upcast"] is True
    wide = VQModel.from_pretrained(tmp_path / "vq_model", dtype=torch.float64, force_upcast=True)
    assert wide.dtype == torch.float64


def test_forcing_is_a_field_that_old_configs_lack(tmp_path):
    build_vq().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    assert content.pop("force_upcast") is False
    file.write_text(json.dumps(content))
    old = VQModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert old.config["force_upcast"] is False and old.dtype == torch.bfloat16
    file.write_text(json.dumps(content | {"force_upcast": "yes"}))
    with pytest.raises(ValueError, match="force_upcast='yes' must be true or false"):
        check_component(VQModel, tmp_path)


@pytest.mark.parametrize("given", [{}, {"dtype": torch.bfloat16}])
def test_parts_of_different_dtypes_are_named(given, tmp_path, caplog):
    pipe = build_scheme("token")
    pipe.to(torch.bfloat16).save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="codeclade.components.pipeline_files"):
        loaded = CodecladePipeline.from_pretrained(tmp_path, **given)
    named = "transformer bfloat16" in caplog.text and "vq_model float32" in caplog.text
    assert named == (loaded.vq_model.dtype != loaded.transformer.dtype) == (not given)


@torch.no_grad()
def test_large_batches_are_decoded_in_slices_that_fit_memory(monkeypatch):
    vq, sizes = build_vq(), []
    ids = torch.arange(5 * 16).view(5, 4, 4) % vq.codebook_size
    whole = vq.decode(ids)
    vq.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    numbers = 4 * 16 * vq.downsample**2 * max(vq.config["block_out_channels"][:2])  # of one image
    monkeypatch.setattr(vq_model, "DECODING_MEMORY", 2 * 4 * numbers)
    torch.testing.assert_close(vq.decode(ids), whole, rtol=0, atol=1e-5)
    monkeypatch.setattr(vq_model, "DECODING_MEMORY", 1)
    vq.decode(ids[:2])
    assert sizes == [2, 2, 1, 1, 1]
    with torch.enable_grad():
        vq.decode(ids)
    assert sizes[5:] == [5]
