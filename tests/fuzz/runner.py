"""Runs a command of codeclade in a process of its own with little memory and time, and judges it.

Processes are forked from one that has imported everything, so that a case takes milliseconds.
"""

import gc
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from numba.np.ufunc import parallel

MOST_SECONDS = 5  # of processor time: other work on the machine does not count
HANGING = 60  # seconds by the clock
MOST_BYTES = 2**30
LONGEST = 300  # characters of a refusal


@dataclass
class Outcome:
    """How a command ended."""

    code: int | None  # exit code; None: killed for time
    text: str  # what it wrote to standard error
    seconds: float
    peak: int  # bytes of memory above this process's


def run(arguments: list[str], log: Path) -> Outcome:
    """Run `codeclade` with these arguments in a fork of this process."""
    start, before = time.monotonic(), _peak_of_self()
    child = fork()
    if child == 0:
        _child(arguments, log)
    deadline = start + HANGING
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return Outcome(None, "", time.monotonic() - start, 0)
        time.sleep(0.005)
    seconds = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    peak = max(0, usage.ru_maxrss * 1024 - before)
    return Outcome(code, log.read_text(errors="replace"), seconds, peak)


def fork() -> int:
    """`os.fork` of a process whose children may compute with threads.

    Raises:
        RuntimeError: numba has threads here, and GNU OpenMP would end children that use them.
    """
    if parallel._is_initialized:
        raise RuntimeError("an earlier test has started numba's threads; run this file by itself.")
    gc.freeze()  # what is there is not searched again in every child
    return os.fork()


def judge(outcome: Outcome, verb: str) -> str | None:
    """What is wrong with how a command ended; None where it worked or refused properly."""
    text = outcome.text.strip()
    if outcome.code is None:
        return "hung"
    if outcome.seconds > MOST_SECONDS:
        return f"took {outcome.seconds:.1f} s"
    if outcome.peak > MOST_BYTES:
        return f"took {outcome.peak / 2**20:.0f} MiB"
    if outcome.code not in (0, 2):
        return f"exit code {outcome.code}: {text[-300:]}"
    if outcome.code == 2:
        lines = [line for line in text.splitlines() if line.startswith(f"codeclade {verb}: ")]
        if len(lines) != 1 or text.splitlines()[-1] != lines[0]:
            return f"no single sentence: {text[-300:]}"
        sentence = lines[0].removeprefix(f"codeclade {verb}: ")
        if len(sentence) > LONGEST:
            return f"a refusal of {len(sentence)} characters: {sentence}"
    return None


def _peak_of_self() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _child(arguments: list[str], log: Path) -> None:
    """Never returns."""
    code = 70
    try:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = (
            pages * os.sysconf("SC_PAGE_SIZE") + 2 * MOST_BYTES
        )  # of addresses: mapped files too
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        from codeclade.cli import main

        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 70
    finally:
        os._exit(code)
