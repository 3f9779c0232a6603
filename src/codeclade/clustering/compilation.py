"""One line on stderr where compiled code is missing, so that the first call does not look stuck."""

import contextlib
import sys
from collections.abc import Iterator

from numba.core import event
from tqdm import tqdm

MESSAGE = "codeclade: compiling the clustering once, up to a minute; cached for later runs"


class _Announcer(event.Listener):
    """Writes MESSAGE at the first compilation of the process."""

    done = False

    def on_start(self, event: event.Event) -> None:
        # once a process: one fit compiles dozens of functions
        if not _Announcer.done:
            _Announcer.done = True
            tqdm.write(MESSAGE, file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        """Nothing to say: the work itself goes on."""


@contextlib.contextmanager
def compilation_announced() -> Iterator[None]:
    """Say so once if anything is compiled inside; code from numba's cache is silent."""
    with event.install_listener("numba:compile", _Announcer()):
        yield
