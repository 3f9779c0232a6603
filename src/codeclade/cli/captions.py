"""What `codeclade evaluate` needs for pipelines that take captions: loading and checks of flags."""

import argparse

from .arguments import check_device, unknown

FLAGS = ("prompts", "clip", "text_encoder")  # of captions alone
NOT_OF_CAPTIONS = ("classes", "draws", "judge", "likelihood")  # of classes alone


def takes_captions(source: str) -> bool:
    """Whether a pipeline is conditioned on captions; reads its index alone.

    Raises:
        ValueError: nothing there that can be read.
    """
    from .. import CodecladePipeline

    try:
        return CodecladePipeline.load_config(source).get("_class_name") == "CodecladeTextPipeline"
    except OSError as error:
        raise ValueError(unknown(source)) from error


def check_captions(arguments: argparse.Namespace, captions: bool) -> None:
    """Raise a ValueError for flags that do not go with the kind of pipeline."""
    kind, wrong = ("captions", NOT_OF_CAPTIONS) if captions else ("classes", FLAGS)
    given = [name for name in wrong if getattr(arguments, name) is not None]
    if given:
        flag = given[0].replace("_", "-")
        raise ValueError(f"--{flag} does not go with {arguments.source}, which takes {kind}.")
    if captions and not arguments.prompts:
        raise ValueError("--prompts FILE is needed: this pipeline takes captions.")


def load_text_pipeline(source: str, device: str | None, encoder: str | None):
    """A pipeline of captions on the best device there is.

    Args:
        encoder: Hub id or folder of a T5 encoder and its tokenizer; None: the pipeline's own.

    Raises:
        ValueError: no encoder, neither named nor in the pipeline, or one that is not there.
    """
    import torch

    from .. import CodecladeTextPipeline

    device = check_device(device)
    dtype, parts = torch.bfloat16 if device.startswith("cuda") else torch.float32, {}
    if encoder:
        from transformers import AutoTokenizer, T5EncoderModel

        try:
            parts["tokenizer"] = AutoTokenizer.from_pretrained(encoder)
            parts["text_encoder"] = T5EncoderModel.from_pretrained(encoder, dtype=dtype)
        except OSError as error:
            raise ValueError(f"--text-encoder {encoder}: {unknown(encoder)}") from error
    pipe = CodecladeTextPipeline.from_pretrained(source, dtype=dtype, **parts)
    if pipe.text_encoder is None:
        raise ValueError(
            f"{source} holds no text encoder; name one, as in --text-encoder google/flan-t5-xl."
        )
    return pipe.to(device)


def open_clip(model: str, device):
    """CLIP for the CLIP score.

    Raises:
        ValueError: no such model, or another kind.
    """
    from ..metrics.clip_score import ClipScore

    try:
        return ClipScore(model).to(device)
    except OSError as error:
        raise ValueError(f"--clip {model}: {unknown(model)}") from error
