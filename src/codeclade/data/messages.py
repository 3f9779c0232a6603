"""Messages of a command that several processes run together: one of them speaks."""

import os
import sys
from typing import TextIO


def is_speaker() -> bool:
    """Whether this process speaks: it is alone, or the first of a launch."""
    return os.environ.get("RANK", "0") == "0"  # torchrun and accelerate number processes here


def say(message: str, file: TextIO | None = None) -> None:
    """Print a line, of several processes once.

    Args:
        file: None: standard output.
    """
    if is_speaker():
        print(message, file=file or sys.stdout)
