"""Exact parallel decoding: several tokens a pass, the same ids as one token a step.

Noise is fixed for every choice (see sampling.py), so a token is a function of the tokens before it.
Guess the next ones, compute what all of them would be in one causal pass, keep those whose inputs
were right, and guess again from what came out: Jacobi iteration, as in predictive sampling (arXiv
2002.09928). The first token of a pass is always right, whatever the guesses were.

One image leaves a CPU waiting for weights, so a pass over a few positions costs little more than
one over one; batches already keep it busy.

Shapes: B images, R rows (2B with guidance), P prefix positions, T tokens, n positions of a pass,
S stages, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from .editing import Edit
from .generation import (
    SamplingSettings,
    both_halves,
    choose,
    drop_unconditional,
    extend_cache,
    first_tokens,
    guidance_rows,
    make_cache,
    place_states,
    prefill,
)
from .image_cache import ImageCache, compiled
from .transformer import CodecladeTransformer

WINDOW = 16  # positions of a pass at most, where the choice is left to us


def check_parallel(
    parallel: int | None,
    transformer: CodecladeTransformer,
    settings: SamplingSettings,
    callback: Callable | None,
) -> int | None:
    """Positions of a pass at most, 1 where several are not possible; None: `choose_window` says.

    Args:
        parallel: what the caller asks for; None is automatic.
        callback: what wants to see every token, if anything.

    Raises:
        ValueError: no number of positions, or several where they are not possible.
    """
    if parallel is not None and (type(parallel) is not int or parallel < 1):
        raise ValueError(f"parallel={parallel!r} must be None (automatic) or 1 or more.")
    backend = transformer.config._attn_implementation
    # What needs every token by itself, or attends in a way that cannot take a window.
    obstacles = {
        "an attention-guided schedule": settings.guided and settings.schedule.uses_attention,
        "callback_on_step_end": callback is not None,
        "a compiled transformer": compiled(transformer),
        f"attention {backend!r}": backend not in ("sdpa", "eager"),
        f"scheme {transformer.config.scheme!r}": not transformer.scheme.takes_slices,
    }
    obstacle = next((name for name, there in obstacles.items() if there), None)
    if obstacle is None:
        return parallel
    if parallel is not None and parallel > 1:
        raise ValueError(f"parallel={parallel} does not go with {obstacle}; use 1 or None.")
    return 1


def choose_window(
    parallel: int | None, batch: int, device: torch.device, transformer: CodecladeTransformer
) -> int:
    """Positions of a pass at most; automatically several for one image on a CPU."""
    if parallel is not None:
        return parallel
    # One compiled call for a single position (see optimization.py) is faster than any window.
    waits = getattr(transformer.layers, "step", None) is None
    return WINDOW if waits and batch == 1 and device.type == "cpu" else 1


@torch.no_grad()
def sample_in_parallel(
    transformer: CodecladeTransformer,
    condition: dict[str, Tensor],
    null_condition: dict[str, Tensor],
    seeds: Tensor,
    settings: SamplingSettings,
    window: int,
    edit: Edit | None = None,
    after_pass: Callable[[int], bool] | None = None,
) -> Tensor:
    """Tokens (B, T, ...), the same as `sample_tokens` gives without a callback.

    Args:
        window: positions of a pass at most; fewer where few guesses come true.
        after_pass: called with the number of tokens that a pass made final; returns whether to
            stop.

    The other arguments are those of `sample_tokens`.
    """
    scheme, prefix = transformer.scheme, transformer.config.prefix_length
    batch, _, steps = seeds.shape
    guided = settings.guided
    condition = guidance_rows(condition, null_condition, guided)
    tokens, position, stop = first_tokens(transformer, batch, seeds.device, edit)
    guesses, start = tokens.clone(), position
    cache = cast(ImageCache, make_cache(transformer, condition, seeds.device))
    states, expected = None, float(window)
    while position < stop:
        if guided and position > start and settings.schedule.ended(position):
            guided, condition = False, drop_unconditional(cache, condition, batch)
            states = None if states is None else states[:batch]
        # Guesses far ahead rarely hold, and each of them has its price.
        width = max(2, min(window, round(2.5 * expected))) if window > 1 else 1
        end = min(position + width, stop)
        # One causal pass over the last final token and all guesses but the last one, which is
        # predicted and not read.
        inputs = torch.cat([tokens[:, :position], guesses[:, position : end - 1]], dim=1)
        if position == start:
            known = both_halves(inputs, guided) if end > 1 else None
            output = prefill(transformer, cache, condition, known)
        else:
            last = both_halves(inputs[:, position - 1 :], guided)
            output = extend_cache(transformer, cache, last, False)
        new = cast(Tensor, output.last_hidden_state)
        if scheme.reads_earlier_states:
            states, at = place_states(states, new, end - 1, steps), slice(position, end)
        else:
            states, at = new[:, -(end - position) :], slice(None)
        # The arg-max of every position, with its own noise and its own guidance scale.
        scale_of = partial(scales_at, settings, position, end, steps, seeds) if guided else None
        kept = None
        if edit is not None:
            kept = edit.redo[:, position:end], edit.choices[:, position:end]
        noise = seeds[..., position:end].mT  # (B, n, S)
        choices = choose(transformer, states, at, noise, settings, scale_of, kept)
        found = scheme.choices_to_tokens(choices)  # (B, n, ...)
        # A token is final if all before it in the pass were guessed right, in every image.
        right = found == guesses[:, position:end]
        right = right.all(-1) if scheme.token_shape else right  # (B, n)
        final = 1 + int(right[:, :-1].all(0).cumprod(0).sum())
        guesses[:, position:end] = found
        tokens[:, position : position + final] = found[:, :final]
        # What is not reached yet is guessed to go on like the last token that was.
        guesses[:, end : end + final] = torch.where(
            unknown(edit, end, end + final, guesses), found[:, -1:], guesses[:, end : end + final]
        )
        position += final
        cache.keep_positions(prefix + position - 1)
        expected = 0.75 * expected + 0.25 * final
        if after_pass is not None and after_pass(final):
            break
    return tokens


def unknown(edit: Edit | None, first: int, last: int, tokens: Tensor) -> Tensor:
    """Where tokens (B, n, ...) of an edit may change, to broadcast; everywhere without one."""
    if edit is None:
        return torch.ones((), dtype=torch.bool, device=tokens.device)
    redo = edit.redo[:, first:last].any(-1)  # (B, n)
    return redo.view(*redo.shape, *(1,) * (tokens.ndim - 2))


def scales_at(
    settings: SamplingSettings, first: int, last: int, steps: int, like: Tensor, stage: int
) -> Tensor:
    """Guidance scales (n, 1) of one stage at positions first..last - 1; 1: the condition alone."""
    schedule, scale = settings.schedule, settings.guidance_scale
    found = [schedule.scale_at(scale, step, steps, stage, None) for step in range(first, last)]
    return torch.tensor(found, device=like.device).clamp_min(1.0).unsqueeze(-1)
