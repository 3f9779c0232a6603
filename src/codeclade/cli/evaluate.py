"""`codeclade evaluate`: numbers of a pipeline, each with its protocol."""

import argparse
from pathlib import Path

from ..data.atomic import write_json
from .arguments import add_verb, check_positive, check_source
from .generate import load_pipeline

EXAMPLES = """codeclade evaluate runs/generator/pipeline --data zh-plus/tiny-imagenet
  codeclade evaluate user/my-pipeline --data photos/ --images 50 --out evaluation.json
  codeclade evaluate llamagen-l --data ILSVRC/imagenet-1k --images 50 --npz samples.npz"""


def add_evaluate(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure reconstructions and generated images against photographs",
        EXAMPLES,
    )
    parser.add_argument("pipeline", help="folder or Hub id; a folder gets evaluation.json")
    parser.add_argument("--data", required=True, help="image or parquet folder, or Hub dataset")
    parser.add_argument("--images", type=int, default=16, metavar="N", help="a class; default 16")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--guidance-scale", type=float, metavar="S", help="default: the pipeline's")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="default 32")
    parser.add_argument("--out", metavar="FILE", help="default: evaluation.json in the folder")
    parser.add_argument("--npz", metavar="FILE", help="also keep the images for ADM's evaluator")
    parser.add_argument("--device", help="default: cuda where available, else cpu")


def _evaluate(arguments: argparse.Namespace) -> None:
    from ..evaluation.generation import Protocol, evaluate

    # All that can be wrong with the arguments is said before the weights are loaded.
    check_positive(images=arguments.images, batch_size=arguments.batch_size)
    check_source(arguments.pipeline)
    folder = Path(arguments.pipeline)
    out = Path(arguments.out or (folder if folder.is_dir() else Path()) / "evaluation.json")
    npz = Path(arguments.npz) if arguments.npz else None
    for path in filter(None, (out, npz)):
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} for {path.name}; give --out FILE.")

    pipe = load_pipeline(arguments.pipeline, arguments.device)
    pipe.set_progress_bar_config(disable=True)
    protocol = Protocol(
        arguments.data,
        arguments.images,
        arguments.seed,
        arguments.guidance_scale,
        arguments.batch_size,
    )
    results = evaluate(pipe, protocol, npz)

    # Every number is said with its protocol, and what is missing is said too.
    for result in results:
        print(f"{result['metric']}: {result['value']}{result['unit']} ({result['protocol']})")
    if not any(result["metric"] == "Class accuracy" for result in results):
        print("Class accuracy: not measured, as some classes are none of ImageNet's")
    write_json(out, results)
    print(f"saved {out}" + (f" and {npz}" if npz else ""))
