"""How many images a call with `max_memory` works on at once: by arithmetic, before any are made.

Weights are there already and pictures that a call returns are the caller's; what is counted is what
lives in between.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import convert_file_size_to_int
from diffusers.utils import logging
from torch import Tensor

from .refiner import Refiner
from .transformer import CodecladeTransformer
from .vq_model import DECODING_MEMORY, VQModel

announcements = logging.get_logger(__name__)

NOISE = 56  # bytes an entry of the vocabulary: integers that noise is made of, both halves' logits
REFINING = 6 * 4  # bytes an id: logits and what a draw makes of them
GUIDING = 3 * 4  # bytes an id: unconditional logits, their difference, and the guided ones


def memory_limit(size: int | str | None) -> int | None:
    """Bytes of 4_000_000_000, "4GB" or "4GiB"; None: no limit.

    Raises:
        ValueError: any other value.
    """
    if size is None:
        return None
    try:
        limit = int(convert_file_size_to_int(size))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"max_memory={size!r} must be bytes, or a size such as '4GB' or '500MB'."
        ) from error
    if limit < 1:
        raise ValueError(f"max_memory={size!r} must be above 0.")
    return limit


def sampling_bytes(transformer: CodecladeTransformer, guided: bool) -> int:
    """Bytes that an image takes while its tokens are sampled."""
    config, rows = transformer.config, 1 + guided
    positions = config.prefix_length + config.num_tokens
    # Keys and values of all layers, and the states of all tokens where a head reads them.
    numbers = config.num_hidden_layers * 2 * positions * config.hidden_size
    if transformer.scheme.reads_earlier_states:
        numbers += config.num_tokens * config.hidden_size
    # A prompt goes through the layers at once, one layer at a time.
    if config.prefix_length > 1:
        numbers += config.prefix_length * (6 * config.hidden_size + 3 * config.intermediate_size)
    largest = max(config.vocab_size, config.coarse_vocab_size or 0)
    return rows * numbers * transformer.dtype.itemsize + largest * NOISE


def refining_bytes(refiner: Refiner, guided: bool = False) -> int:
    """Bytes that an image takes while a refiner draws its ids."""
    config = refiner.config
    positions = config.prefix_length + config.num_tokens
    # Layers one at a time, and the generator's states where they are an input.
    numbers = positions * (6 * config.hidden_size + 3 * config.intermediate_size)
    numbers += config.num_tokens * (config.context_dim or 0)
    entry = REFINING + guided * GUIDING
    return numbers * refiner.dtype.itemsize + config.num_tokens * config.codebook_size * entry


def images_at_once(
    limit: int,
    count: int,
    transformer: CodecladeTransformer,
    guided: bool,
    vq_model: VQModel | None = None,
    refiner: Refiner | None = None,
    refiner_guided: bool = False,
) -> tuple[int, int]:
    """Images of `count` that fit `limit` bytes together, and the bytes that so many take.

    Batches are as equal as they can be, so that compiled code meets two shapes at most.

    Args:
        vq_model: where images are decoded, which goes in slices by itself.
        refiner: where one is asked; `refiner_guided` with guidance of its own.

    Raises:
        ValueError: a limit that one image does not fit.
    """
    one = sampling_bytes(transformer, guided)
    if refiner is not None:
        one = max(one, refining_bytes(refiner, refiner_guided))
    picture = 0 if vq_model is None else vq_model.decoding_bytes(transformer.config.grid_size**2)

    # What sampling took stays with the allocator while images are decoded, in slices.
    most_slices = max(picture, DECODING_MEMORY)

    def taken(images: int) -> int:
        return images * one + min(images * picture, most_slices)

    if taken(1) > limit:
        raise ValueError(
            f"max_memory={limit:,} bytes is too little: one image takes about {taken(1):,} beside "
            "the weights."
        )
    most = max(limit // (one + picture), (limit - most_slices) // one if picture else 0)
    calls = -(-count // most)
    size = -(-count // calls)
    announcements.info(
        f"{count} images, {size} at once, which take about "
        f"{taken(size) / 1e9:.2f} GB beside the weights"
    )
    return size, taken(size)


def check_batches(size: int, count: int, callback: Any) -> None:
    """Raise a ValueError where a callback would see a part of the images only."""
    if callback is not None and size < count:
        raise ValueError(
            f"callback_on_step_end is for one batch, and max_memory makes batches of {size} of the "
            f"{count} images; leave one of the two out."
        )


def in_batches(images_of: Callable[[slice], Any], count: int, size: int) -> Any:
    """What `images_of` gives for slices of `size` of `count` images: a list, tensor or array."""
    parts = [images_of(slice(first, first + size)) for first in range(0, count, size)]
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [image for part in parts for image in part]
