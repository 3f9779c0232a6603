"""transformers' JanusVQVAE as an independent oracle: the same architecture, written by others."""

import re

import pytest
import torch
from transformers import JanusVQVAE, JanusVQVAEConfig

from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN

RENAMES = (
    (r"\.(down|up)\.(\d+)\.block\.", r".conv_blocks.\2.res."),
    (r"\.(down|up)\.(\d+)\.", r".conv_blocks.\2."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
)


def llamagen_name(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.fixture(scope="module", params=[[1, 2], [1, 1, 2]])
def models(request):
    torch.manual_seed(0)
    multipliers = request.param
    config = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=64,
        latent_channels=32,
        num_patches=4,
        base_channels=32,
        channel_multiplier=multipliers,
        num_res_blocks=2,
    )
    janus = JanusVQVAE(config).eval()
    with torch.no_grad():
        for parameter in janus.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        rows = torch.nn.functional.normalize(torch.randn(64, 8), dim=-1)
        janus.quantize.embedding.weight.copy_(rows)  # its encoder side does not normalize
    state_dict = {llamagen_name(key): value for key, value in janus.state_dict().items()}
    return janus, LLAMAGEN.tokenizer.build(state_dict)


@torch.no_grad()
def test_ids_agree(models):
    janus, ours = models
    pixels = torch.rand(3, 3, 4 * ours.downsample, 4 * ours.downsample) * 2 - 1
    theirs = janus.encode(pixels).image_tokens.flatten()
    ids = ours.encode(pixels).ids.flatten()
    assert len(ids.unique()) > 5
    assert torch.equal(ids, theirs)


@torch.no_grad()
def test_images_agree(models):
    janus, ours = models
    ids = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(1))
    assert (ours.decode(ids) - janus.decode(ids)).abs().max() < 1e-4
