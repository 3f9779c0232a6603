"""The flags of `codeclade evaluate`: what they are, what goes together, and what they mean."""

import argparse
from pathlib import Path

from .arguments import VerbParser, check_positive
from .captions import FLAGS
from .sampling_flags import parse_scale, parse_schedule, sampling_arguments, sampling_settings

ONLY_SAMPLING = ("images", "classes", "guidance_scale", "guidance_schedule", "temperature",
                 "top_k", "top_p", "npz", "parquet", "search", "draws", "judge",
                 *FLAGS)  # fmt: skip
NOT_QUICK = ("images", "draws", "npz", "parquet", "samples_only", "likelihood", "search",
             "fetch_lpips")  # fmt: skip


def add_flags(parser: VerbParser) -> None:
    """Add all flags, in groups as help shows them."""
    measured = parser.add_argument_group("what is measured, and against what")
    measured.add_argument("--data", help="photographs: image or parquet folder, or Hub dataset")
    measured.add_argument(
        "--split", help='of the data, or "all"; default: validation or test, else all of it'
    )
    measured.add_argument(
        "--features",
        default="lite0",
        metavar="NETWORK",
        help="whose features are compared: lite0, lite2, vgg16, dinov2 (or dinov2=MODEL, a folder "
        "or Hub id), torchscript=FILE or inception=FILE, which alone gives FID, with the published "
        "weights; default lite0",
    )
    measured.add_argument(
        "--fetch-lpips", action="store_true", help="download the weights of LPIPS once (64 MB)"
    )
    measured.add_argument("--size", type=int, metavar="S", help="pixels a side at which to measure")
    measured.add_argument(
        "--plain-resize",
        action="store_true",
        help="bring generated images to --size without antialiasing, as LlamaGen's script does",
    )
    measured.add_argument(
        "--quick",
        action="store_true",
        help="a first look in a minute or two: 128 photographs, 64 images, KID and class accuracy; "
        "written to evaluation-quick.json, which no card shows",
    )
    measured.add_argument(
        "--likelihood",
        metavar="CODES",
        help="instead of images: nats per position of these code shards",
    )
    _sampling_flags(parser.add_argument_group("generated images"))
    _search_flags(parser.add_argument_group("settings that fit best"))
    captions = parser.add_argument_group("pipelines of captions")
    captions.add_argument("--prompts", metavar="FILE", help=".txt, Parti .tsv, COCO .json")
    captions.add_argument("--clip", metavar="MODEL", help="measure the CLIP score with this CLIP")
    captions.add_argument("--text-encoder", metavar="MODEL", help="T5 of a pipeline without one")
    output = parser.add_argument_group("files and device")
    output.add_argument(
        "--out", metavar="FILE", help="default: evaluation.json in the folder of what is measured"
    )
    output.add_argument("--npz", metavar="FILE", help="also keep the images for ADM's evaluator")
    output.add_argument(
        "--parquet",
        metavar="FILE",
        help="also keep the images with their classes or prompts, as load_dataset reads them",
    )
    output.add_argument(
        "--samples-only",
        action="store_true",
        help="write --npz or --parquet and measure nothing",
    )
    output.add_argument("--batch-size", type=int, default=32, metavar="B", help="default 32")
    output.add_argument("--device", help="default: cuda where available, else cpu")


def _sampling_flags(group) -> None:
    group.add_argument(
        "--images", type=int, metavar="N", help="of every class or prompt; default 16, of prompts 1"
    )
    group.add_argument(
        "--classes",
        metavar="HOW",
        help="balanced, N of every class, or random; default balanced",
    )
    group.add_argument("--seed", type=int, default=0, help="default 0")
    sampling_arguments(group)
    group.add_argument(
        "--draws", type=int, metavar="N", help="draw N images for each and keep the best of them"
    )
    group.add_argument(
        "--judge", metavar="NETWORK", help="what tells the best: lite0 or lite2; default --features"
    )


def _search_flags(group) -> None:
    group.add_argument(
        "--search",
        nargs="+",
        metavar="KEY=VALUES",
        help="find settings first, as in guidance_scale=1:4:0.25 temperature=0.9,1.0; what is "
        "measured is the nearest, with the next seed",
    )
    group.add_argument(
        "--search-images", type=int, metavar="N", help="of every point; default 4 a class"
    )
    group.add_argument(
        "--write-defaults", action="store_true", help="make the settings found the pipeline's own"
    )


