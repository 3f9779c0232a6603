"""The files that published weights come in: .safetensors, and .pt or .pth of any container.

Every file is checked before it is read (`archives`, `components.weight_files`). Torch archives are
read with `weights_only=True`, so nothing in them is ever executed, and mapped where possible: a
12 GB file takes no memory of its own until it is written again.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..components.weight_files import read_header, shortened
from .archives import Refused, check_archive, is_zip

StateDict = dict[str, Tensor]

CONTAINERS = ("ema", "model", "module", "state_dict")  # in this order of preference
PREFIXES = ("_orig_mod.", "module.")
IGNORED = re.compile(
    r"(freqs_cis|causal_mask|.*\.kv_cache\.[kv]_cache|quantize\.codebook_used\d*)$"
)
INTEGERS = (
    torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
)  # fmt: skip


def load_checkpoint(path: str | Path) -> StateDict:
    """The bare state dict of a published file (.safetensors, or a torch archive of any container).

    Unwraps training containers, strips wrapper prefixes, drops caches and counters.

    Raises:
        ValueError: a file that is missing, damaged, holds anything but tensors, or no weights.
    """
    content = read_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    # Averaged weights go before those of the optimizer: published numbers are made with them. A
    # model may have a weight called "model", so that a container must hold tensors of its own.
    for name in CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            content = inner
            break
    # Two keys can become one without their prefixes; one of them would vanish without a word.
    weights: StateDict = {}
    for key, value in content.items():
        plain = plain_key(key) if isinstance(key, str) else ""
        if not isinstance(value, Tensor) or IGNORED.match(plain):
            continue
        if not plain or plain in weights:
            raise ValueError(f"{path} holds the weight {shortened(key)!r} twice or without a name.")
        weights[plain] = value
    if not weights:
        keys = shortened(", ".join(str(key) for key in content if isinstance(key, str)))
        raise ValueError(f"{path} holds no weights; its keys are {keys}.")
    # Tied weights are stored once; more than that is one storage under many names.
    claimed = sum(value.numel() * value.element_size() for value in weights.values())
    if claimed > 2 * Path(path).stat().st_size:
        raise ValueError(f"{path} is shorter than the {claimed:,} bytes of weights it names.")
    return weights


def load_mapping(path: str | Path) -> Tensor:
    """Integers (N,) of a published mapping file: IAR's old id to new id, DCPE's id to cluster.

    Such a file is one bare tensor, which may be a view into a larger storage.

    Raises:
        ValueError: a file that is missing, damaged, or holds anything but one row of integers >= 0.
    """
    content = read_file(path)
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor) or content.ndim != 1 or content.dtype not in INTEGERS:
        what = tuple(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise ValueError(f"{path} holds {what}, not one row of integers.")
    # Ids index tables later: a negative one would count from the end and give a wrong code.
    content = content.to(torch.int64).clone()  # without the rest of a larger storage
    if len(content) == 0 or content.min() < 0:
        raise ValueError(f"{path} holds no ids, or negative ones; a mapping has numbers from 0.")
    return content


def read_file(path: str | Path) -> Any:
    """Whatever a checkpoint file holds, as long as it is tensors and plain containers.

    Raises:
        ValueError: a file that is missing, damaged, claims more than it holds, or holds objects.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {path}.")
    # Checked before a library allocates anything: torch believes the sizes that a file states.
    try:
        if path.suffix == ".safetensors":
            read_header(path)
            return load_file(path)
        check_archive(path)
    except Refused:
        raise ValueError(
            f"{path} holds Python objects beside tensors; refused, since loading it could run code."
        ) from None
    except Exception as error:  # whatever a library says of a damaged file
        raise damaged(path, error) from None
    try:
        # LlamaGen's training script saves its arguments, a Namespace, beside the weights: plain
        # values, and the only class beyond torch's own that is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except Exception as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ValueError:
    """The error that names a file, with the reason that a library gave."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    reason = reason.removeprefix(f"{path} is ").removeprefix("damaged: ").rstrip(".")
    return ValueError(f"{path} is truncated or damaged ({shortened(reason, 120)}).")


def plain_key(key: str) -> str:
    """A weight's name without what compilation and data parallelism put before it."""
    # Wrappers wrap each other in any order, as compilation around data parallelism.
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key
