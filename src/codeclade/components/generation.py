"""Generation: a condition to tokens, tokens to ids, ids to images, as free functions.

The generator samples clusters (MASC arXiv 2510.04220, DCPE arXiv 2508.10719), ids (LlamaGen arXiv
2406.06525), or in two stages a cluster and an id, or a semantic and a detail code (IAR2), in raster
order. The KV cache belongs to `sample_tokens`; nothing but a compiled generator's is kept between
calls, and there is no host synchronization from one token to the next. Must stay numerically equal
to LlamaGen's generate.py.

Shapes: B images, R rows of the batch (2B with guidance, the unconditional half second, else B),
P prefix positions, T = G * G tokens, S stages of a position, V vocabulary, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, cast

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from .cluster_map import ClusterMap
from .editing import Edit
from .guidance import Number, Schedule
from .image_cache import KEPT, ImageCache, compiled
from .refiner import Refiner, Refining, clusters_to_ids
from .sampling import guide, image_seeds, noise_seeds, sample_with_noise, seeded_uniforms
from .transformer import CodecladeOutput, CodecladeTransformer
from .vq_model import VQModel


class Draws(NamedTuple):
    """The random numbers that decide a batch of images; all but seeds are uniform in [0, 1)."""

    tokens: Tensor  # (B, S, T) int64: seeds of the noise of every choice of the generator
    members: Tensor  # (B, T) for the member draw or the refiner
    strength: Tensor | None = None  # (B, T) pick what `strength` changes; None where all changes

    def of(self, images: slice) -> "Draws":
        """Those of some of the images."""
        strength = None if self.strength is None else self.strength[images]
        return Draws(self.tokens[images], self.members[images], strength)


def draw_uniforms(
    count: int,
    transformer: CodecladeTransformer,
    generator: torch.Generator | list[torch.Generator] | None,
    strength: float = 1.0,
) -> Draws:
    """The numbers for `count` images, on the CPU; each image has a stream of its own.

    Raises:
        ValueError: a list of generators that is not one for every image.
    """
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(f"{len(generator)} generators were given for {count} images.")
    config = transformer.config
    stages, steps = config.num_stages, config.num_tokens
    seeds = image_seeds(count, generator)
    # Rows for the strength come last, so that asking for one leaves the other numbers as they are.
    # The first rows decide nothing: tokens were drawn by them in 0.1, and members keep their place.
    rows = stages + 1 + (strength < 1)
    uniforms = seeded_uniforms(seeds, (rows, steps))  # (B, rows, T)
    last = uniforms[:, stages + 1] if strength < 1 else None
    return Draws(noise_seeds(seeds, stages, steps), uniforms[:, stages], last)


@dataclass
class SamplingSettings:
    """How tokens are drawn from logits."""

    temperature: float = 1.0  # 0 is arg-max
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # 1 keeps all
    guidance_scale: Number = 1.0  # a pair has one number for each stage
    schedule: Schedule = field(default_factory=lambda: Schedule(None))
    parallel: int | None = None  # positions of a pass at most, see parallel.py; None is automatic

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is active; at 1 or less the condition alone speaks."""
        return largest(self.guidance_scale) > 1


def largest(scale: Number) -> float:
    """The larger one of a pair of guidance scales, or the only one."""
    return max(scale) if isinstance(scale, (tuple, list)) else scale


