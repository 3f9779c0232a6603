"""Patches of single codes have the colors that the codes have in images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codeclade import VQModel, bundled
from codeclade.data.pixels import to_pixels
from codeclade.evaluation.patches import code_patches


@pytest.fixture(scope="module")
def vq_model():
    return VQModel.from_pretrained(bundled("0.1"), subfolder="vq_model").eval()


@torch.no_grad()
def colors_in_images(vq_model: VQModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (n,) of the samples of 0.1, and the mean color (n, 3) of their places once decoded."""
    sheet = Image.open(Path(bundled("0.1")) / "samples.png").convert("RGB")  # 8 rows of 4, enlarged
    places = [(127 + 132 * column, 4 + 132 * row) for row in range(8) for column in range(4)]
    crops = [sheet.crop((x, y, x + 128, y + 128)).reduce(2) for x, y in places]
    images = torch.stack([torch.from_numpy(np.array(crop)).permute(2, 0, 1) for crop in crops])
    ids = vq_model.encode(to_pixels(images)).ids
    decoded = vq_model.decode(ids).clamp(-1, 1)
    colors = torch.nn.functional.avg_pool2d(decoded, vq_model.downsample)
    colors = colors.permute(0, 2, 3, 1).flatten(0, 2)
    codes, place = ids.flatten().unique(return_inverse=True)
    sums = torch.zeros(len(codes), 3).index_add_(0, place, colors)
    return codes, sums / place.bincount().unsqueeze(1)


@pytest.mark.slow  # a board for every one of 1,024 codes
def test_patches_have_the_colors_of_the_codes_in_images(vq_model):
    codes, wanted = colors_in_images(vq_model)
    assert len(codes) > 300
    patches = to_pixels(code_patches(vq_model, codes)).mean((2, 3))
    with torch.no_grad():
        alone = vq_model.decode(codes.view(-1, 1, 1).expand(-1, 4, 4)).clamp(-1, 1).mean((2, 3))
    error, error_alone = ((found - wanted).square().mean().sqrt() for found in (patches, alone))
    assert error < 0.22 and error < 0.8 * error_alone  # 0.206 against 0.277


def test_patches_are_of_their_codes_in_order_and_repeatable(vq_model):
    ids = torch.arange(40) * 7
    patches = code_patches(vq_model, ids)
    assert torch.equal(patches, code_patches(vq_model, ids))
    # Whole boards move: what stands on a board stays the same.
    turned = code_patches(vq_model, torch.cat([ids[32:], ids[:32]]))
    assert torch.equal(turned, torch.cat([patches[32:], patches[:32]]))


def test_no_codes_and_wrong_codes(vq_model):
    assert code_patches(vq_model, torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match=r"ids run from 3 to 1024; they must be in 0\.\.1023"):
        code_patches(vq_model, torch.tensor([3, 1024]))


def test_semantic_codes_of_a_pair_are_shown_without_details(tiny_vq):
    patches = code_patches(tiny_vq(detail_codebook_size=6), torch.tensor([4, 31]))
    assert patches.shape == (2, 3, 4, 4) and patches.dtype == torch.uint8
