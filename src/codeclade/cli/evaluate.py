"""`codeclade evaluate`: numbers of a tokenizer or a pipeline, each with its protocol."""

import argparse
import os
import sys
from pathlib import Path

from ..data.atomic import new_file, write_json
from .arguments import (
    add_verb,
    check_device,
    check_on_hub,
    check_positive,
    check_source,
    load_part,
    sampling_arguments,
    sampling_settings,
)
from .captions import FLAGS, check_captions, load_text_pipeline, open_clip, takes_captions
from .generate import load_pipeline

EXAMPLES = """codeclade evaluate runs/generator/pipeline --data zh-plus/tiny-imagenet
  codeclade evaluate runs/tokenizer --data photos/ --features lite2 --fetch-lpips
  codeclade evaluate user/my-pipeline --likelihood runs/codes/validation
  accelerate launch -m codeclade evaluate llamagen-l --images 50 --size 256 \\
      --samples-only --npz samples.npz
  codeclade evaluate runs/generator/pipeline --data photos/ \\
      --search guidance_scale=1.0:4.0:0.25 temperature=0.9,1.0
  codeclade evaluate llamagen-t2i-xl-256 --text-encoder google/flan-t5-xl \\
      --prompts PartiPrompts.tsv --clip openai/clip-vit-large-patch14"""
ONLY_SAMPLING = ("images", "classes", "guidance_scale", "guidance_schedule", "temperature",
                 "top_k", "top_p", "npz", "search", "draws", "judge", *FLAGS)  # fmt: skip


def add_evaluate(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure reconstructions and generated images against photographs",
        EXAMPLES,
    )
    parser.add_argument("source", help="pipeline or tokenizer, a folder or Hub id")
    parser.add_argument("--data", help="image or parquet folder, or Hub dataset")
    parser.add_argument(
        "--split", help='of the data, or "all"; default: validation or test, else all of it'
    )
    parser.add_argument(
        "--features",
        default="lite0",
        metavar="NETWORK",
        help="lite0, lite2, vgg16, dinov2 or inception=FILE; default lite0",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="a class or prompt; default 16, of prompts 1"
    )
    parser.add_argument("--classes", help="balanced or random; default balanced")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument(
        "--guidance-scale", metavar="S", help="a number, or two with a comma; default: pipeline's"
    )
    parser.add_argument(
        "--guidance-schedule",
        metavar="NAME",
        help="as in cosine_power:power=2.75; default: the pipeline's",
    )
    sampling_arguments(parser)
    parser.add_argument(
        "--draws", type=int, metavar="N", help="draw N images for each and keep the best of them"
    )
    parser.add_argument(
        "--judge", metavar="NETWORK", help="what tells the best: lite0 or lite2; default --features"
    )
    parser.add_argument("--prompts", metavar="FILE", help="captions: .txt, Parti .tsv, COCO .json")
    parser.add_argument("--clip", metavar="MODEL", help="measure the CLIP score with this CLIP")
    parser.add_argument("--text-encoder", metavar="MODEL", help="T5 of a pipeline without one")
    parser.add_argument("--size", type=int, metavar="S", help="pixels a side at which to measure")
    parser.add_argument(
        "--plain-resize",
        action="store_true",
        help="bring generated images to --size without antialiasing, as LlamaGen's script does",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="default 32")
    parser.add_argument("--out", metavar="FILE", help="default: evaluation.json in the folder")
    parser.add_argument("--npz", metavar="FILE", help="also keep the images for ADM's evaluator")
    parser.add_argument(
        "--samples-only", action="store_true", help="write --npz and measure nothing"
    )
    parser.add_argument(
        "--likelihood", metavar="CODES", help="measure nats per position of these code shards alone"
    )
    parser.add_argument(
        "--fetch-lpips", action="store_true", help="download the weights of LPIPS once (64 MB)"
    )
    parser.add_argument(
        "--search",
        nargs="+",
        metavar="KEY=VALUES",
        help="find settings first, as in guidance_scale=1:4:0.25 temperature=0.9,1.0; what is "
        "measured is the nearest, with the next seed",
    )
    parser.add_argument(
        "--search-images", type=int, metavar="N", help="of every point; default 4 a class"
    )
    parser.add_argument(
        "--write-defaults", action="store_true", help="make the settings found the pipeline's own"
    )
    parser.add_argument("--device", help="default: cuda where available, else cpu")


