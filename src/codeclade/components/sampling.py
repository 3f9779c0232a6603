"""Sampling: guidance, filters and draws as pure functions of logits and uniform numbers.

No host synchronization and no hidden state. Draws invert the cumulative distribution, so one
uniform number a token decides it: an image depends on its own numbers alone, never on its batch.

Shapes: B batch, V vocabulary, T tokens. Logits are float32 whatever the dtype of the model.
"""

import torch
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance u + s (c - u) of logits (B, V); s a number or (B, 1)."""
    return unconditional + scale * (conditional - unconditional)


def filter_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the `top_k` largest of each row (ties with the last kept stay); 0 keeps all."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def filter_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most likely entries whose probabilities reach `top_p`; 1.0 keeps all."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    # The mass before an entry, so that the entry which crosses `top_p` is still kept.
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
    return logits.masked_fill(drop, -torch.inf)


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities (B, V) after temperature, then top-k, then top-p (LlamaGen's order)."""
    return filter_top_p(filter_top_k(logits / temperature, top_k), top_p).softmax(-1)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Indices (B,) drawn from rows of `probs` (B, V) by one number in [0, 1) each (B,)."""
    # In float32 the sum of 16,384 probabilities is off by more than the rarest of them; MPS has
    # no float64.
    wide = torch.float32 if probs.device.type == "mps" else torch.float64
    cumulative = probs.to(wide).cumsum(-1)
    target = uniforms.to(probs.device, wide).unsqueeze(-1) * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return index.clamp_max(probs.shape[-1] - 1)


def sample(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Tokens (B,) from logits (B, V); temperature 0 is arg-max."""
    if temperature == 0:
        return logits.argmax(-1)
    return draw(probabilities(logits.float(), temperature, top_k, top_p), uniforms)


def image_uniforms(
    count: int,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
) -> Tensor:
    """Uniform numbers (count, *shape) on the CPU, a stream of its own for every image.

    Each image's stream is seeded by one draw from its generator, so the first image of a batch and
    the same image made alone get the same numbers.
    """
    # One generator for all is asked in turn, which gives every image a seed of its own.
    generators = generator if isinstance(generator, list) else [generator] * count
    streams = []
    for source in generators:
        device = source.device if source is not None else "cpu"
        seed = int(torch.randint(2**62, (), generator=source, device=device))
        own = torch.Generator().manual_seed(seed)
        streams.append(torch.rand(shape, generator=own))
    return torch.stack(streams)
