"""Guidance schedules: the scale of classifier-free guidance at every step, as pure functions.

constant and interval (LlamaGen, arXiv 2406.06525), linear, cosine_power (RAR, arXiv 2411.00776),
attention (IAR2's progressive, attention-guided scale). Each is called as
`function(scale, step, steps, attended, **parameters)` and gives a number, or (B, 1), one
an image; `scale` is the pipeline's `guidance_scale`, `step` counts the `steps` tokens from 0.
A number of 1 or less means that the condition alone speaks.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

Number = float | tuple[float, float]  # a pair has one value for each stage of a position


def constant(scale: float, step: int, steps: int, attended: Tensor | None) -> float:
    """The same scale at every token."""
    return scale


def interval(
    scale: float, step: int, steps: int, attended: Tensor | None, *, last_step: float
) -> float:
    """LlamaGen's cfg_interval: no guidance after decoding step `last_step`.

    Decoding step i makes token i + 1 (the prefix itself gives token 0), so tokens 0..last_step + 1
    are guided; -1 guides all of them.
    """
    return scale if last_step < 0 or step <= last_step + 1 else 1.0


def linear(
    scale: float, step: int, steps: int, attended: Tensor | None, *, start: float = 1.0
) -> float:
    """From `start` at the first token to `scale` at the last, n / (S - 1) of the way at token n."""
    return start + (scale - start) * progress(step, steps)


def cosine_power(
    scale: float, step: int, steps: int, attended: Tensor | None, *, power: float = 2.75
) -> float:
    """RAR's power-cosine: 1 + (scale - 1) (1 - cos(pi (n / S)^power)) / 2.

    Published powers: RAR-B 2.75, L 2.5, XL 1.5, XXL 1.2.
    """
    return 1 + (scale - 1) * (1 - math.cos(math.pi * (step / steps) ** power)) / 2


def attention(
    scale: float,
    step: int,
    steps: int,
    attended: Tensor,
    *,
    start: float = 1.75,
    weight: float = 0.1,
) -> Tensor:
    """IAR2's scale (B, 1): later tokens and tokens that look at the condition get more guidance.

        s = start (1 - w) + scale w        w = n / (S - 1) + weight a

    Not clamped, so the last tokens may exceed `scale`. Published: 1.75 to 2.5 with weight 0.1, or
    to 3.0 with weight 0.05.

    Args:
        attended: (B,) share a of the last layer's attention that falls on the condition.
    """
    share = progress(step, steps) + weight * attended.unsqueeze(-1)
    return start * (1 - share) + scale * share


SCHEDULES = {
    function.__name__: function
    for function in (constant, interval, linear, cosine_power, attention)
}


def progress(step: int, steps: int) -> float:
    """0 at the first token, 1 at the last; 0.5 if there is only one."""
    return step / (steps - 1) if steps > 1 else 0.5


class Schedule:
    """A guidance schedule with its parameters.

    Args:
        given: None (constant), a name, or a dict of `name` and that schedule's parameters, which
            may be pairs for the two stages of a position.

    Raises:
        ValueError: an unknown name or parameter, or one that is missing or no number.
    """

    def __init__(self, given: str | dict | None):
        # None and a name are short for a dict without parameters.
        parameters: dict[str, Any] = {"name": given or "constant"}
        if isinstance(given, dict):
            parameters = dict(given)
        self.name = parameters.pop("name", None)
        if self.name not in SCHEDULES:
            raise ValueError(
                f"guidance_schedule {self.name!r} is unknown; use one of {', '.join(SCHEDULES)}."
            )
        self.function: Callable = SCHEDULES[self.name]
        # What a schedule takes is read from its signature, so a new one needs a function only.
        known = {
            key: parameter.default
            for key, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        # All is refused here, before a token is sampled, and not at the step that would use it.
        for key, value in parameters.items():
            if key not in known:
                raise ValueError(
                    f"guidance_schedule {self.name!r} has no parameter {key!r}; "
                    f"it has {', '.join(known) or 'none'}."
                )
            numbers = _pair(value)
            if len(numbers) != 2 or not all(isinstance(n, (int, float)) for n in numbers):
                raise ValueError(f"guidance_schedule {key}={value!r} must be a number or two.")
            if key == "power" and min(numbers) < 0:  # the first step would divide by zero
                raise ValueError(f"guidance_schedule power={value!r} must not be negative.")
        # A parameter without default has no value that would suit every model.
        for key, default in known.items():
            if default is inspect.Parameter.empty and key not in parameters:
                raise ValueError(f"guidance_schedule {self.name!r} needs a number {key!r}.")
        self.parameters = parameters

    @property
    def uses_attention(self) -> bool:
        return self.name == "attention"

    def ended(self, step: int) -> bool:
        """Whether from this step on no scale could bring guidance back."""
        last = _pair(self.parameters.get("last_step", -1))
        return self.name == "interval" and min(last) >= 0 and step > max(last) + 1

    def scale_at(
        self, scale: Number, step: int, steps: int, stage: int, attended: Tensor | None
    ) -> float | Tensor:
        """The scale of one stage at one step; pairs give each stage its own number."""
        parameters = {key: _pair(value)[stage] for key, value in self.parameters.items()}
        return self.function(_pair(scale)[stage], step, steps, attended, **parameters)


def _pair(value: Number | list[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
