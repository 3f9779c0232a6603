"""What the verbs of the command line share."""

import argparse
from pathlib import Path

from ..data.hub_ids import is_hub_id


def add_verb(verbs, name: str, run, help: str, example: str) -> argparse.ArgumentParser:
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


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every training command takes."""
    parser.add_argument("--recipe", metavar="FILE", help="YAML file; see hub_configs/")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings over the recipe's"
    )


def unknown(source: str) -> str:
    """The sentence for a name that is neither a folder nor a repository."""
    return (
        f"{source} is no folder here, and no repository of the Hub that could be read; check the "
        "name, the token and the connection."
    )


def check_source(source: str) -> None:
    """Raise a ValueError unless this is a folder, or could be a Hub id."""
    if not Path(source).is_dir() and not is_hub_id(source):
        raise ValueError(f"there is no pipeline folder {source}, and it is no Hub id (user/name).")


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
        inside = not (folder / "config.json").is_file() and (folder / part).is_dir()
        return kind.from_pretrained(folder / part if inside else folder)
    if not is_hub_id(source):
        raise ValueError(unknown(source))
    try:
        return kind.from_pretrained(source)
    except OSError:
        try:
            return kind.from_pretrained(source, subfolder=part)
        except OSError as error:
            raise ValueError(unknown(source)) from error
