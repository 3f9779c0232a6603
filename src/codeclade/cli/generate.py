"""`codeclade generate`: images of classes or captions, saved as a picture or a sheet."""

import argparse
import logging
from pathlib import Path

from .arguments import (
    add_verb,
    check_device,
    check_positive,
    check_source,
    import_for_good,
    unknown,
)
from .captions import load_text_pipeline, saved_features, takes_captions
from .sampling_flags import sampling_arguments, sampling_settings

EXAMPLES = """codeclade generate "school bus" --out bus.png --seed 7 --guidance-scale 3
  codeclade generate --pipeline llamagen-t2i-xl-512 --text-encoder google/flan-t5-xl \\
      --prompt "a golden retriever on a beach" --prompt "a red house" --out two.png"""
CAPTION_FLAGS = ("prompt", "text_encoder", "features")


def add_generate(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "generate",
        _generate,
        "generate images of classes or captions and save them",
        EXAMPLES,
    )
    parser.add_argument(
        "labels",
        nargs="*",
        metavar="CLASS",
        help="class names or ids; none: a sheet of eight, or of all up to 12",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="caption, of a pipeline that takes them; may be given several times",
    )
    parser.add_argument("--text-encoder", metavar="MODEL", help="T5 of a pipeline without one")
    parser.add_argument(
        "--features",
        metavar="CODES",
        help="instead of a T5: code shards with encode-text's features; prompts are captions of "
        "theirs, none: eight of them",
    )
    # Which pipeline draws, and into which file.
    parser.add_argument("--list", action="store_true", help="print the class names and stop")
    parser.add_argument("--pipeline", help="folder or Hub id; default: the bundled pipeline")
    parser.add_argument("--out", default="image.png", metavar="FILE", help="default: image.png")
    parser.add_argument(
        "--images", type=int, metavar="N", help="of each; default 1, sheet of classes 8"
    )
    # How tokens are sampled, and how clusters become ids.
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    sampling_arguments(parser)
    parser.add_argument(
        "--refine", choices=("refiner", "member"), help="how clusters become ids; default: refiner"
    )
    parser.add_argument("--refiner-temperature", type=float, metavar="T", help="0 is arg-max")
    parser.add_argument("--refiner-top-k", type=int, metavar="K", help="0 keeps all")
    parser.add_argument("--refiner-guidance-scale", type=float, metavar="S", help="active above 1")
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="as 4GB, beside the weights: images go in batches that fit; default: all at once",
    )
    # How pictures are shown, and where the work is done.
    parser.add_argument("--scale", type=int, default=2, help="enlargement on sheets; default 2")
    parser.add_argument("--device", help="default: cuda where available, else cpu")


def _generate(arguments: argparse.Namespace) -> None:
    if arguments.list:
        print("\n".join(class_list(arguments.pipeline)))
        return
    # All that can be wrong with the arguments is said before the weights are loaded.
    out = Path(arguments.out)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to save {out.name} in.")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--out {out} must end in .png, .jpg or .webp.")
    check_positive(images=arguments.images, scale=arguments.scale)
    captions = _check_conditions(arguments)
    import_for_good("codeclade.components")
    import torch

    settings = sampling_settings(arguments)

    left_out = 0
    if captions:
        pipeline, names, condition = _captions(arguments)
        count = arguments.images or 1
    else:
        # Without classes the images show a spread of what the pipeline knows.
        pipeline = load_pipeline(arguments.pipeline, arguments.device)
        labels = [int(label) if label.isdecimal() else label for label in arguments.labels]
        label_ids = pipeline.get_label_ids(labels or some_classes(pipeline))
        names, condition = _names(pipeline, label_ids), {"class_labels": label_ids}
        count = arguments.images or (1 if labels else 8)
        known = pipeline.transformer.config.num_classes
        left_out = 0 if labels else known - len(label_ids)
    refining = {
        "temperature": arguments.refiner_temperature,
        "top_k": arguments.refiner_top_k,
        "guidance_scale": arguments.refiner_guidance_scale,
    }
    if arguments.max_memory:  # how many images go together is said before they are made
        logging.basicConfig(format="%(message)s")
        logging.getLogger("codeclade.components.batch_memory").setLevel(logging.INFO)
    # A generator of the CPU: the seed then gives the same draws on every device.
    images = pipeline(
        **condition,
        **settings,
        num_images_per_prompt=count,
        refine=arguments.refine,
        refiner_settings={name: given for name, given in refining.items() if given is not None},
        generator=torch.Generator().manual_seed(arguments.seed),
        max_memory=arguments.max_memory,
    ).images
    # One image is saved pixel for pixel; several need captions and a sheet.
    picture = images[0]
    if len(images) > 1:
        picture = _sheet(names, images, arguments.scale)
    picture.save(out)
    more = f", {len(names)} of {len(names) + left_out} classes; --list has all" if left_out else ""
    print(f"saved {out} ({picture.width}x{picture.height}){more}")