@torch.no_grad()
def sample_tokens(
    transformer: CodecladeTransformer,
    condition: dict[str, Tensor],
    null_condition: dict[str, Tensor],
    seeds: Tensor,
    settings: SamplingSettings,
    edit: Edit | None = None,
    after_token: Callable[[int, Tensor], tuple[Tensor, Number, bool]] | None = None,
) -> Tensor:
    """Tokens (B, T, ...) of a batch of images, one position a step.

    Args:
        condition: keyword arguments of the transformer's first call, each with B rows.
        null_condition: the same for the unconditional half of the guidance batch.
        seeds: (B, S, T), `Draws.tokens` on the transformer's device.
        edit: what is known; steps before the first and after the last change are left out.
        after_token: called as `after_token(step, tokens)` when a token is known; returns the tokens
            to go on with, the guidance scale from here on, and whether to stop.
    """
    scheme = transformer.scheme
    batch, _, steps = seeds.shape
    # Guidance needs unconditional rows; whether they are there is settled before the first step.
    guided = settings.guided
    attend = guided and settings.schedule.uses_attention
    condition = guidance_rows(condition, null_condition, guided)
    # What is known up to the first change goes into the cache in one pass, as a prompt does.
    tokens, start, stop = first_tokens(transformer, batch, seeds.device, edit)
    cache = make_cache(transformer, condition, seeds.device)
    states = None
    for step in range(start, stop):
        # A schedule may end before the image does; the unconditional rows then have no use.
        if guided and step > start and settings.schedule.ended(step) and can_drop(cache):
            guided, condition = False, drop_unconditional(cache, condition, batch)
            states = cast(Tensor, states)[:batch]
        # Prefix and known tokens once; then each step adds the token that the one before chose.
        if step == start:
            known = both_halves(tokens[:, :start], guided) if start else None
            output = prefill(transformer, cache, condition, known, attend)
        else:
            last = both_halves(tokens[:, step - 1 : step], guided)
            mask = condition.get("attention_mask")
            output = decode_one_token(transformer, cache, last, mask, attend)
        # A head that looks at neighbors gets the states of all tokens, others the last one alone.
        new = cast(Tensor, output.last_hidden_state)
        if scheme.reads_earlier_states:
            states, at = place_states(states, new, step, steps), step
        else:
            states, at = new, -1
        attended = cast(Tensor, output.condition_attention)[:batch] if attend else None  # (B,)
        scale_of = partial(scale_at, settings, step, steps, attended) if guided else None
        kept = None if edit is None else (edit.redo[:, step], edit.choices[:, step])
        choices = choose(transformer, states, at, seeds[..., step], settings, scale_of, kept)
        tokens[:, step] = scheme.choices_to_tokens(choices)
        # The caller may change tokens or the scale, or stop; settings stay the caller's own copy.
        if after_token is not None:
            tokens, scale, stopped = after_token(step, tokens)
            settings = replace(settings, guidance_scale=scale)
            if stopped:
                break
    KEPT.give_back(transformer, cache)
    return tokens


def guidance_rows(
    condition: dict[str, Tensor], null_condition: dict[str, Tensor], guided: bool
) -> dict[str, Tensor]:
    """Rows (R, ...) of the transformer's first call, the unconditional half second."""
    if not guided:
        return condition
    return {key: torch.cat([rows, null_condition[key]]) for key, rows in condition.items()}


def first_tokens(
    transformer: CodecladeTransformer, batch: int, device: torch.device, edit: Edit | None
) -> tuple[Tensor, int, int]:
    """Tokens (B, T, ...) before sampling, the first position to sample and one after the last."""
    steps = transformer.config.num_tokens
    if edit is not None:
        return edit.tokens.clone(), edit.start, edit.stop
    shape = (batch, steps, *transformer.scheme.token_shape)
    return torch.zeros(shape, dtype=torch.int64, device=device), 0, steps


def make_cache(
    transformer: CodecladeTransformer, condition: dict[str, Tensor], device: torch.device
) -> Cache:
    """An empty cache for all positions: of the filled part where that is faster, else static."""
    config = transformer.config
    # Compiled code wants shapes that stay, and flash and flex attention masks of their own.
    if compiled(transformer):
        return KEPT.take(transformer, len(next(iter(condition.values()))), device)
    if config._attn_implementation not in ("sdpa", "eager"):
        return StaticCache(config, max_cache_len=config.prefix_length + config.num_tokens)
    return ImageCache(config, device, condition.get("attention_mask"))


def can_drop(cache: Cache) -> bool:
    """Whether rows can leave the cache; compiled code wants shapes that stay."""
    return isinstance(cache, ImageCache)