def check_counts(arguments: argparse.Namespace) -> None:
    """Raise a ValueError that names the first count below 1."""
    check_positive(
        images=arguments.images,
        batch_size=arguments.batch_size,
        size=arguments.size,
        search_images=arguments.search_images,
        draws=arguments.draws,
    )


def check_flags(arguments: argparse.Namespace, tokenizer: bool) -> None:
    """Raise a ValueError for flags that are missing or do nothing together."""
    from ..evaluation.feature_sets import check_network
    from ..evaluation.rejection import check_judge

    # Flags of generated images, where none are generated.
    given = [name for name in ONLY_SAMPLING if getattr(arguments, name) is not None]
    alone = tokenizer or arguments.likelihood
    given += [name for name in ("samples_only", "plain_resize") if getattr(arguments, name)]
    if alone and given:
        flag = given[0].replace("_", "-")
        what = "a tokenizer" if tokenizer else "--likelihood"
        raise ValueError(f"--{flag} is of generated images, but {what} generates none.")
    if tokenizer and arguments.likelihood:
        raise ValueError(f"--likelihood needs a pipeline; {arguments.source} is a tokenizer.")
    # A first look takes no flags that ask for many images.
    given = [name for name in NOT_QUICK if getattr(arguments, name)]
    if arguments.quick and given:
        flag = given[0].replace("_", "-")
        raise ValueError(f"--{flag} does not go with --quick, which looks at few images.")
    # What belongs to a search, and where its result can be written.
    if (arguments.search_images or arguments.write_defaults) and not arguments.search:
        raise ValueError("--search-images and --write-defaults need --search KEY=VALUES.")
    if arguments.search and arguments.samples_only:
        raise ValueError("--search measures images; it does not go with --samples-only.")
    if arguments.write_defaults and not Path(arguments.source).is_dir():
        raise ValueError(f"--write-defaults needs a folder; {arguments.source} is none.")
    if arguments.write_defaults and isinstance(parse_scale(arguments.guidance_scale), tuple):
        raise ValueError("--write-defaults takes one --guidance-scale, not a pair.")
    search_points(arguments.search)
    # Flags that need another one to mean anything.
    if arguments.plain_resize and not arguments.size:
        raise ValueError("--plain-resize needs --size S.")
    if arguments.samples_only and not (arguments.npz or arguments.parquet):
        raise ValueError("--samples-only needs --npz FILE or --parquet FILE to write to.")
    if not (arguments.likelihood or arguments.samples_only):
        if not (arguments.data or arguments.clip):
            raise ValueError("--data is needed: photographs to measure against.")
        if arguments.search and not arguments.data:
            raise ValueError("--search needs --data: photographs to measure against.")
        check_network(arguments.features)
    # Several draws need somebody to choose among them.
    if (arguments.draws or 1) > 1:
        check_judge(arguments.judge or arguments.features)
    elif arguments.judge:
        raise ValueError("--judge chooses among several; it needs --draws 2 or more.")


def sampling_of(arguments: argparse.Namespace):
    """How images are sampled.

    Raises:
        ValueError: a flag with a value it cannot have.
    """
    from ..data.prompts import read_prompts
    from ..evaluation.plan import IMAGES
    from ..evaluation.sampling import Sampling

    prompts = read_prompts(arguments.prompts) if arguments.prompts else None
    return Sampling(
        count=arguments.images or (1 if prompts else 16),
        seed=arguments.seed,
        classes=arguments.classes or "balanced",
        size=arguments.size,
        plain_resize=arguments.plain_resize,
        **sampling_settings(arguments),
        draws=arguments.draws or 1,
        prompts=prompts,
        limit=IMAGES if arguments.quick else None,
    )


def search_points(words: list[str] | None) -> list[dict]:
    """Every combination of "key=values" words; a key given again adds values.

    Raises:
        ValueError: an unknown key, or values that cannot be read.
    """
    from ..evaluation.search import NUMBERS, SCHEDULE, grid, number_values

    values: dict[str, list] = {}
    for word in words or []:
        name, _, text = word.partition("=")
        if name == SCHEDULE:
            found = [parse_schedule(text)]
        elif name in NUMBERS:
            found = number_values(name, text)
        else:
            known = ", ".join((*NUMBERS, SCHEDULE))
            raise ValueError(f"--search {word} must be key=values, with a key of {known}.")
        values.setdefault(name, []).extend(found)
    return grid(values)
