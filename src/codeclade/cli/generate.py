"""`codeclade generate`: images of classes, saved as a picture or a sheet."""

import argparse
from pathlib import Path

from .arguments import (
    add_verb,
    check_device,
    check_positive,
    check_source,
    sampling_arguments,
    sampling_settings,
    unknown,
)


def add_generate(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "generate",
        _generate,
        "generate images of classes and save them",
        'codeclade generate "golden retriever" --out dog.png --seed 7 --guidance-scale 2',
    )
    parser.add_argument(
        "labels",
        nargs="*",
        metavar="CLASS",
        help="class names or ids; none: a sheet of eight classes",
    )
    parser.add_argument("--list", action="store_true", help="print the class names and stop")
    parser.add_argument("--pipeline", help="folder or Hub id; default: the bundled pipeline")
    parser.add_argument("--out", default="image.png", metavar="FILE", help="default: image.png")
    parser.add_argument(
        "--images", type=int, metavar="N", help="images a class; default 1, sheet 8"
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument(
        "--guidance-scale", type=float, metavar="S", help="active above 1; default: the pipeline's"
    )
    sampling_arguments(parser)
    parser.add_argument(
        "--refine", choices=("refiner", "member"), help="how clusters become ids; default: refiner"
    )
    parser.add_argument("--refiner-temperature", type=float, metavar="T", help="0 is arg-max")
    parser.add_argument("--refiner-top-k", type=int, metavar="K", help="0 keeps all")
    parser.add_argument("--refiner-guidance-scale", type=float, metavar="S", help="active above 1")
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
    import torch

    # Without classes the images show a spread of what the pipeline knows.
    pipeline = load_pipeline(arguments.pipeline, arguments.device)
    labels = [int(label) if label.isdecimal() else label for label in arguments.labels]
    count = arguments.images or (1 if labels else 8)
    label_ids = pipeline.get_label_ids(labels or some_classes(pipeline))
    refining = {
        "temperature": arguments.refiner_temperature,
        "top_k": arguments.refiner_top_k,
        "guidance_scale": arguments.refiner_guidance_scale,
    }
    # A generator of the CPU: the seed then gives the same draws on every device.
    images = pipeline(
        label_ids,
        guidance_scale=arguments.guidance_scale,
        **sampling_settings(arguments),
        num_images_per_prompt=count,
        refine=arguments.refine,
        refiner_settings={name: given for name, given in refining.items() if given is not None},
        generator=torch.Generator().manual_seed(arguments.seed),
    ).images
    # One image is saved pixel for pixel; several need captions and a sheet.
    picture = images[0]
    if len(images) > 1:
        picture = class_sheet(pipeline, label_ids, images, arguments.scale)
    picture.save(out)
    print(f"saved {out} ({picture.width}x{picture.height})")


def class_list(source: str | None) -> list[str]:
    """A line "id  name" for every class of a pipeline, in order of the ids."""
    from .. import CodecladePipeline, bundled

    source = source or bundled()
    check_source(source)
    try:
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
    """Eight classes, evenly spread."""
    known = pipeline.transformer.config.num_classes
    return list(range(0, known, max(1, known // 8)))[:8]


def class_sheet(pipeline, label_ids: list[int], images: list, scale: int):
    """One picture of the images, as many of every class, one class a row."""
    from ..data.sheets import contact_sheet

    count = len(images) // len(label_ids)
    names = [pipeline.config.id2label.get(str(i), str(i)).split(",")[0] for i in label_ids]
    rows = [(name, images[i * count : (i + 1) * count]) for i, name in enumerate(names)]
    return contact_sheet(rows, scale)
