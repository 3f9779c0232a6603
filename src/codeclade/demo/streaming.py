"""A pipeline call in a thread of its own, whose pictures so far are yielded row by row."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import Backend

SLOW_PREVIEW = 0.5  # seconds; where one takes longer, previews get half of the time at most


def stream(backend: "Backend", run: Callable, show: Callable | None = None) -> Iterator[Any]:
    """Yield `show(ids, known)` after every row of tokens of `run`, then what `run` returns.

    Closing the generator stops the run at its next token.

    Args:
        backend: whose pipeline runs; its lock is held while `run` does.
        run: calls the pipeline with the keyword arguments it is given.
        show: turns the ids so far and the number of tokens known into what is yielded.
    """
    found: queue.Queue = queue.Queue()
    stopped = threading.Event()
    last = [0.0, 0.0]  # end and seconds of the last preview

    # In the thread of the run: a preview after each whole row, unless previews are slow and the
    # last one is too recent.
    def after_token(pipe, step, token, kwargs):
        pipe._interrupt = stopped.is_set()
        whole_row = (step + 1) % backend.grid == 0 and step + 1 < backend.steps
        start = time.monotonic()
        early = last[1] > SLOW_PREVIEW and start - last[0] < last[1]
        if show is not None and whole_row and not pipe._interrupt and not early:
            found.put((False, show(kwargs["tokens"], step + 1)))
            last[:] = time.monotonic(), time.monotonic() - start
        return {}

    def work():
        try:
            with backend.lock:
                result = None if stopped.is_set() else run(callback_on_step_end=after_token)
            found.put((True, result))
        except Exception as error:
            found.put((True, error))

    threading.Thread(target=work, daemon=True).start()
    # In the listener's thread: hand on what the run found; whoever closes us stops the run.
    try:
        # An error travels through the queue as well, and is raised where somebody can hear it.
        done = False
        while not done:
            done, value = found.get()
            if isinstance(value, Exception):
                raise value
            yield value
    finally:
        stopped.set()
