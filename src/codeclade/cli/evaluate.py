"""`codeclade evaluate`: numbers of a tokenizer or a pipeline, each with its protocol."""

import argparse
import sys
from pathlib import Path

from ..data.atomic import new_file, write_json
from ..data.messages import say
from .arguments import (
    add_verb,
    check_device,
    check_on_hub,
    check_source,
    load_part,
)
from .captions import check_captions, load_text_pipeline, open_clip, takes_captions
from .evaluate_flags import add_flags, check_counts, check_flags, sampling_of, search_points
from .generate import load_pipeline

EXAMPLES = """codeclade evaluate --data zh-plus/tiny-imagenet --quick
  codeclade evaluate runs/generator/pipeline --data photos/ --quick
  codeclade evaluate runs/generator/pipeline --data zh-plus/tiny-imagenet
  codeclade evaluate runs/tokenizer --data photos/ --features lite2 --fetch-lpips
  codeclade evaluate user/my-pipeline --likelihood runs/codes/validation
  accelerate launch -m codeclade evaluate llamagen-l --images 50 --size 256 \\
      --samples-only --npz samples.npz
  codeclade evaluate runs/generator/pipeline --data photos/ \\
      --search guidance_scale=1.0:4.0:0.25 temperature=0.9,1.0
  codeclade evaluate llamagen-t2i-xl-256 --text-encoder google/flan-t5-xl \\
      --prompts PartiPrompts.tsv --clip openai/clip-vit-large-patch14"""


