"""The tokenizer in half precision, in slices, compiled, and with diffusers' ways of returning."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput

from builders import build_scheme, build_vq
from codeclade import CodecladePipeline, VQModel

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


def test_encoding_and_decoding_are_one_graph_each(vq, pixels):
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


@pytest.mark.parametrize("given", [{}, {"dtype": torch.bfloat16}])
def test_parts_of_different_dtypes_are_named(given, tmp_path, caplog):
    pipe = build_scheme("token")
    pipe.to(torch.bfloat16).save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="codeclade.components.pipeline_files"):
        loaded = CodecladePipeline.from_pretrained(tmp_path, **given)
    named = "transformer bfloat16" in caplog.text and "vq_model float32" in caplog.text
    assert named == (loaded.vq_model.dtype != loaded.transformer.dtype) == (not given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu(dtype, pixels):
    pipe = build_scheme("token")
    expected = pipe.vq_model.encode(pixels).ids
    pipe.to("cuda", dtype)
    assert (pipe.vq_model.encode(pixels.cuda()).ids.cpu() == expected).float().mean() > 0.98
    assert torch.isfinite(torch.from_numpy(pipe(1, output_type="np").images)).all()
