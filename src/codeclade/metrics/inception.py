"""The Inception network of FID: TensorFlow's Inception of 2015-12-05 in PyTorch.

FID (Heusel et al. 2017, arXiv 1706.08500) is defined by this network's weights. pytorch-fid and
torch-fidelity publish them as one and the same file, `pt_inception-2015-12-05-6726825d.pth`; with
that file the outputs equal torch-fidelity's. With any other weights the distance is not FID and is
not called so. torchvision's Inception differs: average pooling here ignores the padding, the last
block pools by maximum, and images are resized as TensorFlow 1 did.

Names of layers are those of the published file. Shapes: B images.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import (
    FrozenNetwork,
    NetworkOutput,
    check_names,
    file_sha256,
    load_state,
    state_fingerprint,
    to_8bit,
)

PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SPATIAL_CHANNELS = 7  # of 17 x 17 places each: the 2,023 features of sFID


class Step(NamedTuple):
    """One convolution of a branch; padded to keep the size unless it strides."""

    name: str
    width: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


class Convolution(nn.Module):
    """Convolution without bias, batch normalization, ReLU."""

    def __init__(self, inputs: int, step: Step, same_size: bool = True):
        super().__init__()
        kernel = (step.kernel, step.kernel) if isinstance(step.kernel, int) else step.kernel
        padding = (kernel[0] // 2, kernel[1] // 2) if same_size and step.stride == 1 else 0
        self.conv = nn.Conv2d(inputs, step.width, kernel, step.stride, padding, bias=False)
        # The batch normalization's eps is that of the published graph, not torch's; another one
        # gives other features from the same weights.
        self.bn = nn.BatchNorm2d(step.width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side on one input, joined along channels; pooling is the last branch.

    Args:
        branches: each a list of steps; a tuple of steps at its end forks and joins their outputs.
        pool: "average" or "maximum" (3 x 3, stride 1, then the convolution `branch_pool`), or
            "reduce" (maximum, stride 2, no convolution).
        pool_width: channels of `branch_pool`.
    """

    def __init__(self, inputs: int, branches: list[list], pool: str, pool_width: int = 0):
        super().__init__()
        self.pool, self.paths = pool, []
        # Modules are registered under the published names, so the published file loads as it is.
        # The paths keep names instead of modules, which would be registered a second time.
        for branch in branches:
            width, path = inputs, []
            for steps in branch:
                fork = steps if not isinstance(steps, Step) else (steps,)
                for step in fork:
                    self.add_module(step.name, Convolution(width, step))
                path.append([step.name for step in fork])
                width = sum(step.width for step in fork)
            self.paths.append(path)
        if pool_width:
            self.branch_pool = Convolution(inputs, Step("branch_pool", pool_width))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([getattr(self, name)(y) for name in names], 1)
            outputs.append(y)
        if self.pool == "reduce":
            outputs.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "maximum":
            outputs.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:  # the border's zeros do not count
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(outputs, 1)


def mixed_35(inputs: int, pool_width: int) -> Mixed:
    """Block at 35 x 35 places, 224 channels and those of the pooling."""
    return Mixed(
        inputs,
        [
            [Step("branch1x1", 64)],
            [Step("branch5x5_1", 48), Step("branch5x5_2", 64, 5)],
            [
                Step("branch3x3dbl_1", 64),
                Step("branch3x3dbl_2", 96, 3),
                Step("branch3x3dbl_3", 96, 3),
            ],
        ],
        "average",
        pool_width,
    )


def mixed_17(width: int) -> Mixed:
    """Block at 17 x 17 places, 768 channels in and out; `width` channels inside."""
    row, column = (1, 7), (7, 1)
    return Mixed(
        768,
        [
            [Step("branch1x1", 192)],
            [
                Step("branch7x7_1", width),
                Step("branch7x7_2", width, row),
                Step("branch7x7_3", 192, column),
            ],
            [
                Step("branch7x7dbl_1", width),
                Step("branch7x7dbl_2", width, column),
                Step("branch7x7dbl_3", width, row),
                Step("branch7x7dbl_4", width, column),
                Step("branch7x7dbl_5", 192, row),
            ],
        ],
        "average",
        192,
    )


def mixed_8(inputs: int, pool: str) -> Mixed:
    """Block at 8 x 8 places, 2,048 channels out."""
    row, column = (1, 3), (3, 1)
    return Mixed(
        inputs,
        [
            [Step("branch1x1", 320)],
            [
                Step("branch3x3_1", 384),
                (Step("branch3x3_2a", 384, row), Step("branch3x3_2b", 384, column)),
            ],
            [
                Step("branch3x3dbl_1", 448),
                Step("branch3x3dbl_2", 384, 3),
                (Step("branch3x3dbl_3a", 384, row), Step("branch3x3dbl_3b", 384, column)),
            ],
        ],
        pool,
        192,
    )


def reduce_to_17() -> Mixed:
    """From 35 x 35 places to 17 x 17, 288 channels to 768."""
    return Mixed(
        288,
        [
            [Step("branch3x3", 384, 3, 2)],
            [
                Step("branch3x3dbl_1", 64),
                Step("branch3x3dbl_2", 96, 3),
                Step("branch3x3dbl_3", 96, 3, 2),
            ],
        ],
        "reduce",
    )


