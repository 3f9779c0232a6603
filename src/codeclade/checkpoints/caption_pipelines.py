"""Pipelines that take captions, with the T5 encoder that they were saved with or without."""

import torch
from transformers import AutoTokenizer, T5EncoderModel

from ..components.pipeline import CodecladePipeline
from ..components.text_pipeline import CodecladeTextPipeline


def takes_captions(source: str) -> bool:
    """Whether a pipeline is conditioned on captions; reads its index alone.

    Args:
        source: folder or Hub id.

    Raises:
        OSError: nothing there that can be read.
    """
    return CodecladePipeline.load_config(source).get("_class_name") == "CodecladeTextPipeline"


def load_caption_pipeline(
    source: str, dtype: torch.dtype, encoder: str | None = None, encoder_needed: bool = True
) -> CodecladeTextPipeline:
    """A pipeline of captions on the CPU.

    Args:
        encoder: Hub id or folder of a T5 encoder and its tokenizer; None: the pipeline's own.
        encoder_needed: whether one must be there; features of captions need none.

    Raises:
        ValueError: no encoder, neither named nor in the pipeline, or one that is not there.
    """
    # An encoder that is named replaces the pipeline's own, which then is not loaded.
    parts = {}
    if encoder:
        try:
            parts["tokenizer"] = AutoTokenizer.from_pretrained(encoder)
            parts["text_encoder"] = T5EncoderModel.from_pretrained(encoder, dtype=dtype)
        except OSError as error:
            raise ValueError(
                f"--text-encoder {encoder} holds no T5 encoder with its tokenizer that could be "
                "read, here or on the Hub."
            ) from error
    pipe = CodecladeTextPipeline.from_pretrained(source, dtype=dtype, **parts)
    if encoder_needed and pipe.text_encoder is None:
        raise ValueError(
            f"{source} holds no text encoder; name one, as in --text-encoder google/flan-t5-xl."
        )
    return pipe