def _evaluate(arguments: argparse.Namespace) -> None:
    # All that can be wrong with the arguments is said before the weights are loaded.
    check_positive(
        images=arguments.images,
        batch_size=arguments.batch_size,
        size=arguments.size,
        search_images=arguments.search_images,
        draws=arguments.draws,
    )
    tokenizer = is_tokenizer(arguments.source)
    if not tokenizer:
        check_source(arguments.source)
    _check_modes(arguments, tokenizer)
    if not tokenizer:
        check_captions(arguments, takes_captions(arguments.source))
    out, npz = _places(arguments)
    # Of several processes, which torchrun and accelerate number here, one is enough to say it.
    if out.is_file() and not arguments.samples_only and os.environ.get("RANK", "0") == "0":
        print(f"this replaces the numbers in {out}; --out FILE keeps them", file=sys.stderr)
    if arguments.fetch_lpips:
        from ..metrics.lpips_weights import fetch_lpips_weights

        fetch_lpips_weights()
    if tokenizer:
        measured = _tokenizer(arguments)
    elif arguments.likelihood:
        measured = _likelihood(arguments)
    else:
        measured = _pipeline(arguments, out.parent, npz)
    if measured is not None:  # not of samples alone, nor on processes that only helped to sample
        save(measured, out)


def is_tokenizer(source: str) -> bool:
    """Whether this is a tokenizer: a folder or, on the Hub, a repository that is no pipeline.

    Raises:
        ValueError: neither a folder here nor a Hub id.
    """
    from ..components.weight_files import read_json

    folder = Path(source)
    if folder.is_dir():
        config = folder / "config.json"
        return config.is_file() and read_json(config).get("_class_name") == "VQModel"
    check_on_hub(source)
    from ..components.vq_model import VQModel

    try:
        return VQModel.load_config(source).get("_class_name") == "VQModel"
    except OSError:  # of a pipeline, which has no config.json; or not there at all
        return False


def _check_modes(arguments: argparse.Namespace, tokenizer: bool) -> None:
    """Raise a ValueError for flags that are missing or do nothing together."""
    from ..evaluation.feature_sets import check_network
    from ..evaluation.rejection import check_judge

    given = [name for name in ONLY_SAMPLING if getattr(arguments, name) is not None]
    alone = tokenizer or arguments.likelihood
    given += [name for name in ("samples_only", "plain_resize") if getattr(arguments, name)]
    if alone and given:
        flag = given[0].replace("_", "-")
        what = "a tokenizer" if tokenizer else "--likelihood"
        raise ValueError(f"--{flag} is of generated images, but {what} generates none.")
    if tokenizer and arguments.likelihood:
        raise ValueError(f"--likelihood needs a pipeline; {arguments.source} is a tokenizer.")
    if (arguments.search_images or arguments.write_defaults) and not arguments.search:
        raise ValueError("--search-images and --write-defaults need --search KEY=VALUES.")
    if arguments.search and arguments.samples_only:
        raise ValueError("--search measures images; it does not go with --samples-only.")
    if arguments.write_defaults and not Path(arguments.source).is_dir():
        raise ValueError(f"--write-defaults needs a folder; {arguments.source} is none.")
    if arguments.write_defaults and isinstance(parse_scale(arguments.guidance_scale), tuple):
        raise ValueError("--write-defaults takes one --guidance-scale, not a pair.")
    search_points(arguments.search)
    if arguments.plain_resize and not arguments.size:
        raise ValueError("--plain-resize needs --size S.")
    if arguments.samples_only and not arguments.npz:
        raise ValueError("--samples-only needs --npz FILE to write to.")
    if not (arguments.likelihood or arguments.samples_only):
        if not (arguments.data or arguments.clip):
            raise ValueError("--data is needed: photographs to measure against.")
        if arguments.search and not arguments.data:
            raise ValueError("--search needs --data: photographs to measure against.")
        check_network(arguments.features)
    if (arguments.draws or 1) > 1:
        check_judge(arguments.judge or arguments.features)
    elif arguments.judge:
        raise ValueError("--judge chooses among several; it needs --draws 2 or more.")


