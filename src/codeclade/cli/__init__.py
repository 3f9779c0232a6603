"""The `codeclade` command. A verb imports what it needs when it runs, so `--help` is instant."""

import argparse
import os
import sys

from safetensors import SafetensorError

from .. import __version__
from ..data.extras import missing_extra
from .arguments import VerbParser
from .bench import add_bench
from .cluster import add_cluster
from .compare import add_compare
from .convert import add_convert
from .demo import add_demo
from .evaluate import add_evaluate
from .generate import add_generate
from .push import add_push
from .recipes import add_recipes
from .train import add_training

EXAMPLES = """examples:
  codeclade generate "school bus" --out bus.png --seed 7 --guidance-scale 3
  codeclade recipes
  codeclade train-tokenizer --recipe small --out runs/tokenizer data=photos/
  codeclade encode --recipe small --tokenizer runs/tokenizer --out runs/codes data=photos/
  codeclade cluster runs/tokenizer --recipe small --out runs/cluster_map
  codeclade train-generator --recipe small --tokenizer runs/tokenizer \\
      --cluster-map runs/cluster_map --codes runs/codes --out runs/generator
  codeclade evaluate runs/generator/pipeline --data zh-plus/tiny-imagenet
  codeclade compare a/evaluation.json b/evaluation.json
  codeclade bench llamagen:b-256
  codeclade convert llamagen --vq vq_ds16_c2i.pt --gpt c2i_L_384.pt --image-size 384 \\
      --out llamagen-l-384
  codeclade push llamagen-l-384 user/llamagen-l-384 --dry-run
  codeclade demo --pipeline llamagen-l-384
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; bad input is answered with one sentence and exit code 2."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.verb is None:
        print(f"{parser.format_help()}\ncodeclade: give one of the verbs above.", file=sys.stderr)
        return 2
    try:
        arguments.run(arguments)
    # Input and machine are answered with a sentence. Any other exception is a mistake in this
    # package and keeps its traceback, which a report needs. The writer of weights says that a disk
    # is full in an error of its own.
    except (ValueError, OSError, MemoryError, ImportError, SafetensorError) as error:
        if os.environ.get("CODECLADE_TRACEBACK"):
            raise
        words = " ".join(str(error).split()) + missing_extra(error)
        print(f"codeclade {arguments.verb}: {words}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        words = f"stopped; {stopped}" if str(stopped) else "stopped."
        print(f"codeclade {arguments.verb}: {words}", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="codeclade",
        description="Clustered codebooks for autoregressive image generation.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"codeclade {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=VerbParser)
    # This is the order in `--help`: first what works without training anything.
    add_generate(verbs)
    add_recipes(verbs)
    add_cluster(verbs)
    add_training(verbs)
    add_evaluate(verbs)
    add_compare(verbs)
    add_bench(verbs)
    add_convert(verbs)
    add_push(verbs)
    add_demo(verbs)
    return parser
