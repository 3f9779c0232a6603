"""`codeclade convert`: published checkpoint files to a pipeline folder, and back."""

import argparse

from ..checkpoints.registry import FAMILIES, Entry
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
    for name, entry in FAMILIES.items():
        _add_family(kinds.add_parser(name, help=entry.help, description=entry.help + "."), entry)
    back = kinds.add_parser("to-llamagen", help="a pipeline folder, to the published key names")
    back.add_argument("pipeline", metavar="PIPELINE", help="pipeline folder")
    back.add_argument("--pt", action="store_true", help="torch files instead of .safetensors")
    # After all kinds are declared, the way back included: every one of them makes a folder.
    for kind in kinds.choices.values():
        kind.add_argument("--out", required=True, metavar="DIR", help="new folder")
        kind.add_argument("--overwrite", action="store_true", help="replace that folder")


def _add_family(parser: argparse.ArgumentParser, entry: Entry) -> None:
    parser.add_argument("--vq", required=True, metavar="FILE", help="tokenizer")
    parser.add_argument("--gpt", metavar="FILE", help="generator; none: the tokenizer alone")
    for flag, help in entry.files.items():
        parser.add_argument(f"--{flag}", metavar="FILE", help=help)
    # A family published in one size has it as default; of several none may be guessed, since the
    # weights of all fit and only the images would be wrong.
    size = entry.image_size
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
    from ..checkpoints.conversion import own_files, write_folder, write_published
    from ..data.atomic import new_folder

    if arguments.kind == "to-llamagen":
        # Torch files or safetensors, all in one folder that appears whole: half a checkpoint loads
        # nowhere.
        with new_folder(arguments.out, arguments.overwrite) as folder:
            names = write_published(arguments.pipeline, folder, arguments.pt)
        print(f"saved {', '.join(names)} in {arguments.out}")
        return
    write_folder(
        arguments.out,
        arguments.kind,
        arguments.vq,
        arguments.gpt,
        overwrite=arguments.overwrite,
        image_size=arguments.image_size,
        heads=arguments.heads,
        **{name: getattr(arguments, name) for name in own_files(arguments.kind)},
    )
    print(f"saved {arguments.out}; load it with from_pretrained")
