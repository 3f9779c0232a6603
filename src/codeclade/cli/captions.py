"""What verbs need for pipelines that take captions: loading, features, checks of flags."""

import argparse

from .arguments import check_device, import_for_good, unknown

FLAGS = ("prompts", "clip", "text_encoder")  # of captions alone
NOT_OF_CAPTIONS = ("classes", "draws", "judge", "likelihood")  # of classes alone


def takes_captions(source: str) -> bool:
    """Whether a pipeline is conditioned on captions; reads its index alone.

    Raises:
        ValueError: nothing there that can be read.
    """
    import_for_good("codeclade.components")
    from ..checkpoints import caption_pipelines

    try:
        return caption_pipelines.takes_captions(source)
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


def load_text_pipeline(
    source: str, device: str | None, encoder: str | None, encoder_needed: bool = True
):
    """A pipeline of captions on the best device there is.

    Args:
        encoder: Hub id or folder of a T5 encoder and its tokenizer; None: the pipeline's own.
        encoder_needed: whether one must be there; features of captions need none.

    Raises:
        ValueError: no encoder, neither named nor in the pipeline, or one that is not there.
    """
    import torch

    from ..checkpoints.caption_pipelines import load_caption_pipeline

    device = check_device(device)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return load_caption_pipeline(source, dtype, encoder, encoder_needed).to(device)


def saved_features(codes: str, prompts: list[str] | None) -> tuple[list[str], dict]:
    """Captions of code shards, and their features as a pipeline's call takes them.

    Args:
        codes: folder or Hub dataset whose features `encode-text` has made; of one with splits the
            validation split is taken.
        prompts: captions among them; None: eight, evenly spread.

    Raises:
        ValueError: no features there, or a prompt that is none of the captions.
    """
    import torch

    from ..data.captioned import CaptionedCodes
    from ..data.codes import codes_folder

    # Held-out captions where there are some: those of training may be known by heart.
    folder = codes_folder(codes)
    inside = folder / "validation"
    shards = CaptionedCodes(inside if inside.is_dir() else folder)
    texts = [text for number in range(len(shards.shards)) for text in shards.captions(number)]
    # Without prompts some captions spread over all of them.
    if prompts is None:
        count = min(8, len(texts))
        chosen = [i * len(texts) // count for i in range(count)]
    else:
        for prompt in prompts:
            if prompt not in texts:
                raise ValueError(
                    f"{prompt!r} is no caption of {codes}, such as {texts[0]!r}; give one of its "
                    "captions, or --text-encoder MODEL."
                )
        chosen = [texts.index(prompt) for prompt in prompts]
    features, masks = zip(*(shards.caption(index) for index in chosen), strict=True)
    condition = {
        "prompt_embeds": torch.stack(features),
        "prompt_attention_mask": torch.stack(masks),
    }
    return [texts[index] for index in chosen], condition


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
