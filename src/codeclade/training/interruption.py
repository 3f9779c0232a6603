"""Ctrl-C during training: the step that is being done is finished and saved first."""

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[list[int]]:
    """A list that the first Ctrl-C fills; the second one stops at once.

    Signals reach the main thread alone; elsewhere nothing changes.

    Args:
        say: prints a line.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        received.append(number)
        say("stopping after this step; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def how_to_go_on() -> str:
    """The command that continues a run: the one that started it."""
    program = Path(sys.argv[0])
    words = (
        ["codeclade"] if program.name in ("codeclade", "__main__.py") else ["python", *sys.argv[:1]]
    )
    return f"to go on: {shlex.join([*words, *sys.argv[1:]])}"
