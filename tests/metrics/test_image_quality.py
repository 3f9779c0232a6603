"""PSNR and SSIM of 8-bit images equal scikit-image's numbers (tests/golden/README.md)."""

import pytest
import torch
from safetensors.torch import load_file

from codeclade.metrics import image_quality
from golden_weights import GOLDEN


@pytest.mark.parametrize("measure", ["psnr", "ssim", "llamagen_ssim"])
def test_8_bit_images_measure_as_in_scikit_image(measure):
    case = load_file(GOLDEN / "image_quality.safetensors")
    images, reference = (case[name].float() / 127.5 - 1 for name in ("images", "reference"))
    ours = getattr(image_quality, measure)(images, reference)
    torch.testing.assert_close(ours.double(), case[measure].double(), rtol=0, atol=1e-4)


def test_llamagen_ssim_needs_seven_pixels():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    assert image_quality.llamagen_ssim(a[..., :7], b[..., :7]).shape == (2,)
    with pytest.raises(ValueError, match="at least 7x7 pixels"):
        image_quality.llamagen_ssim(a[..., :6], b[..., :6])
