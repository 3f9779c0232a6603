"""What a number was measured with: it travels with the number, and numbers that were measured in
different ways are not compared.
"""

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "pillow", "transformers", "diffusers")
# Where it was measured, not how: numbers that differ in these alone may be compared.
CIRCUMSTANCES = ("versions", "machine")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What measures a number again, given the weights; None where a field plays no part."""

    data: str  # name of the photographs or code shards
    split: str | None = None  # of the data
    data_fingerprint: str | None = None  # of the reference images as they were compared
    reference_images: int | None = None  # photographs compared with
    left_out: int | None = None  # images of the data that were not used
    quick: bool | None = None  # a first look at few images; None: a whole evaluation
    images: int  # measured: generated, reconstructed or scored
    classes: str | None = None  # "balanced" or "random"
    prompts: str | None = None  # name of the file of captions
    prompts_fingerprint: str | None = None  # sha256 of the captions
    seeds: str | None = None  # rule that gives every image its own seed
    guidance_scale: float | list | None = None
    guidance_schedule: str | dict | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    draws: int | None = None  # images drawn for every one kept; None: all are kept
    judge: str | None = None  # network by whose class probability one is kept
    judge_fingerprint: str | None = None
    sampled_size: int | None = None  # pixels a side as sampled or reconstructed
    evaluated_size: int | None = None  # as measured
    resize: str | None = None  # how one became the other
    network: str | None = None  # feature network
    network_fingerprint: str | None = None  # sha256 of its weights
    estimator: str | None = None  # the formula, where a name has several
    dtype: str  # of the weights of what is measured
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: package_versions())
    machine: str

    def to_json(self) -> dict[str, Any]:
        """The fields, those that are None left out."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if value is not None}

    def using(self, **changes) -> "Protocol":
        """The same protocol with other fields."""
        return dataclasses.replace(self, **changes)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the fields in which two protocols, as JSON, differ; circumstances left out."""
    names = dict.fromkeys((*a, *b))
    return [name for name in names if name not in CIRCUMSTANCES and a.get(name) != b.get(name)]


def package_versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    from .. import __version__

    return {"codeclade": __version__} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


def machine_name(device: torch.device) -> str:
    """The processor or the accelerator of a device, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}"


def type_name(dtype: torch.dtype) -> str:
    """As in "bfloat16"."""
    return str(dtype).removeprefix("torch.")
