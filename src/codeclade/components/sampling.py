"""Sampling: guidance, filters and draws as pure functions of logits and given randomness.

No host synchronization and no hidden state. The generator's choices are arg-maxes of logits and
Gumbel noise, which a seed for every choice decides; the refiner's draws invert the cumulative
distribution by one uniform number each. An image depends on its own numbers, never on its batch.

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


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) after temperature, then top-k, then top-p (LlamaGen's order)."""
    return filter_top_p(filter_top_k(logits / temperature, top_k), top_p)


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities (B, V) of `filtered` logits."""
    return filtered(logits, temperature, top_k, top_p).softmax(-1)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Indices (B,) drawn from rows of `probs` (B, V) by one number in [0, 1) each (B,)."""
    # In float32 the sum of 16,384 probabilities is off by more than the rarest of them; MPS has
    # no float64.
    wide = torch.float32 if probs.device.type == "mps" else torch.float64
    cumulative = probs.to(wide).cumsum(-1)
    target = uniforms.to(probs.device, wide).unsqueeze(-1) * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return index.clamp_max(probs.shape[-1] - 1)


def sample(logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    """Tokens (B,) from logits (B, V); temperature 0 is arg-max."""
    if temperature == 0:
        return logits.argmax(-1)
    return draw(probabilities(logits.float(), temperature, top_k, 1.0), uniforms)


def sample_with_noise(
    logits: Tensor,
    seeds: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Tokens (...) from logits (..., V) by the arg-max of logits and noise; temperature 0 is
    arg-max alone.

    The arg-max of logits and Gumbel noise is distributed as their softmax. Noise that stays decides
    alike for logits that are nearly the same, which decoding in parallel lives on.

    Args:
        seeds: (...) int64 as `noise_seeds` gives them.
    """
    if temperature == 0:
        return logits.argmax(-1)
    kept = filtered(logits.float(), temperature, top_k, top_p)
    return (kept + gumbel_noise(seeds, logits.shape[-1])).argmax(-1)


STEP = -7046029254386353131  # 0x9E3779B97F4A7C15, by which SplitMix64 counts


def scramble(numbers: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea and Flood 2014) of int64 numbers, which wrap."""
    # Integers alone, so that every device makes the same numbers, in any order and number.
    numbers = (numbers ^ shift_right(numbers, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    numbers = (numbers ^ shift_right(numbers, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return numbers ^ shift_right(numbers, 31)


def shift_right(numbers: Tensor, bits: int) -> Tensor:
    """int64 numbers shifted as if they had no sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def noise_seeds(seeds: list[int], stages: int, tokens: int) -> Tensor:
    """Seeds (B, stages, tokens) int64 of the noise of every choice, of one seed an image."""
    count = torch.arange(1, stages * tokens + 1).view(stages, tokens)
    return scramble(torch.tensor(seeds).view(-1, 1, 1) + count * STEP)


def gumbel_noise(seeds: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise (..., V) float32: entry i is decided by its seed (...) and i alone."""
    count = torch.arange(1, vocabulary + 1, device=seeds.device) * STEP
    bits = shift_right(scramble(seeds.unsqueeze(-1) + count), 1)  # 63 of them
    # A float keeps the leading 24 bits of any number: those near 0, which make the largest noise,
    # are as exact as others. The bounds keep both logarithms finite.
    uniform = (bits.float() * 2.0**-63).clamp(1e-20, 1 - 2.0**-24)
    return torch.log1p(-uniform).neg_().log_().neg_()


def image_seeds(count: int, generator: torch.Generator | list[torch.Generator] | None) -> list[int]:
    """A seed for every image, one draw from its generator each."""
    # One generator for all is asked in turn, which gives every image a seed of its own.
    generators = generator if isinstance(generator, list) else [generator] * count
    seeds = []
    for source in generators:
        device = source.device if source is not None else "cpu"
        seeds.append(int(torch.randint(2**62, (), generator=source, device=device)))
    return seeds


def image_uniforms(
    count: int,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
) -> Tensor:
    """Uniform numbers (count, *shape) on the CPU, a stream of its own for every image.

    Each image's stream is seeded by one draw from its generator, so the first image of a batch and
    the same image made alone get the same numbers.
    """
    return seeded_uniforms(image_seeds(count, generator), shape)


def seeded_uniforms(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers (B, *shape) on the CPU, a stream for every seed."""
    streams = [torch.rand(shape, generator=torch.Generator().manual_seed(one)) for one in seeds]
    return torch.stack(streams)
