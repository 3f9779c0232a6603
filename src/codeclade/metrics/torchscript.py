"""Feature networks that users bring as TorchScript files, which hold code and weights.

Their Fréchet distances are called FD-<file>, never FID, whatever the file claims to be: only the
weights that `inception` knows by their sha256 make an FID.

Shapes: B images of any side, D features.
"""

from pathlib import Path

import torch
from torch import Tensor

from .networks import FrozenNetwork, NetworkOutput, file_sha256, to_8bit


class TorchScript(FrozenNetwork):
    """A network from 8-bit images (B, 3, H, W), uint8, to features (B, D).

    It brings images to its own size itself. Where it has an argument `return_features`, as NVIDIA's
    Inception and VGG16 files have, that is True. Load files that you trust: they bring code.

    Args:
        path: what `torch.jit.save` wrote.

    Raises:
        ValueError: a file of another kind.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        try:
            self.net = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise ValueError(f"{path} is not a TorchScript file.") from error
        known = {argument.name for argument in self.net.forward.schema.arguments}
        self.asked = {"return_features": True} if "return_features" in known else {}
        self.freeze()
        # Code belongs to what a file computes, so the fingerprint is that of all its bytes.
        self.fingerprint = file_sha256(path)
        self.name = Path(path).stem
        self.distance_name = f"FD-{self.name}"
        # Where images have to be: a network without weights of its own is on the processor.
        self.place = torch.nn.Parameter(torch.zeros(0), requires_grad=False)

    def preprocess(self, pixels: Tensor) -> Tensor:
        return to_8bit(pixels).to(torch.uint8)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> NetworkOutput:
        """Features of pixels (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: the network returns something else than a row of numbers for every image.
        """
        found = self.net(self.preprocess(pixels), **self.asked)
        if not (isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(pixels)):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{self.name} must return (B, D) features of {len(pixels)} images, got {shape}."
            )
        return NetworkOutput(found.float())
