"""The flags that say how images are drawn; without them a pipeline draws by its saved defaults."""

import argparse
from typing import Any


def sampling_arguments(parser) -> None:
    """Add the flags of guidance and of the draws to a parser or to a group of its flags."""
    parser.add_argument(
        "--guidance-scale",
        metavar="S",
        help="active above 1; two with a comma for two-stage schemes; default: the pipeline's",
    )
    parser.add_argument(
        "--guidance-schedule",
        metavar="NAME",
        help="constant, linear, cosine_power, interval or attention, with numbers as in "
        "interval:last_step=9; default: the pipeline's",
    )
    for name, kind, metavar, meaning in (
        ("temperature", float, "T", "0 is arg-max"),
        ("top-k", int, "K", "0 keeps all"),
        ("top-p", float, "P", "1 keeps all"),
    ):
        about = f"{meaning}; default: the pipeline's"
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=about)


def sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as a pipeline's call takes it; None: the pipeline's default.

    Raises:
        ValueError: a scale or schedule that cannot be read.
    """
    draws = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    return {
        "guidance_scale": parse_scale(arguments.guidance_scale),
        "guidance_schedule": parse_schedule(arguments.guidance_schedule),
        **draws,
    }


def parse_scale(text: str | None) -> float | tuple[float, ...] | None:
    """ "2.5" as a number, "2.5,4" as a pair, one for each stage.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2):
        raise ValueError(f"--guidance-scale {text} must be a number, or two with a comma.")
    return numbers if len(numbers) == 2 else numbers[0]


def parse_schedule(text: str | None) -> str | dict | None:
    """ "name" or "name:key=number,key=number" as the pipeline takes a schedule; "a/b" in the place
    of a number gives each stage its own.

    Raises:
        ValueError: a parameter that is no number, or a schedule that there is none of.
    """
    if text is None:
        return None
    from ..components.guidance import Schedule

    name, colon, rest = text.partition(":")
    found: dict = {"name": name}
    for pair in rest.split(",") if colon else []:
        key, _, value = pair.partition("=")
        try:
            numbers = [float(word) for word in value.split("/")]
        except ValueError:
            raise ValueError(
                f"--guidance-schedule {text}: {pair!r} must be key=number, "
                "as in interval:last_step=9."
            ) from None
        found[key.strip()] = numbers if len(numbers) > 1 else numbers[0]
    Schedule(found)  # refuses what it does not know
    return found if colon else name
