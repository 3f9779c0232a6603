"""What the recipes of all training runs share."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

# Sizes of a decoder: recipes of generators and refiners, and their configs, name them alike.
DECODER_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_settings(recipe: Any, *counts: str) -> None:
    """Raise a ValueError unless a recipe's `counts` are positive and its precision is known."""
    for name in counts:
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name} is {getattr(recipe, name)}; it must be at least 1.")
    if recipe.mixed_precision not in PRECISIONS:
        raise ValueError(
            f"mixed_precision is {recipe.mixed_precision!r}; it must be one of "
            f"{', '.join(PRECISIONS)}."
        )


@dataclass(kw_only=True)
class RunRecipe:
    """Settings that every training run has; a stage adds its own.

    Raises:
        ValueError: a count that is too small, or an unknown precision.
    """

    # What a run that goes on may change: it alters no step that is already done.
    HARMLESS: ClassVar[tuple[str, ...]] = (
        "steps", "epochs", "workers", "log_every", "evaluate_every", "save_every", "keep",
        "tracker",
    )  # fmt: skip

    steps: int = 100_000  # optimizer steps
    epochs: float = 0.0  # visits to every training image, instead of steps; 0 = as steps says
    batch_size: int = 256  # images a step, of all processes and passes together
    gradient_accumulation_steps: int = 1  # passes that a process splits its share of a step into
    learning_rate: float = 1e-4  # highest, at the end of the warm-up
    final_learning_rate: float = 1e-5  # at the last step; the way there is half a cosine
    warmup: int = 100  # steps of linear increase
    weight_decay: float = 0.05  # of AdamW, on tensors of two or more dimensions
    gradient_clip: float = 1.0  # largest norm of all gradients together
    ema_decay: float = 0.999  # of the averaged weights, which are what is saved; 0 = no average
    mixed_precision: str = "bf16"  # no, fp16, bf16
    seed: int = 0  # of weights, order of images, views and dropout
    workers: int = 0  # processes that read data, a training process; 0 = it reads itself
    log_every: int = 20  # steps
    evaluate_every: int = 500  # steps between validations of the averaged weights
    save_every: int = 500  # steps between checkpoints
    keep: int = 2  # newest checkpoints that stay
    tracker: str = ""  # tensorboard, wandb, ...; none; empty: tensorboard where it is installed

    def __post_init__(self):
        counts = ("steps", "batch_size", "gradient_accumulation_steps")
        check_settings(self, *counts, "log_every", "evaluate_every", "save_every", "keep")
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs}; it must be 0 or more.")

    def pick(self, *names: str) -> dict[str, Any]:
        """Settings by name, for what takes them under the same names."""
        return {name: getattr(self, name) for name in names}