def drop_unconditional(cache: Cache, condition: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
    """The condition without the rows of guidance, which leave the cache too."""
    cast(ImageCache, cache).keep_rows(batch)
    return {key: rows[:batch] for key, rows in condition.items()}


def prefill(
    transformer: CodecladeTransformer,
    cache: Cache,
    condition: dict[str, Tensor],
    known: Tensor | None = None,
    attend: bool = False,
) -> CodecladeOutput:
    """Fill the cache with the prefix and the tokens known at the start, (R, n, ...).

    The last of `last_hidden_state` predicts token n.

    Args:
        attend: also ask for the condition's share of the attention.
    """
    return extend_cache(transformer, cache, known, attend, **condition)


def decode_one_token(
    transformer: CodecladeTransformer,
    cache: Cache,
    token: Tensor,
    attention_mask: Tensor | None = None,
    attend: bool = False,
) -> CodecladeOutput:
    """Add one token (R, 1, ...) to the cache; the only hidden state predicts the next one.

    Args:
        attention_mask: (R, P+T), where the condition has one.
        attend: also ask for the condition's share of the attention.
    """
    return extend_cache(transformer, cache, token, attend, attention_mask=attention_mask)


def extend_cache(
    transformer: CodecladeTransformer,
    cache: Cache,
    tokens: Tensor | None,
    attend: bool,
    **condition: Tensor | None,
) -> CodecladeOutput:
    """One call while images are sampled: hidden states (R, n, D), and no logits yet."""
    return transformer(
        input_ids=tokens,
        past_key_values=cache,
        return_logits=False,
        output_condition_attention=attend,
        return_dict=True,
        **condition,
    )


def choose(
    transformer: CodecladeTransformer,
    states: Tensor,
    at: int | slice,
    seeds: Tensor,
    settings: SamplingSettings,
    scale_of: Callable[[int], float | Tensor] | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What every stage chooses at one position, (B, S), or at a slice of them, (B, n, S).

    Args:
        states: (R, m, D) hidden states, of which number or slice `at` predicts.
        seeds: (B, S) of the noise, or (B, n, S).
        scale_of: guidance scale of a stage, a number, (B, 1) or (n, 1), where there are
            unconditional rows.
        kept: where a stage is sampled, bool, and what it chooses elsewhere, as `seeds`; the second
             stage is sampled given what the first one keeps.
    """
    # The head's cache lives for one position only: its stages see each other, not other tokens.
    guided, cache, choices = scale_of is not None, DynamicCache(), []
    for stage in range(seeds.shape[-1]):
        chosen = both_halves(choices[-1], guided) if choices else None  # (R, ...)
        logits = transformer.stage_logits(states, at, chosen, cache)  # (R, ..., V)
        if scale_of is not None:
            (logits, unconditional), scale = logits.chunk(2), scale_of(stage)  # (B, ..., V) each
            if isinstance(scale, Tensor) or scale > 1:
                logits = guide(logits, unconditional, scale)
        # Filters after guidance, as in LlamaGen: top-k of the mixed logits, not of either half.
        filters = settings.temperature, settings.top_k, settings.top_p
        choice = sample_with_noise(logits, seeds[..., stage], *filters)  # (B, ...)
        # Sampled, then overruled: images keep different tokens, and a branch would ask the host.
        if kept is not None:
            choice = torch.where(kept[0][..., stage], choice, kept[1][..., stage])
        choices.append(choice)
    return torch.stack(choices, dim=-1)


def scale_at(
    settings: SamplingSettings, step: int, steps: int, attended: Tensor | None, stage: int
) -> float | Tensor:
    """Guidance scale of one stage at one step; 1 where a callback has switched guidance off."""
    if not settings.guided:
        return 1.0
    return settings.schedule.scale_at(settings.guidance_scale, step, steps, stage, attended)


def both_halves(rows: Tensor, guided: bool) -> Tensor:
    """Rows (R, ...) for both halves of the guidance batch, of rows (B, ...)."""
    return torch.cat([rows, rows]) if guided else rows


def place_states(states: Tensor | None, new: Tensor, step: int, steps: int) -> Tensor:
    """Hidden states (R, T, D) of the tokens so far, the new ones (R, n, D) put up to `step`."""
    if states is None:  # the first call brings the prefix and all known tokens
        states = new.new_zeros(len(new), steps, new.shape[-1])
        new = new[:, -(step + 1) :]
    states[:, step + 1 - new.shape[1] : step + 1] = new
    return states


def tokens_to_ids(
    tokens: Tensor,
    members: Tensor,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap | None,
    refiner: Refiner | None,
    refining: Refining,
    edit: Edit | None = None,
) -> Tensor:
    """Fine ids (B, T, ...) of tokens (B, T, ...); clusters are drawn from or refined.

    Args:
        members: (B, T), `Draws.members`.
        edit: ids where it keeps a token are kept, too.
    """
    if not transformer.scheme.predicts_clusters:
        return tokens
    # Pipelines refuse a scheme of clusters without a map, and edits of it without ids.
    parts = transformer, cast(ClusterMap, cluster_map), refiner
    ids = clusters_to_ids(tokens, members, *parts, refining)
    if edit is None:
        return ids
    return torch.where(edit.redo[..., 0], ids, cast(Tensor, edit.ids))


def ids_to_images(
    ids: Tensor, vq_model: VQModel, processor: VaeImageProcessor, output_type: str = "pil"
):
    """Images of ids (B, G, G, ...), as diffusers' image processor gives them."""
    return processor.postprocess(ids_to_pixels(ids, vq_model), output_type=output_type)


def ids_to_pixels(ids: Tensor, vq_model: VQModel) -> Tensor:
    """What the decoder makes of ids (B, G, G, ...): (B, 3, S, S) float32, not clamped to [-1, 1].

    Raises:
        ValueError: a decoder whose numbers are not finite in its dtype.
    """
    pixels = vq_model.decode(ids).float()
    if not pixels.isfinite().all():
        half = vq_model.dtype in (torch.float16, torch.bfloat16)
        advice = "; load it in float32, or with force_upcast=True." if half else "."
        raise ValueError(f"vq_model gives numbers that are not finite in {vq_model.dtype}{advice}")
    return pixels
