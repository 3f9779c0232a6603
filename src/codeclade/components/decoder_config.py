"""DecoderConfig: the fields that the configs of generator and refiner share."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .fields import (
    Base,
    CountOrZero,
    Deviation,
    Epsilon,
    Grid,
    Layers,
    Share,
    Width,
    check_fields,
)
from .weight_files import read_json


class DecoderConfig(PreTrainedConfig):
    """What the configs of generator and refiner share; the defaults are LlamaGen-B's.

    Subclasses have `prefix_length`, as a field or as a property.

    Raises:
        ValueError: a width that the heads do not divide into multiples of 4.
    """

    def __init__(
        self,
        grid_size: Grid = 16,  # G
        num_classes: CountOrZero = 1000,
        hidden_size: Width = 768,  # D
        num_hidden_layers: Layers = 12,
        num_attention_heads: Width = 12,  # H
        intermediate_size: Width = 2048,  # SwiGLU width
        rms_norm_eps: Epsilon = 1e-5,
        rope_theta: Base = 10000.0,
        token_dropout: Share = 0.1,  # dropouts act in training only
        residual_dropout: Share = 0.1,
        feed_forward_dropout: Share = 0.1,
        class_dropout: Share = 0.1,  # share of conditions replaced by the null condition
        initializer_range: Deviation = 0.02,
        **kwargs,
    ):
        # Each head splits into a row and a column half, and each half into pairs: hence 4.
        if hidden_size % (4 * num_attention_heads):
            raise ValueError(
                f"hidden_size={hidden_size} must be a multiple of 4 * num_attention_heads="
                f"{4 * num_attention_heads}, for the two rotation axes."
            )
        # Sizes, then what acts in training alone.
        self.grid_size = grid_size
        self.num_classes = num_classes
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.token_dropout = token_dropout
        self.residual_dropout = residual_dropout
        self.feed_forward_dropout = feed_forward_dropout
        self.class_dropout = class_dropout
        self.initializer_range = initializer_range
        # Tokens go in by an embedding and out by a head of its own, as in the published weights.
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """transformers reads config.json here, from a folder and from the Hub alike."""
        return read_json(Path(json_file))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, with fields that have values they can have.

        Raises:
            ValueError: naming the first field that has not.
        """
        check_fields(cls, config_dict, "config.json")
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_key_value_heads(self) -> int:
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_tokens(self) -> int:
        """T of a whole image."""
        return self.grid_size**2
