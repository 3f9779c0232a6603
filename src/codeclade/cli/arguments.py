"""What the verbs of the command line share."""

import argparse


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
