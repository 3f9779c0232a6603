"""Arguments of a pipeline call, each by itself: one sentence where a value cannot be."""

import math
from collections.abc import Sequence

from .generation import SamplingSettings

PICTURES = ("pil", "np", "pt")
OUTPUT_TYPES = (*PICTURES, "ids", "clusters")
OUTPUT_ALIASES = {"latent": "ids", "cluster": "clusters"}  # diffusers' word, and our first one
TOKEN_NAMES = ("tokens", "latents")  # what callbacks may call the tokens; the second is diffusers'


def check_call(
    settings: SamplingSettings, several: int, output_type: str, names: Sequence[str], pairs: bool
) -> None:
    """Raise a ValueError that names the first argument with a value it cannot have.

    Args:
        several: `num_images_per_prompt`.
        names: `callback_on_step_end_tensor_inputs`.
        pairs: whether a position has two stages, with a guidance scale each.
    """
    scale, heat = settings.guidance_scale, settings.temperature
    kind = OUTPUT_ALIASES.get(output_type, output_type)
    scales = scale if isinstance(scale, (tuple, list)) else (scale,)
    fits = len(scales) in ((1, 2) if pairs else (1,)) and all(0 <= one < math.inf for one in scales)
    also = ", or a pair of such numbers" if pairs else ""
    checks = (
        ("guidance_scale", scale, fits, f"0 or more and finite{also}"),
        ("temperature", heat, 0 <= heat < math.inf, "0 (arg-max) or more and finite"),
        ("top_k", settings.top_k, settings.top_k >= 0, "0 (all) or more"),
        ("top_p", settings.top_p, 0 < settings.top_p <= 1, "above 0, up to 1"),
        ("num_images_per_prompt", several, several >= 1, "1 or more"),
        ("output_type", output_type, kind in OUTPUT_TYPES, f"one of {OUTPUT_TYPES}"),
        (
            "callback_on_step_end_tensor_inputs",
            list(names),
            set(names) <= set(TOKEN_NAMES),
            f"among {list(TOKEN_NAMES)}",
        ),
    )
    for name, value, good, allowed in checks:
        if not good:
            raise ValueError(f"{name}={value!r} must be {allowed}.")
