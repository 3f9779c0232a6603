"""Where codebooks come from: array files, our own models, and the pipelines that hold them."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..components.vq_model import VQModel


def load_codebook(source: str | Path) -> Tensor:
    """The stored codebook (N, d) of a source, float32.

    Args:
        source: a .npy or .safetensors file with one two-dimensional array, a VQModel folder, or a
            pipeline folder.

    Raises:
        ValueError: a source that is none of these.
    """
    path = Path(source)
    if path.suffix == ".npy" and path.is_file():
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    if path.suffix == ".safetensors" and path.is_file():
        tensors = {key: value for key, value in load_file(path).items() if value.ndim == 2}
        if len(tensors) != 1:
            raise ValueError(
                f"{path} holds {len(tensors)} two-dimensional tensors; one codebook was expected."
            )
        return next(iter(tensors.values())).float()
    if (path / "vq_model" / "config.json").is_file():
        path = path / "vq_model"
    if (path / "config.json").is_file():
        return VQModel.from_pretrained(path).codebook.detach().float()
    raise ValueError(
        f"{source} is no codebook: give a .npy or .safetensors file, a VQModel folder or a pipeline folder."
    )
