"""`codeclade compare`: two evaluation.json files side by side, with confidence intervals."""

import argparse

from .arguments import add_verb


def add_compare(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "compare",
        _compare,
        "compare two measurements of one protocol, with confidence intervals",
        "codeclade compare a/evaluation.json b/evaluation.json --allow guidance_scale",
    )
    parser.add_argument("first", metavar="A.json", help="what codeclade evaluate wrote")
    parser.add_argument("second", metavar="B.json", help="another; differences are B - A")
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="fields of the protocol that may differ, as they are what is compared",
    )


def _compare(arguments: argparse.Namespace) -> None:
    import dataclasses

    from ..evaluation.compare import compare_measured, left_out, read_measured, table
    from ..evaluation.protocol import Protocol

    known = [field.name for field in dataclasses.fields(Protocol)]
    for name in arguments.allow:
        if name not in known:
            raise ValueError(f"--allow {name} is no field of a protocol; use {', '.join(known)}.")
    first, second = read_measured(arguments.first), read_measured(arguments.second)
    rows = compare_measured(first, second, tuple(arguments.allow))
    print(table(rows, (arguments.first, arguments.second)))
    for line in left_out(first, second):
        print(line)
