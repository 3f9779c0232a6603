"""`codeclade convert`: published checkpoint files to a pipeline folder, and back."""

import argparse

from .arguments import add_verb


def add_convert(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "convert",
        _convert,
        "turn published checkpoint files into a pipeline folder, and back",
        "codeclade convert llamagen --vq vq_ds16_c2i.pt --gpt c2i_L_384.pt --image-size 384 "
        "--out llamagen-l-384",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, help in (
        ("llamagen", "LlamaGen, class- or text-conditional"),
        ("dcpe", "DCPE: a generator over clusters and its cluster index"),
        ("iar", "IAR: a generator over a re-ordered codebook"),
        ("iar2", "IAR2: a generator over pairs of codes"),
    ):
        _add_convert_kind(kinds.add_parser(kind, help=help, description=help + "."), kind)
    back = kinds.add_parser("to-llamagen", help="a pipeline folder, to the published key names")
    back.add_argument("pipeline", metavar="PIPELINE", help="pipeline folder")
    back.add_argument("--pt", action="store_true", help="torch files instead of .safetensors")
    for kind in kinds.choices.values():
        kind.add_argument("--out", required=True, metavar="DIR", help="new folder")
        kind.add_argument("--overwrite", action="store_true", help="replace that folder")


def _add_convert_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("--vq", required=True, metavar="FILE", help="tokenizer")
    parser.add_argument("--gpt", metavar="FILE", help="generator; none: the tokenizer alone")
    if kind == "dcpe":
        parser.add_argument("--idx-to-cluster", metavar="FILE", help="cluster of every id")
        parser.add_argument("--refiner", metavar="FILE", help="refine net; none: uniform members")
    if kind == "iar":
        parser.add_argument(
            "--mapping",
            metavar="FILE",
            help="old id to new id, where --vq is LlamaGen's tokenizer; none: --vq is re-ordered",
        )
    size = {"llamagen": None, "dcpe": 256, "iar": 384, "iar2": 384}[kind]
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        default=size,
        help="side the generator was trained for; the files do not say"
        + (f"; default {size}" if size else ", so give it with --gpt"),
    )
    parser.add_argument(
        "--heads", type=int, metavar="H", help="attention heads, for a width nobody published"
    )


def _convert(arguments: argparse.Namespace) -> None:
    from ..checkpoints import conversion as published
    from ..data.atomic import new_folder

    given = vars(arguments)
    if arguments.kind == "to-llamagen":
        with new_folder(arguments.out, arguments.overwrite) as folder:
            names = published.to_published(arguments.pipeline, folder, arguments.pt)
        print(f"saved {', '.join(names)} in {arguments.out}")
        return
    names = ("vq", "gpt", "idx_to_cluster", "refiner", "mapping", "image_size", "heads")
    files = {name: given[name] for name in names if name in given}
    published.write(arguments.out, arguments.overwrite, arguments.kind, files)
    print(f"saved {arguments.out}; load it with from_pretrained")