def reduce_to_8() -> Mixed:
    """From 17 x 17 places to 8 x 8, 768 channels to 1,280."""
    return Mixed(
        768,
        [
            [Step("branch3x3_1", 192), Step("branch3x3_2", 320, 3, 2)],
            [
                Step("branch7x7x3_1", 192),
                Step("branch7x7x3_2", 192, (1, 7)),
                Step("branch7x7x3_3", 192, (7, 1)),
                Step("branch7x7x3_4", 192, 3, 2),
            ],
        ],
        "reduce",
    )


class Inception(FrozenNetwork):
    """2,048 pooled features, 1,008 logits without bias and 2,023 spatial features.

    Attributes:
        is_published: the weights are the file that defines FID, by its sha256.
    """

    input_size = 299

    def __init__(self):
        super().__init__()
        # TensorFlow's stem: two of its convolutions lose a border although they do not stride.
        self.Conv2d_1a_3x3 = Convolution(3, Step("", 32, 3, 2))
        self.Conv2d_2a_3x3 = Convolution(32, Step("", 32, 3), same_size=False)
        self.Conv2d_2b_3x3 = Convolution(32, Step("", 64, 3))
        self.Conv2d_3b_1x1 = Convolution(64, Step("", 80))
        self.Conv2d_4a_3x3 = Convolution(80, Step("", 192, 3), same_size=False)
        self.Mixed_5b = mixed_35(192, 32)
        self.Mixed_5c = mixed_35(256, 64)
        self.Mixed_5d = mixed_35(288, 64)
        self.Mixed_6a = reduce_to_17()
        self.Mixed_6b = mixed_17(128)
        self.Mixed_6c = mixed_17(160)
        self.Mixed_6d = mixed_17(160)
        self.Mixed_6e = mixed_17(192)
        self.Mixed_7a = reduce_to_8()
        # The two blocks pool differently, which looks like a slip of 2015; FID is defined with it.
        self.Mixed_7b = mixed_8(1280, "average")
        self.Mixed_7c = mixed_8(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)
        self.is_published = False
        self.freeze()

    @classmethod
    def from_file(cls, path: str | Path) -> "Inception":
        """Load pytorch-fid's or torch-fidelity's .pth file, or the same tensors as .safetensors.

        Only the published file itself makes `is_published` true.

        Raises:
            ValueError: no such file, or tensors that are missing, unknown or of another shape.
        """
        # Counters of training steps are in some copies of the weights and play no part.
        state = {
            name: tensor.float()
            for name, tensor in load_state(path).items()
            if not name.endswith("num_batches_tracked")
        }
        network = cls()
        own = network.weights()
        check_names(state, own, path)
        network.load_state_dict(state, strict=False)  # all but the counters, as just checked
        # By the bytes of the file, which anybody can check. Weights that were rounded or trained
        # further have the same names and shapes, and must not be called FID.
        network.is_published = file_sha256(path) == PUBLISHED_SHA256
        return network

    def weights(self) -> dict[str, Tensor]:
        """The state without batch normalization's counters."""
        state = self.state_dict()
        return {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}

    @property
    def fingerprint(self) -> str:
        return state_fingerprint(self.weights())

    @property
    def name(self) -> str:
        return "Inception" if self.is_published else "Inception with unpublished weights"

    @property
    def distance_name(self) -> str:
        return "FID" if self.is_published else f"FD-{self.name}"

    def preprocess(self, pixels: Tensor) -> Tensor:
        """8-bit values resized to 299 x 299 as TensorFlow 1 does, scaled to about [-1, 1]."""
        # 128 and not 127.5: the published graph scales so, and white is 0.992 to it.
        return (resize_like_tensorflow(to_8bit(pixels), self.input_size) - 128) / 128

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> NetworkOutput:
        x = self.preprocess(pixels)  # (B, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)  # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2)  # (B, 192, 35, 35)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))  # (B, 768, 17, 17)
        x = self.Mixed_6c(self.Mixed_6b(x))
        # TensorFlow's mixed_6/conv: the first branch of this block, places before channels.
        spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))  # (B, 1280, 8, 8)
        features = self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))  # (B, 2048)
        # TensorFlow's evaluators multiply by the matrix and leave the bias out; so do we.
        return NetworkOutput(features, features @ self.fc.weight.T, spatial)


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resize of float images (B, C, H, W) to (B, C, size, size) as TensorFlow 1 does.

    Pixel i of the result is at i * H / size of the source, so the image is shifted by up to half a
    pixel against `torch.nn.functional.interpolate`, and nothing is averaged where it shrinks.
    """
    for axis in (-1, -2):  # along the width first, as there: the same rounding
        length = images.shape[axis]
        # Places in float32 as well: in float64 some round to another pixel than TensorFlow's.
        scale = torch.tensor(length / size, dtype=torch.float32, device=images.device)
        place = torch.arange(size, dtype=torch.float32, device=images.device) * scale
        low = place.long()
        weight = (place - low).view(-1, *[1] * (-1 - axis))
        below = images.index_select(axis, low)
        above = images.index_select(axis, (low + 1).clamp_max(length - 1))
        images = below + (above - below) * weight
    return images
