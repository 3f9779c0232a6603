"""Runs many loads in one child process with little memory and time, and judges every one.

The child is forked from a process that has imported everything; where a case kills or hangs it, the
case is noted and another child goes on with the next.
"""

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from fuzz.runner import HANGING, LONGEST, MOST_BYTES, MOST_SECONDS, fork


class Load(NamedTuple):
    """One mutated folder and how it is entered."""

    name: str
    base: Path  # a whole folder
    change: Callable[[Path], object]  # of a copy of it
    load: Callable[[Path], object]
    refused: bool | None = True  # None: both are right, as long as what is loaded works
    works: Callable[[object], object] | None = None  # raises where what was loaded does not


def run_all(cases: list[Load], folder: Path) -> list[str]:
    """What is wrong with how the cases ended, one line each; outcomes are in outcomes.txt."""
    results, wrong, done = folder / "outcomes.txt", [], 0
    results.touch()
    while done < len(cases):
        child = fork()
        if child == 0:
            _child(cases[done:], folder, results)
        ended = _wait(child, results)
        lines = results.read_text().splitlines()
        wrong += [problem for line in lines[done:] if (problem := json.loads(line)["problem"])]
        done = len(lines)
        if done < len(cases):  # the child never came to write this one down
            wrong.append(f"{cases[done].name}: {ended}")
            with results.open("a") as stream:
                line = {"name": cases[done].name, "problem": "", "outcome": ended}
                stream.write(json.dumps(line) + "\n")
            done += 1
    return wrong


def _wait(child: int, results: Path) -> str:
    """How the child ended: it is killed when it has written nothing for too long."""
    size, since = results.stat().st_size, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return f"killed the process, {os.waitstatus_to_exitcode(status)}"
        if results.stat().st_size != size:
            size, since = results.stat().st_size, time.monotonic()
        if time.monotonic() - since > HANGING:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hung"
        time.sleep(0.02)


def _child(cases: list[Load], folder: Path, results: Path) -> None:
    """Never returns."""
    code = 70
    try:
        sink = os.open(folder / "noise.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + 2 * MOST_BYTES  # addresses, mapped files too
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        torch.set_num_threads(1)
        with results.open("a") as stream:
            for case in cases:
                problem, outcome = _judged(case, folder / "mutated")
                problem = f"{case.name}: {problem}" if problem else ""
                line = {"name": case.name, "problem": problem, "outcome": outcome}
                stream.write(json.dumps(line) + "\n")
                stream.flush()
        code = 0
    finally:
        os._exit(code)


def _judged(case: Load, copy: Path) -> tuple[str, str]:
    """What is wrong with how a case ends, "" where nothing is, and how it ends."""
    shutil.rmtree(copy, ignore_errors=True)
    linked_copy(case.base, copy)
    case.change(copy)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    before, start = _memory("VmRSS"), time.process_time()
    loaded, error = None, None
    try:
        loaded = case.load(copy)
    except BaseException as caught:
        error = caught
    seconds, peak = time.process_time() - start, _memory("VmHWM") - before
    outcome = "loaded" if error is None else f"{type(error).__name__}: {error}"
    if seconds > MOST_SECONDS or peak > MOST_BYTES:
        return f"took {seconds:.1f} s and {peak / 2**20:.0f} MiB", outcome
    if error is not None:
        return _of_refusal(error, case.refused), outcome
    if case.refused:
        return "accepted", outcome
    try:
        if case.works is not None:
            case.works(loaded)
    except Exception as caught:
        return f"accepted, but {type(caught).__name__}: {str(caught)[:200]}", outcome
    return "", outcome


def _of_refusal(error: BaseException, refused: bool | None) -> str:
    text = str(error)
    if not isinstance(error, (ValueError, OSError)):
        return f"{type(error).__name__}: {text[:300]}"
    if len(text) > LONGEST or "\n" in text or not text:
        return f"no short sentence, {len(text)} characters: {text[:400]!r}"
    return f"refused: {text}" if refused is False else ""


def _memory(what: str) -> int:
    """Bytes of this process, by a name of /proc/self/status."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what)]
    return int(line.split()[1]) * 1024


def linked_copy(base: Path, copy: Path) -> None:
    """A folder whose files are links: what a case writes, it must unlink first."""
    for path in sorted(base.rglob("*")):
        target = copy / path.relative_to(base)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())


def rewrite(path: Path, content: bytes | str) -> None:
    """New content of a file of a linked copy."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