def _check_conditions(arguments: argparse.Namespace) -> bool:
    """Whether the pipeline takes captions.

    Raises:
        ValueError: captions for a pipeline of classes, or the other way around, or neither.
    """
    source, captions = arguments.pipeline, False
    if source:
        check_source(source)
        captions = takes_captions(source)
    # Flags of captions with classes, and the other way round.
    given = [name for name in CAPTION_FLAGS if getattr(arguments, name) is not None]
    if given and not captions:
        flag, name = given[0].replace("_", "-"), source or "the bundled pipeline"
        raise ValueError(
            f"--{flag} does not go with {name}, which takes classes: give their names."
        )
    if not captions:
        return False
    if arguments.labels:
        raise ValueError(
            f"{source} takes captions, not classes; give --prompt {' '.join(arguments.labels)!r}."
        )
    # Captions have features from one source, and are there at all.
    if arguments.text_encoder and arguments.features:
        raise ValueError("give either --text-encoder or --features.")
    if not (arguments.prompt or arguments.features):
        raise ValueError(f"--prompt TEXT is needed: {source} takes captions.")
    if not all(text.strip() for text in arguments.prompt or []):
        raise ValueError("--prompt is empty; give it a caption.")
    return True


def _captions(arguments: argparse.Namespace):
    """A pipeline that takes captions, the captions, and what they are to its call."""
    source, prompts = arguments.pipeline, arguments.prompt
    if not arguments.features:
        pipeline = load_text_pipeline(source, arguments.device, arguments.text_encoder)
        return pipeline, prompts, {"prompt": prompts}
    prompts, condition = saved_features(arguments.features, prompts)
    pipeline = load_text_pipeline(source, arguments.device, None, encoder_needed=False)
    condition["prompt_embeds"] = condition["prompt_embeds"].to(pipeline.transformer.dtype)
    return pipeline, prompts, condition


def class_list(source: str | None) -> list[str]:
    """A line "id  name" for every class of a pipeline, in order of the ids."""
    from .. import CodecladePipeline, bundled

    source = source or bundled()
    check_source(source)
    try:
        if takes_captions(source):
            raise ValueError(f"{source} takes captions, so there are no classes to list.")
        # The index alone holds the names: a list must not download weights.
        names = CodecladePipeline.load_config(source).get("id2label") or {}
    except OSError as error:
        raise ValueError(unknown(source)) from error
    if not names:
        raise ValueError(f"{source} has no class names; give class ids from 0.")
    width = len(max(names, key=len))
    return [f"{label:>{width}}  {names[label]}" for label in sorted(names, key=int)]


def load_pipeline(source: str | None, device: str | None):
    """The pipeline of a folder or Hub id, or the bundled one, on the best device there is."""
    import torch

    from .. import CodecladePipeline, bundled

    source = source or bundled()
    check_source(source)
    device = check_device(device)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        return CodecladePipeline.from_pretrained(source, dtype=dtype).to(device)
    except OSError as error:
        # Of a folder here the error itself says which file is damaged; of the Hub it is long and
        # mostly means that nothing is there under this name.
        if Path(source).is_dir():
            raise
        raise ValueError(unknown(source)) from error


def some_classes(pipeline) -> list[int]:
    """All classes of a pipeline of a few, else eight."""
    from ..data.sheets import shown_classes

    return shown_classes(pipeline.transformer.config.num_classes)


def class_sheet(pipeline, label_ids: list[int], images: list, scale: int):
    """One picture of the images, as many of every class, one class a row."""
    return _sheet(_names(pipeline, label_ids), images, scale)


def _names(pipeline, label_ids: list[int]) -> list[str]:
    """First names of classes; the number of one without a name."""
    return [pipeline.config.id2label.get(str(i), str(i)).split(",")[0] for i in label_ids]


def _sheet(names: list[str], images: list, scale: int):
    """One picture of the images, as many for every name, one name a row."""
    from ..data.sheets import contact_sheet

    count, longest = len(images) // len(names), 40  # letters beside a row
    short = [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
    rows = [(name, images[i * count : (i + 1) * count]) for i, name in enumerate(short)]
    return contact_sheet(rows, scale)
