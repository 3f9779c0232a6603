"""How a tokenizer uses its codebook, from counts of codes. N codes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodebookUse:
    """Usage of a codebook by a set of images.

    Args:
        usage: share of the N codes seen at least once.
        perplexity: exp of the entropy of the codes' frequencies; N where all are equally frequent.
        dead_codes: codes never seen.
    """

    usage: float
    perplexity: float
    dead_codes: int


def count_ids(ids: Tensor, codebook_size: int) -> Tensor:
    """Times (N,) that every code occurs in ids of any shape, int64; add them over batches.

    Raises:
        ValueError: an id outside 0..N-1.
    """
    ids = ids.flatten()
    # bincount would answer a large id with a longer vector, which fails only when it is added.
    low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if low < 0 or high >= codebook_size:
        raise ValueError(f"ids must be 0 to {codebook_size - 1}, got {low} to {high}.")
    return torch.bincount(ids, minlength=codebook_size)


def codebook_use(counts: Tensor) -> CodebookUse:
    """Usage, perplexity and dead codes from counts (N,).

    Usage grows with the number of images: report it with their number.

    Raises:
        ValueError: no code was seen, or a count is negative.
    """
    if counts.ndim != 1 or counts.sum() < 1 or counts.min() < 0:
        raise ValueError(
            f"counts must be (N,), at least 0 and not all 0, got {tuple(counts.shape)}."
        )
    share = counts.double() / counts.sum()
    # Dead codes are common; xlogy makes their term 0 where 0 * log 0 would be NaN.
    entropy = -torch.xlogy(share, share).sum()
    seen = int((counts > 0).sum())
    return CodebookUse(seen / len(counts), float(entropy.exp()), len(counts) - seen)