def add_evaluate(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure reconstructions and generated images against photographs",
        EXAMPLES,
    )
    parser.description = (
        "Measure a tokenizer or a pipeline: reconstructions and generated images against "
        "photographs.\nEvery number is printed with its protocol and, where they are known, its "
        "standard error and\nthe floor of photographs against photographs, and goes into "
        "evaluation.json."
    )
    parser.add_argument(
        "source",
        nargs="?",
        help="pipeline or tokenizer, a folder or Hub id; default: the bundled pipeline",
    )
    add_flags(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    from .. import bundled

    # All that can be wrong with the arguments is said before the weights are loaded.
    check_counts(arguments)
    arguments.source = _trained(arguments.source or bundled())
    tokenizer = is_tokenizer(arguments.source)
    if not tokenizer:
        check_source(arguments.source)
    check_flags(arguments, tokenizer)
    if not tokenizer:
        check_captions(arguments, takes_captions(arguments.source))
    # Places are checked, and what is lost is said, before the work.
    out, images = _places(arguments)
    kept = out.is_file() and not (arguments.samples_only or arguments.quick)
    if kept:
        say(f"this replaces the numbers in {out}; --out FILE keeps them", sys.stderr)
    # The one download that a flag asks for.
    if arguments.fetch_lpips:
        from ..metrics.lpips_weights import fetch_lpips_weights

        fetch_lpips_weights()
    if tokenizer:
        measured = _tokenizer(arguments, out)
    elif arguments.likelihood:
        measured = _likelihood(arguments, out)
    else:
        measured = _pipeline(arguments, out, images)
    if measured is not None:  # not of samples alone, nor on processes that only helped to sample
        save(measured, out)


def _trained(source: str) -> str:
    """The tokenizer in a folder of its training, which is then what is measured, or `source`."""
    folder = Path(source)
    if (folder / "config.json").is_file() or (folder / "model_index.json").is_file():
        return source
    inside = folder / "vq_model"
    return str(inside) if (inside / "config.json").is_file() else source


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


def _places(arguments: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """Where numbers and images go, these by kind of file.

    Raises:
        ValueError: a folder that is not there, or a first look in place of an evaluation.
        ImportError: what writes a Parquet file is not here.
    """
    from .. import bundled
    from ..data.records import EvaluationRecord

    # Numbers go beside the weights they are of, but for those of the package and of the Hub.
    folder, whole = Path(arguments.source), EvaluationRecord.FILE
    if not folder.is_dir() or arguments.source == bundled():
        folder = Path()
    out = Path(arguments.out or folder / ("evaluation-quick.json" if arguments.quick else whole))
    if arguments.quick and out.name == whole:
        raise ValueError(f"--out {out} is of whole evaluations; give a first look another name.")
    given = {"npz": arguments.npz, "parquet": arguments.parquet}
    images = {kind: Path(file) for kind, file in given.items() if file}
    if "parquet" in images:
        import datasets  # noqa: F401  # where it is missing, that is said before the work
    for path in (out, *images.values()):
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} for {path.name}; give --out FILE.")
    return out, images


def _lpips():
    """LPIPS with cached weights, or None and a line that says how to get them."""
    from ..metrics.lpips_weights import find_lpips_weights, load_lpips

    if find_lpips_weights("vgg") is None:
        print("LPIPS: not measured, as its weights are not here; --fetch-lpips downloads them")
        return None
    return load_lpips("vgg")


def _say_plan(out: Path | None, quick: bool, *lines) -> None:
    """Print what will be done: photographs, the lines of a plan, and where the numbers go."""
    told = [str(line) for line in lines if line]
    about = " (a first look, no evaluation)" if quick else ""
    told += [f"  write        {out}{about}"] if out else []
    print("\n".join(told))


def _tokenizer(arguments: argparse.Namespace, out: Path):
    from ..components.vq_model import VQModel
    from ..evaluation.feature_sets import open_network
    from ..evaluation.measure import measure_tokenizer
    from ..evaluation.plan import PHOTOGRAPHS, reconstruction_plan
    from ..evaluation.reference import open_photographs

    device, quick = check_device(arguments.device), arguments.quick
    vq_model = load_part(VQModel, arguments.source, "vq_model").to(device).eval()
    # Photographs come at the size that the tokenizer was trained for.
    side = vq_model.config.sample_size
    # A first look has few photographs, and leaves out what depends on how many there are.
    photographs = open_photographs(arguments.data, side, arguments.split)
    photographs = photographs.few(PHOTOGRAPHS) if quick else photographs
    network, lpips = (None, None) if quick else (open_network(arguments.features, device), _lpips())
    lpips = lpips and lpips.to(device)
    size = arguments.size or side
    _say_plan(
        out, quick, photographs, reconstruction_plan(photographs, size, lpips is not None, quick)
    )
    return measure_tokenizer(
        vq_model, photographs, network, lpips, size, arguments.batch_size, quick
    )


def _likelihood(arguments: argparse.Namespace, out: Path):
    from ..data.codes import Codes, codes_folder
    from ..evaluation.measure import dataset_name, measure_likelihood

    codes = Codes(codes_folder(arguments.likelihood))
    pipe = load_pipeline(arguments.source, arguments.device)
    name = dataset_name(codes.source)
    _say_plan(out, False, f"  likelihood   {len(codes):,} images of codes of {name}")
    return measure_likelihood(pipe, codes, name, batch_size=arguments.batch_size)


def _pipeline(arguments: argparse.Namespace, out: Path, files: dict[str, Path]):
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
    folder, quick = out.parent, arguments.quick
    device = str(state.device) if state.num_processes > 1 else arguments.device
    # The pipeline, and settings it does not take, which are refused before anything is sampled.
    sampling = sampling_of(arguments)
    if arguments.prompts:
        pipe = load_text_pipeline(arguments.source, device, arguments.text_encoder)
    else:
        pipe = load_pipeline(arguments.source, device)
    pipe.set_progress_bar_config(disable=True)
    check_settings(pipe, sampling)
    # What measures is opened on the first process alone.
    if not arguments.samples_only and state.is_main_process:
        if arguments.data:
            photographs = photographs_of(arguments, pipe)
            network = open_network(arguments.features, pipe.device)
            lpips = None if quick else _lpips()
        clip = open_clip(arguments.clip, pipe.device) if arguments.clip else None
    # The plan is printed before the work.
    if state.is_main_process:
        lines = [photographs, *_plan(pipe, sampling, photographs, network, lpips, clip, quick)]
        points = len(search_points(arguments.search)) if arguments.search else 0
        lines += [f"  search       {points:,} points, before these images"] if points else []
        lines += [f"  write        {path}" for path in files.values()]
        _say_plan(None if arguments.samples_only else out, quick, *lines)
    judge = None  # on all processes, as each keeps its own images
    if sampling.draws > 1:
        name = arguments.judge or arguments.features
        opened = network if name == arguments.features else None
        judge = open_judge(name, class_names_of(pipe), pipe.device, opened)
    if arguments.search:
        found = (photographs, network, judge)
        sampling = _search(arguments, pipe, sampling, folder, state, found)
    # Every process samples its share into files; the first one goes on alone with all of them.
    beside = next((path.parent for path in files.values()), folder)
    parts = SampleParts(beside, pipe, sampling, judge)
    parts.make(arguments.batch_size, state.process_index, state.num_processes)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    writers = {"npz": parts.write_npz, "parquet": parts.write_parquet}
    for kind, path in files.items():
        writers[kind](path)
        print(f"saved {path} ({len(parts):,} images)")
    measured = None
    if not arguments.samples_only:
        lpips = lpips and lpips.to(pipe.device)
        measured = measure_pipeline(
            pipe, photographs, parts, network, lpips, arguments.batch_size, clip, quick
        )
    # Parts are kept until all is measured, so that an interrupted run goes on with them.
    parts.delete()
    if arguments.write_defaults:
        from ..evaluation.search import write_defaults

        chosen = sampling.settings(pipe)
        write_defaults(Path(arguments.source), chosen)
        print(f"wrote these settings into {arguments.source}/model_index.json: {chosen}")
    return measured


def _plan(pipe, sampling, photographs, network, lpips, clip, quick: bool) -> list[str]:
    """What will be done with a pipeline, a line for each part."""
    from ..evaluation.plan import reconstruction_plan, sampling_plan
    from ..evaluation.sampling import image_side

    lines = [sampling_plan(pipe, sampling, network, clip is not None, quick)]
    if photographs is not None:
        size = sampling.size or image_side(pipe)
        lines.insert(0, reconstruction_plan(photographs, size, lpips is not None, quick))
    return lines


def _search(arguments: argparse.Namespace, pipe, sampling, folder: Path, state, found):
    """The sampling with the settings found, and with the next seed, to confirm them."""
    from dataclasses import replace

    from ..evaluation.search import nearest, save_trials, search

    network = found[1]
    few = 1 if sampling.prompts else 4
    base = replace(sampling, count=arguments.search_images or few)
    points = search_points(arguments.search)
    trials = search(pipe, base, points, folder, arguments.batch_size, state, *found)
    # The nearest of many is nearer by luck too, so other seeds confirm it.
    best, alike = nearest(trials)
    if state.is_main_process:
        path = folder / "search.json"
        save_trials(trials, network.distance_name, path)
        for trial in trials:
            mark = "  nearest" if trial is best else ""
            error = "" if trial.error is None else f" ± {trial.error:.2g}"
            print(f"{trial.settings}: {network.distance_name} {trial.distance:.5g}{error}{mark}")
        if alike:
            print(
                f"{len(alike)} of the other {len(trials) - 1} points are within two standard "
                "errors of the nearest one: more images (--search-images) would tell them apart."
            )
        print(f"saved {path} and {path.with_suffix('.png')}; now confirming with other seeds")
    return replace(sampling, seed=sampling.seed + 1, **best.settings)


def photographs_of(arguments: argparse.Namespace, pipe):
    """The photographs of a pipeline's classes, or all where it takes captions; few of --quick.

    Raises:
        ValueError: a pipeline without class names, or data without these classes.
    """
    from ..evaluation.plan import PHOTOGRAPHS
    from ..evaluation.reference import open_photographs
    from ..evaluation.sampling import class_names_of, image_side

    own = None if arguments.prompts else class_names_of(pipe)
    found = open_photographs(arguments.data, image_side(pipe), arguments.split, own)
    return found.few(PHOTOGRAPHS) if arguments.quick else found


def save(measured, out: Path) -> None:
    """Print every number with its protocol; write records, and single images' values beside."""
    import numpy as np

    from ..evaluation.compare import DEVIATIONS

    for record in measured.records:
        error = f" ± {record.standard_error:.2g}" if record.standard_error is not None else ""
        print(f"{record.metric}: {record.value:.5g}{error}{record.unit} ({record.protocol})")
    write_json(out, [record.to_json() for record in measured.records])
    beside = out.with_name(f"{out.stem}-images.npz")
    arrays = {name: values.numpy() for name, values in measured.per_image.items()}
    arrays |= {DEVIATIONS + name: x.numpy() for name, x in measured.deviations.items()}
    if arrays:
        with new_file(beside) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    print(f"saved {out}" + (f" and {beside}" if arrays else ""))
