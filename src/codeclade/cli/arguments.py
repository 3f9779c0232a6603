"""What the verbs of the command line share."""

import argparse
import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from ..data.hub_ids import is_hub_id, why_not_on_hub
from ..data.messages import say


class VerbParser(argparse.ArgumentParser):
    """A parser of one verb: words may stand anywhere between flags, and long help comes last.

    `more_help` is called when help is printed, so that building the parser imports nothing heavy.
    """

    more_help: Callable[[], str] | None = None
    _inside = False

    def parse_known_args(self, args=None, namespace=None):
        """As in argparse, with `key=value` or class names before, between and after flags."""
        if self._inside or self._subparsers is not None:  # argparse mixes in none with sub-verbs
            return super().parse_known_args(args, namespace)
        self._inside = True  # the line below calls this method again
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False

    def format_help(self) -> str:
        """Usage and flags, then `more_help`."""
        return super().format_help() + (f"\n{self.more_help()}" if self.more_help else "")


def add_verb(verbs, name: str, run, help: str, example: str) -> VerbParser:
    """A sub-parser whose help ends with an example."""
    parser = verbs.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def recipe_arguments(parser: VerbParser, section: str) -> None:
    """Add what every command takes that reads `section` of a recipe; its help lists the keys."""
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help=f"YAML file with a section `{section}`, or a name that `codeclade recipes` lists",
    )
    parser.add_argument(
        "--size", metavar="SIZE", help="of a recipe with several; default: the recipe's own"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings over the recipe's"
    )

    # Settings are described by modules that import torch, so they wait until help is printed.
    def more_help() -> str:
        from .settings import settings_help

        return settings_help(section)

    parser.more_help = more_help


def say_size(recipe: str | None, size: str | None) -> None:
    """Say which size of a recipe is taken where none was asked for."""
    from ..data.families import read_family

    family = read_family(recipe) if recipe and not size else None
    if family and family.sizes:
        others = ", ".join(one for one in family.sizes if one != family.size())
        say(f"recipe {family.name}: size {family.size()} (also {others})", sys.stderr)


def unknown(source: str) -> str:
    """The sentence for a name that is neither a folder nor a repository."""
    return (
        f"{source} is no folder here, and no repository of the Hub that could be read; check the "
        "name, the token and the connection."
    )


def check_on_hub(source: str) -> None:
    """Raise a ValueError unless the Hub may be asked for `source`, which is no folder here.

    "runs/map" could be both; where there is a folder "runs" here, it is meant as a path.
    """
    parent = Path(source).parent
    if is_hub_id(source) and parent.is_dir():
        raise ValueError(
            f"there is no {Path(source).name} in the folder {parent} here; for the Hub's "
            f"{source}, run this where there is no folder {parent}."
        )
    if not is_hub_id(source):
        raise ValueError(f"there is no folder {source}, and it is no Hub id (user/name).")
    _ask_hub(source)


def _ask_hub(source: str) -> None:
    """Raise a ValueError where the Hub has no such repository, or is not there."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cached = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=source, repo_type="model"))
    if cached.is_dir():  # what was loaded before loads without a connection
        return
    if error := why_not_on_hub(source, "model"):
        raise ValueError(unknown(source)) from error


def check_source(source: str) -> None:
    """Raise a ValueError unless this is a pipeline's folder, or may be one on the Hub."""
    folder = Path(source)
    if not folder.is_dir():
        check_on_hub(source)
    elif not (folder / "model_index.json").is_file():
        inside = next((path.parent for path in sorted(folder.glob("*/model_index.json"))), None)
        hint = f"; did you mean {inside}?" if inside else "; give what convert or training saved."
        raise ValueError(f"{source} is no pipeline (no model_index.json in it){hint}")


def check_device(device: str | None) -> str:
    """The device to work on: the one given, else cuda where available, else cpu.

    Raises:
        ValueError: no device of that name, or none here.
    """
    import torch

    cuda = torch.cuda.is_available()
    if device is None:
        return "cuda" if cuda else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device {device} is no device; use cpu, cuda, cuda:1 or mps.") from None
    # torch.device takes every name it knows, present or not; without this the error would come with
    # the first tensor, after the weights were read.
    here = {"cpu": True, "cuda": cuda, "mps": torch.backends.mps.is_available()}
    if not here.get(kind.type, False):
        names = ", ".join(name for name, there in here.items() if there)
        raise ValueError(f"--device {device} is not available here; this torch has {names}.")
    count = torch.cuda.device_count() if kind.type == "cuda" else 1
    if (kind.index or 0) >= count:
        raise ValueError(f"--device {device} is not available here; there are {count} of it.")
    return device


def check_positive(**counts: int | None) -> None:
    """Raise a ValueError that names the first flag whose count is given and below 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"--{name.replace('_', '-')} {count} must be 1 or more.")


def import_for_good(name: str) -> None:
    """Import a module that stays until the end, with what it imports.

    Garbage collection would look at its million objects again and again, while it is imported and
    at the end of the process, and find nothing: without that the first image is there a second
    sooner.
    """
    if name in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(name)
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


def load_part(kind, source: str | None, part: str):
    """A component from its folder or Hub id, or from the pipeline that has it as `part`.

    Without a source there is none.

    Raises:
        ValueError: neither a folder here nor a repository of the Hub.
    """
    if source is None:
        return None
    folder = Path(source)
    if folder.is_dir():
        found = next((d for d in (folder, folder / part) if (d / "config.json").is_file()), None)
        if found is None:
            raise ValueError(f"{folder} holds no {part}: there is no config.json in it.")
        return kind.from_pretrained(found)
    # Whether a repository is the component or a pipeline that has it is only known by asking.
    check_on_hub(source)
    try:
        return kind.from_pretrained(source)
    except OSError:
        try:
            return kind.from_pretrained(source, subfolder=part)
        except OSError as error:
            raise ValueError(unknown(source)) from error
