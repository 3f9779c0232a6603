"""What a feature network is, and what all of them need: fingerprints, weights, preprocessing.

Every network takes pixels in [-1, 1] of any size and does its own preprocessing, so that a number
depends on the network's name and fingerprint alone. Only numbers of one network can be compared.

Shapes: B images, D features, C classes, S spatial features.
"""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of values in [0, 1]


@dataclass(frozen=True)
class NetworkOutput:
    """What a network says of B images, float32.

    Args:
        features: (B, D) for Fréchet distance, KID, precision and recall.
        logits: (B, C) for the Inception Score and class accuracy; None without a classifier.
        spatial: (B, S) for sFID; None where the network defines none.
    """

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


class FeatureNetwork(Protocol):
    """A frozen network that turns images into features.

    Attributes:
        name: as a table should call it.
        distance_name: what the Fréchet distance of its features is called; "FID" only for Inception
            with the published weights.
        fingerprint: sha256 of its weights, see `state_fingerprint`.
    """

    name: str
    distance_name: str
    fingerprint: str

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] as the network's input."""
        ...

    def __call__(self, pixels: Tensor) -> NetworkOutput:
        """Features of pixels (B, 3, H, W) in [-1, 1], preprocessed here."""
        ...


class FrozenNetwork(nn.Module):
    """A network without trainable weights that stays in evaluation mode."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True):
        # Training loops call train() on all they hold, and batch statistics would move the numbers.
        return super().train(False)


def state_fingerprint(state: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        # Type and shape go in too, since equal bytes of another shape are another network. The
        # numbers go in as bytes, because NumPy has no bfloat16.
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a PyTorch file read without executing anything in it.

    Raises:
        ValueError: no such file, or one that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}.")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        # A pickled module would run code when it is opened; here it is refused instead.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a PyTorch file of tensors alone.") from error
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{path} is not a dictionary of tensors.")
    return dict(state)


def check_names(state: dict[str, Tensor], expected: dict[str, Tensor], source: str | Path) -> None:
    """Refuse weights whose names or shapes are not exactly those of the network.

    Raises:
        ValueError: naming the first tensor that is missing, unknown or of another shape.
    """
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise ValueError(f"{source} has no tensor {name}.")
        if name not in expected:
            raise ValueError(f"{source} has a tensor {name} that the network does not know.")
        if state[name].shape != expected[name].shape:
            raise ValueError(
                f"{source}: {name} must be {tuple(expected[name].shape)}, "
                f"got {tuple(state[name].shape)}."
            )


def to_8bit(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as float32 values 0, 1 .. 255: what an image file would hold."""
    return (pixels.float() * 127.5 + 127.5).round().clamp(0, 255)


def resized(pixels: Tensor, size: int) -> Tensor:
    """Bicubic as Pillow's, to (B, 3, size, size) in [-1, 1]; antialiased where a side shrinks."""
    # A side reduced without antialiasing shows patterns that are not in the image. Pillow's kernel
    # (a = -0.5), which transformers' processors have too, is PyTorch's only under `antialias`,
    # wherever a side grows as well. Cubic kernels overshoot at edges, so the result is clamped to
    # what an image can hold.
    pixels = F.interpolate(pixels.float(), size=(size, size), mode="bicubic", antialias=True)
    return pixels.clamp(-1, 1)


def imagenet_normalized(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] scaled as torchvision's and Meta's ImageNet networks expect."""
    mean, std = (pixels.new_tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels + 1) / 2 - mean) / std
