"""Loading in a process of its own that reaches nothing but the loopback address."""

import hashlib
import inspect
import sys

import torch

from fake_hub.client import LOOPBACK_ONLY, run


def image_hash(pipe, label="tabby", seed=5):
    """SHA-256 of the pixels of one image."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    pixels = pipe(label, generator=generator, output_type="pt").images
    return hashlib.sha256(pixels.float().numpy().tobytes()).hexdigest()


def fresh(hub, home, code: str, *arguments, interpreter=sys.executable, **options) -> list[str]:
    """Lines printed by a fresh process."""
    # As many threads as in the tests' own process: sums in bfloat16 depend on it.
    start = "import hashlib, torch\ntorch.set_num_threads(1)\n"
    code = f"{LOOPBACK_ONLY}{start}{inspect.getsource(image_hash)}{code}"
    return run(hub, home, interpreter, "-c", code, *map(str, arguments), **options).splitlines()
