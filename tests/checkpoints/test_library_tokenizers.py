"""Tokenizers of diffusers and transformers at tiny size, against the libraries' own calls."""

import json

import diffusers
import pytest
import torch
from transformers import Emu3VQVAE, Emu3VQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from checkpoints.test_codebooks import chameleon, janus
from codeclade.checkpoints.codebooks import load_codebook, load_tokenizer
from codeclade.evaluation.patches import code_patches


def pixels(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def diffusers_model(**settings) -> diffusers.VQModel:
    """Two levels; latents as long as the rows of the codebook, so that ids differ."""
    torch.manual_seed(0)
    model = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32), latent_channels=4, num_vq_embeddings=16, norm_num_groups=4,
        **settings,
    )  # fmt: skip
    torch.nn.init.normal_(model.quantize.embedding.weight)
    torch.nn.init.normal_(model.quant_conv.weight, std=5)
    return model.eval()


@pytest.mark.parametrize("settings", [{}, {"lookup_from_codebook": True, "norm_type": "spatial"}])
@torch.no_grad()
def test_diffusers(tmp_path, settings):
    model = diffusers_model(**settings)
    (tmp_path / "pipe").mkdir()  # a pipeline keeps it in vqvae/
    model.save_pretrained(tmp_path / "pipe" / "vqvae", variant="fp16")
    ours = load_tokenizer(tmp_path / "pipe")
    assert (ours.sample_size, ours.downsample, ours.codebook_size) == (256, 2, 16)
    assert torch.equal(ours.codebook, load_codebook(tmp_path / "pipe"))
    images = pixels(8)
    ids = ours.encode(images).ids
    assert ids.shape == (2, 4, 4) and len(ids.unique()) > 2
    torch.testing.assert_close(ours.decode(ids), model(images).sample, rtol=1e-4, atol=1e-5)
    assert code_patches(ours, torch.tensor([3, 5])).shape == (2, 3, 2, 2)


def test_diffusers_says_its_size(tmp_path):
    diffusers_model(sample_size=64).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).sample_size == 64


def test_diffusers_without_some_weights(tmp_path):
    diffusers_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(ValueError, match=r"lacks the weights decoder"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"block_out_channels": 3}))
    with pytest.raises(ValueError, match="is no VQ model that diffusers can load"):
        load_tokenizer(tmp_path)


@torch.no_grad()
def test_janus(tmp_path):
    torch.manual_seed(0)
    config = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=64, latent_channels=32, num_patches=4, base_channels=32,
        channel_multiplier=[1, 2], num_res_blocks=1,
    )  # fmt: skip
    model = JanusVQVAE(config).eval()
    model.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert (ours.sample_size, ours.downsample) == (8, 2)
    ids = ours.encode(pixels(8)).ids
    assert torch.equal(ids.flatten(), model.encode(pixels(8)).image_tokens)
    assert torch.equal(ours.decode(ids), model.decode(ids.flatten(1)))
    assert ours.decode(ids.repeat(1, 2, 2)).shape == (2, 3, 16, 16)  # any grid
    with pytest.raises(ValueError, match=r"id \d+ is outside 0\.\.63"):
        ours.decode(ids + 64)


@torch.no_grad()
def test_vq_model_inside_a_sharded_model(tmp_path):
    model = janus()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    inner = {shard for name, shard in index.items() if "vqmodel." in name}
    assert 1 < len(inner) < len(set(index.values()))
    for file in tmp_path.glob("*.safetensors"):
        if file.name not in inner:
            file.unlink()  # nothing of the language model is read
    ids = torch.randint(24, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    model.model.vqmodel.quantize.quant_state_dims = [4, 4]  # this tiny model is for one token
    wanted = model.model.vqmodel.eval().decode(ids.flatten(1))
    assert torch.equal(load_tokenizer(tmp_path).decode(ids), wanted)

    config = json.loads((tmp_path / "config.json").read_text())
    config["vq_config"]["base_channels"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has in other shapes the weights"):
        load_tokenizer(tmp_path)


@torch.no_grad()
def test_emu3(tmp_path):
    torch.manual_seed(0)
    config = Emu3VQVAEConfig(
        embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=[1, 2],
        num_res_blocks=1, codebook_size=24, hidden_size=64, temporal_downsample_factor=2,
        attn_resolutions=[],
    )  # fmt: skip
    model = Emu3VQVAE(config).eval()
    model.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    images = pixels(8)
    ids = ours.encode(images).ids
    wanted = model.encode(images, torch.tensor([[8, 8], [8, 8]])).image_tokens
    assert torch.equal(ids, torch.stack(wanted)) and ids.shape == (2, 4, 4)
    assert torch.equal(ours.decode(ids), model.decode(ids)) and ours.sample_size == 256


def test_models_without_a_decoder(tmp_path):
    chameleon().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has Chameleon's encoder and no decoder"):
        load_tokenizer(tmp_path)
