"""LPIPS, the learned perceptual distance of images (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

Equal to the package lpips 0.1.4 (version 0.1 of the learned weights) with the same weights, which
`lpips_weights` finds. Reported numbers use "vgg" or "alex" and name which; a training loss may stop
at VGG's relu3_3, which costs two thirds of the whole.

Shapes: B images, C channels, h x w a feature map.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import FrozenNetwork, check_names, load_state, state_fingerprint

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]
EPSILON = 1e-10  # added to a feature vector's length


class Layer(NamedTuple):
    """A convolution and its ReLU; `pool` is the window of the pooling before it, of stride 2."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    tap: bool = False  # its output is compared


ALEX = (
    Layer(64, 11, 4, 2, tap=True),
    Layer(192, 5, 1, 2, pool=3, tap=True),
    Layer(384, pool=3, tap=True),
    Layer(256, tap=True),
    Layer(256, tap=True),
)
VGG = (
    Layer(64), Layer(64, tap=True),
    Layer(128, pool=2), Layer(128, tap=True),
    Layer(256, pool=2), Layer(256), Layer(256, tap=True),
    Layer(512, pool=2), Layer(512), Layer(512, tap=True),
    Layer(512, pool=2), Layer(512), Layer(512, tap=True),
)  # fmt: skip
BACKBONES = {"alex": ALEX, "vgg": VGG, "vgg_relu3_3": VGG[:7]}


class Backbone(FrozenNetwork):
    """Feature maps of AlexNet or VGG16 after the ReLUs that LPIPS compares."""

    def __init__(self, layers: tuple[Layer, ...]):
        super().__init__()
        self.layers, self.conv = layers, nn.ModuleList()
        inputs = 3
        for layer in layers:
            width, kernel, stride, padding, *_ = layer
            self.conv.append(nn.Conv2d(inputs, width, kernel, stride, padding))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer, conv in zip(self.layers, self.conv, strict=True):
            if layer.pool:
                x = F.max_pool2d(x, layer.pool, 2)
            x = F.relu(conv(x))
            if layer.tap:
                maps.append(x)
        return maps


class Lpips(FrozenNetwork):
    """Distance (B,) of pixels to a reference, both (B, 3, H, W) in [-1, 1]; 0 for equal images.

    Gradients flow to the first argument; the weights are frozen. Under autocast the convolutions
    run in the low precision, normalization, differences and heads in float32.

    Args:
        network: "alex", "vgg", or "vgg_relu3_3", the first three of VGG's five maps.

    Raises:
        ValueError: another network.
    """

    def __init__(self, network: str = "vgg"):
        super().__init__()
        if network not in BACKBONES:
            raise ValueError(f"network must be one of {', '.join(BACKBONES)}, got {network!r}.")
        layers = BACKBONES[network]
        self.name = f"LPIPS-{network}"
        self.backbone = Backbone(layers)
        widths = [layer.width for layer in layers if layer.tap]
        self.head = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        # Constants of the method: they are in no weights file and in no fingerprint.
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        self.freeze()

    @classmethod
    def from_file(cls, path: str | Path, network: str = "vgg") -> "Lpips":
        """Load weights named conv.{j}.weight, conv.{j}.bias and head.{k}.weight.

        A file of the whole VGG16 also serves "vgg_relu3_3".

        Raises:
            ValueError: tensors that are missing, unknown or of another shape.
        """
        full = "vgg" if network == "vgg_relu3_3" else network
        state = {name: tensor.float() for name, tensor in load_state(path).items()}
        # The whole file is checked even where a part of it is used: a cut file is never half right.
        check_names(state, cls(full).weights(), path)
        lpips = cls(network)
        kept = lpips.weights()
        lpips.load_state_dict({_module_name(name): state[name] for name in kept})
        return lpips

    def weights(self) -> dict[str, Tensor]:
        """The state as a file names it."""
        return {name.removeprefix("backbone."): x for name, x in self.state_dict().items()}

    @property
    def fingerprint(self) -> str:
        return state_fingerprint(self.weights())

    def forward(self, pixels: Tensor, reference: Tensor) -> Tensor:
        if pixels.shape != reference.shape:
            raise ValueError(
                f"images must have one shape, got {tuple(pixels.shape)} "
                f"and {tuple(reference.shape)}."
            )
        maps = self.backbone((pixels - self.shift) / self.scale)
        # The reference is a constant of a training loss; its graph would double the memory.
        with torch.no_grad():
            targets = self.backbone((reference - self.shift) / self.scale)
        # Vectors of unit length that nearly agree have no difference left in bfloat16, so the rest
        # is float32 whatever the caller's autocast says.
        total = pixels.new_zeros(len(pixels), dtype=torch.float32)
        with torch.autocast(pixels.device.type, enabled=False):
            for ours, theirs, head in zip(maps, targets, self.head, strict=True):
                gap = (unit_length(ours.float()) - unit_length(theirs.float())).square()
                total = total + head(gap).mean((1, 2, 3))  # (B, C, h, w) -> (B,)
        return total


def unit_length(x: Tensor) -> Tensor:
    """Feature vectors (B, C, h, w) scaled to length 1 along C; zero vectors and their gradients
    stay zero."""
    # The gradient of the root is infinite at 0, where dead channels are. A floor far below EPSILON
    # cuts it off; the zero vector itself stays what lpips makes of it.
    length = x.square().sum(1, keepdim=True).clamp_min(EPSILON**2 / 16).sqrt()
    return x / (length + EPSILON)


def _module_name(name: str) -> str:
    return name if name.startswith("head.") else f"backbone.{name}"
