"""VQModel: published numbers, the cosine quantizer, shapes, dtypes and errors."""

import pytest
import torch
import torch.nn.functional as F

from codeclade import VQModel
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN
from golden_weights import golden_case


def pixels(batch: int = 2, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def varied(model: VQModel) -> VQModel:
    """The model with a wide quant_conv, so that its ids spread over the codebook."""
    with torch.no_grad():
        model.quant_conv.weight.mul_(20)
    return model


@pytest.fixture
def vq(tiny_vq):
    return varied(tiny_vq())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factor"), [("llamagen_vq16", 16), ("llamagen_vq8", 8)])
def test_equals_the_published_tokenizer(name, factor):
    _, weights, golden = golden_case(name)
    model = LLAMAGEN.tokenizer.build(weights)
    assert model.downsample == factor
    with torch.no_grad():
        ids, latents = model.encode(golden["pixels"])
        assert torch.equal(ids, golden["indices"])
        torch.testing.assert_close(latents, golden["pre_quant"], rtol=0, atol=1e-4)
        reconstruction = model(golden["pixels"])
        torch.testing.assert_close(reconstruction, golden["reconstruction"], rtol=0, atol=1e-4)
        decoded = model.decode(golden["codes"])
        torch.testing.assert_close(decoded, golden["decoded"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("levels", "factor"), [(3, 4), (4, 8), (5, 16)])
def test_shapes_at_every_downsampling_factor(tiny_vq, levels, factor):
    model = tiny_vq(block_out_channels=(8,) * (levels - 1) + (16,))
    assert model.downsample == factor
    with torch.no_grad():
        ids, latents = model.encode(pixels(2, 2 * factor))
        assert ids.shape == (2, 2, 2)
        assert ids.dtype == torch.int64
        assert latents.shape == (2, 4, 2, 2)
        assert model.decode(ids).shape == (2, 3, 2 * factor, 2 * factor)


def test_images_need_not_be_square(vq):
    with torch.no_grad():
        ids = vq.encode(torch.rand(1, 3, 8, 24)).ids
        assert ids.shape == (1, 2, 6)
        assert vq.decode(ids).shape == (1, 3, 8, 24)


def test_flat_ids_are_the_grid_in_raster_order(vq):
    ids = torch.arange(16).view(1, 4, 4)
    with torch.no_grad():
        assert torch.equal(vq.decode(ids.flatten(1)), vq.decode(ids))
        assert not torch.allclose(vq.decode(ids.mT.flatten(1)), vq.decode(ids))


def test_forward_is_encode_then_decode(vq):
    with torch.no_grad():
        assert torch.equal(vq(pixels()), vq.decode(vq.encode(pixels()).ids))


def test_search_is_the_brute_force_nearest_direction(vq):
    latents = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    ids = vq.quantize.search(latents)
    rows = vq.codebook.detach()
    places = torch.cartesian_prod(*map(torch.arange, ids.shape))
    for (b, y, x), found in zip(places, ids.flatten(), strict=True):
        cosine = F.cosine_similarity(rows, latents[b, :, y, x][None])
        assert cosine[found] == pytest.approx(cosine.max().item(), abs=1e-6)
    assert len(ids.unique()) > 10


def test_lengths_of_latents_and_codebook_rows_do_not_matter(vq):
    scale = torch.linspace(0.1, 9, 32)[:, None]
    with torch.no_grad():
        ids = vq.encode(pixels()).ids
        image = vq.decode(ids)
        assert len(ids.unique()) > 5
        vq.codebook.mul_(scale)
        assert torch.equal(vq.encode(pixels()).ids, ids)
        torch.testing.assert_close(vq.decode(ids), image)
        assert torch.equal(vq.quantize.search(7 * vq.encode(pixels()).latents), ids)


def test_codebook_is_the_stored_parameter_and_rows_are_unit(vq):
    assert vq.codebook is vq.quantize.embedding.weight
    assert vq.codebook_size == 32
    torch.testing.assert_close(vq.quantize.rows().norm(dim=-1), torch.ones(32))


def test_quantizer_computes_in_float32_under_autocast(vq):
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = vq.quantize.search(latents)
    rounded = torch.einsum(
        "bdhw,nd->bhwn", F.normalize(latents, dim=1).bfloat16(), vq.quantize.rows().bfloat16()
    )
    assert not torch.equal(rounded.argmax(-1), expected)  # the case does tell the two apart
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq.quantize.search(latents), expected)
        assert vq.quantize.lookup(expected).dtype == torch.float32
        assert vq.encode(pixels()).latents.dtype == torch.bfloat16


def test_quantizer_computes_in_float32_with_bfloat16_weights(vq):
    half = vq.to(torch.bfloat16)
    latents = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    rows = F.normalize(half.codebook.detach().float(), dim=-1)
    expected, rounded = (
        torch.einsum("bdhw,nd->bhwn", F.normalize(x, dim=1).float(), rows).argmax(-1)
        for x in (latents.float(), latents)
    )
    assert not torch.equal(rounded, expected)  # the case does tell the two apart
    assert torch.equal(half.quantize.search(latents), expected)
    codes = half.quantize.lookup(expected)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, rows[expected].permute(0, 3, 1, 2))
    image = half.decode(expected[:2, :4, :4])
    assert image.dtype == torch.bfloat16
    assert image.isfinite().all()


def test_gradients_reach_codebook_and_both_towers(vq):
    ids, latents = vq.encode(pixels())
    codes = vq.quantize.lookup(ids)
    image = vq.decode_codes(codes + latents - latents.detach())
    image.square().mean().backward()
    for parameter in (vq.codebook, vq.encoder.conv_in.weight, vq.decoder.conv_out.weight):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_model_is_the_same(vq, tmp_path, dtype, max_shard_size):
    vq.to(dtype).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    loaded = VQModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.config.sample_size == 16
    assert not loaded.training
    with torch.no_grad():
        expected, found = vq.encode(pixels().to(dtype)), loaded.encode(pixels().to(dtype))
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.latents, expected.latents)
        assert torch.equal(loaded.decode(found.ids), vq.decode(expected.ids))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 18, 16), "image size 18x16 does not fit .* multiples of 4"),
        ((1, 3, 0, 16), "image size 0x16"),
        ((3, 16, 16), r"shape \(B, 3, H, W\), got \(3, 16, 16\)"),
        ((1, 4, 16, 16), r"got \(1, 4, 16, 16\)"),
    ],
)
def test_pixels_of_a_wrong_size_are_refused(vq, shape, message):
    with pytest.raises(ValueError, match=message):
        vq.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 15, dtype=torch.int64), "15 flat ids form no square"),
        (torch.zeros(16, dtype=torch.int64), r"shape \(B, rows, columns\), got \(16,\)"),
        (torch.full((1, 4, 4), 32), "32"),
        (torch.full((1, 4, 4), -1), "-1"),
    ],
)
def test_ids_of_a_wrong_shape_or_range_are_refused(vq, ids, message):
    with pytest.raises(ValueError, match=message):
        vq.decode(ids)


def test_channels_the_groups_do_not_divide_are_refused(tiny_vq):
    with pytest.raises(ValueError, match="has 6, which norm_num_groups=4"):
        tiny_vq(block_out_channels=(8, 6))