def _places(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Where numbers and images go.

    Raises:
        ValueError: a folder that is not there.
    """
    folder = Path(arguments.source)
    out = Path(arguments.out or (folder if folder.is_dir() else Path()) / "evaluation.json")
    npz = Path(arguments.npz) if arguments.npz else None
    for path in filter(None, (out, npz)):
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} for {path.name}; give --out FILE.")
    return out, npz


def _lpips():
    """LPIPS with cached weights, or None and a line that says how to get them."""
    from ..metrics.lpips_weights import find_lpips_weights, load_lpips

    if find_lpips_weights("vgg") is None:
        print("LPIPS: not measured, as its weights are not here; --fetch-lpips downloads them")
        return None
    return load_lpips("vgg")


def _tokenizer(arguments: argparse.Namespace):
    from ..components.vq_model import VQModel
    from ..evaluation.feature_sets import open_network
    from ..evaluation.measure import measure_tokenizer
    from ..evaluation.reference import open_photographs

    device = check_device(arguments.device)
    vq_model = load_part(VQModel, arguments.source, "vq_model").to(device).eval()
    photographs = open_photographs(arguments.data, vq_model.config.sample_size, arguments.split)
    print(photographs)
    network, lpips = open_network(arguments.features, device), _lpips()
    lpips = lpips and lpips.to(device)
    return measure_tokenizer(
        vq_model, photographs, network, lpips, arguments.size, arguments.batch_size
    )


def _likelihood(arguments: argparse.Namespace):
    from ..data.codes import Codes, codes_folder
    from ..evaluation.measure import dataset_name, measure_likelihood

    codes = Codes(codes_folder(arguments.likelihood))
    pipe = load_pipeline(arguments.source, arguments.device)
    name = dataset_name(codes.source)
    return measure_likelihood(pipe, codes, name, batch_size=arguments.batch_size)


def _pipeline(arguments: argparse.Namespace, folder: Path, npz: Path | None):
    """Sample on all processes; measure on the first one, so that no number depends on how many."""
    import torch
    from accelerate import PartialState

    from ..evaluation.feature_sets import open_network
    from ..evaluation.measure import measure_pipeline
    from ..evaluation.rejection import open_judge
    from ..evaluation.sampling import SampleParts, check_settings, class_names_of

    # Without CUDA accelerate joins processes only where it is told that they run on the CPU.
    on_cpu = arguments.device == "cpu" or not torch.cuda.is_available()
    state, photographs, network, lpips, clip = PartialState(cpu=on_cpu), None, None, None, None
    device = str(state.device) if state.num_processes > 1 else arguments.device
    sampling = sampling_of(arguments)
    if arguments.prompts:
        pipe = load_text_pipeline(arguments.source, device, arguments.text_encoder)
    else:
        pipe = load_pipeline(arguments.source, device)
    pipe.set_progress_bar_config(disable=True)
    check_settings(pipe, sampling)
    if not arguments.samples_only and state.is_main_process:
        if arguments.data:
            photographs = photographs_of(arguments, pipe)
            network, lpips = open_network(arguments.features, pipe.device), _lpips()
        clip = open_clip(arguments.clip, pipe.device) if arguments.clip else None
    judge = None  # on all processes, as each keeps its own images
    if sampling.draws > 1:
        name = arguments.judge or arguments.features
        opened = network if name == arguments.features else None
        judge = open_judge(name, class_names_of(pipe), pipe.device, opened)
    if arguments.search:
        found = (photographs, network, judge)
        sampling = _search(arguments, pipe, sampling, folder, state, found)
    parts = SampleParts(npz.parent if npz else folder, pipe, sampling, judge)
    parts.make(arguments.batch_size, state.process_index, state.num_processes)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    if npz:
        parts.write_npz(npz)
        print(f"saved {npz} ({len(parts):,} images)")
    measured = None
    if not arguments.samples_only:
        lpips = lpips and lpips.to(pipe.device)
        measured = measure_pipeline(
            pipe, photographs, parts, network, lpips, arguments.batch_size, clip
        )
    parts.delete()
    if arguments.write_defaults:
        from ..evaluation.search import write_defaults

        chosen = sampling.settings(pipe)
        write_defaults(Path(arguments.source), chosen)
        print(f"wrote these settings into {arguments.source}/model_index.json: {chosen}")
    return measured


def _search(arguments: argparse.Namespace, pipe, sampling, folder: Path, state, found):
    """The sampling with the settings found, and with the next seed, to confirm them."""
    from dataclasses import replace

    from ..evaluation.search import save_trials, search

    network = found[1]
    few = 1 if sampling.prompts else 4
    base = replace(sampling, count=arguments.search_images or few)
    points = search_points(arguments.search)
    trials = search(pipe, base, points, folder, arguments.batch_size, state, *found)
    best = min(trials, key=lambda trial: trial.distance)
    if state.is_main_process:
        path = folder / "search.json"
        save_trials(trials, network.distance_name, path)
        for trial in trials:
            mark = "  nearest" if trial is best else ""
            print(f"{trial.settings}: {network.distance_name} {trial.distance:.5g}{mark}")
        print(f"saved {path} and {path.with_suffix('.png')}; now confirming with other seeds")
    return replace(sampling, seed=sampling.seed + 1, **best.settings)


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


def photographs_of(arguments: argparse.Namespace, pipe):
    """The photographs of a pipeline's classes, or all where it takes captions, announced.

    Raises:
        ValueError: a pipeline without class names, or data without these classes.
    """
    from ..evaluation.reference import open_photographs
    from ..evaluation.sampling import class_names_of, image_side

    own = None if arguments.prompts else class_names_of(pipe)
    found = open_photographs(arguments.data, image_side(pipe), arguments.split, own)
    print(found)
    return found


def sampling_of(arguments: argparse.Namespace):
    """How images are sampled.

    Raises:
        ValueError: a flag with a value it cannot have.
    """
    from ..data.prompts import read_prompts
    from ..evaluation.sampling import Sampling

    prompts = read_prompts(arguments.prompts) if arguments.prompts else None
    return Sampling(
        count=arguments.images or (1 if prompts else 16),
        seed=arguments.seed,
        classes=arguments.classes or "balanced",
        size=arguments.size,
        plain_resize=arguments.plain_resize,
        guidance_scale=parse_scale(arguments.guidance_scale),
        guidance_schedule=parse_schedule(arguments.guidance_schedule),
        **sampling_settings(arguments),
        draws=arguments.draws or 1,
        prompts=prompts,
    )


def parse_scale(text: str | None) -> float | tuple[float, ...] | None:
    """ "2.5" as a number, "2.5,4" as a pair, one for each stage.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2):
        raise ValueError(f"--guidance-scale {text} must be a number, or two with a comma.")
    return numbers if len(numbers) == 2 else numbers[0]


def parse_schedule(text: str | None) -> str | dict | None:
    """ "name" or "name:key=number,key=number" as the pipeline takes a schedule.

    Raises:
        ValueError: a parameter that is no number.
    """
    if text is None or ":" not in text:
        return text
    name, _, rest = text.partition(":")
    found: dict = {"name": name}
    for pair in rest.split(","):
        key, _, value = pair.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError:
            raise ValueError(
                f"--guidance-schedule {text}: {pair!r} must be key=number, "
                "as in interval:last_step=9."
            ) from None
    return found


def save(measured, out: Path) -> None:
    """Print every number with its protocol; write records, and single images' values beside."""
    import numpy as np

    for record in measured.records:
        error = f" ± {record.standard_error:.2g}" if record.standard_error is not None else ""
        print(f"{record.metric}: {record.value:.5g}{error}{record.unit} ({record.protocol})")
    write_json(out, [record.to_json() for record in measured.records])
    beside = out.with_name(f"{out.stem}-images.npz")
    if measured.per_image:
        arrays = {name: values.numpy() for name, values in measured.per_image.items()}
        with new_file(beside) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    print(f"saved {out}" + (f" and {beside}" if measured.per_image else ""))
