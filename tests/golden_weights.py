"""Weights of the golden files, recreated from their names (see tests/golden/README.md)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"


def golden_case(name: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Description, recreated state dict and reference tensors of one golden file."""
    about = json.loads((GOLDEN / f"{name}.json").read_text())
    weights = {
        key: golden_tensor(about["salt"], key, shape) for key, shape in about["keys"].items()
    }
    return about, weights, load_file(GOLDEN / f"{name}.safetensors")


def golden_tensor(salt: str, key: str, shape: list[int]) -> torch.Tensor:
    seed = zlib.crc32(f"{salt}/{key}".encode()) & 0xFFFFFFFF
    t = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if len(shape) == 1 and key.endswith("weight"):
        t = 1 + np.float32(0.1) * t
    elif key.endswith("bias"):
        t = np.float32(0.02) * t
    elif len(shape) >= 2 and "embed" not in key:
        t = t / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(t.astype(np.float32))


def inception_case() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Seeded weights of Inception with plausible running statistics, and the reference tensors."""
    _, weights, reference = golden_case("inception")
    for name, tensor in weights.items():
        if name.endswith("running_mean"):
            tensor.mul_(0.1)
        elif name.endswith("running_var"):
            tensor.mul_(0.2).exp_().div_(2)
    return weights, reference
