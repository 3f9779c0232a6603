"""Memory of the server: it stops growing, however many requests and sessions there are."""

import gc
import json
import time
import urllib.request
from pathlib import Path

import pytest

from builders import build_pipeline
from codeclade.demo import app as app_module
from codeclade.demo import build, queueing
from codeclade.demo.backend import Backend
from demo.server import served

VALUES = ["tabby", 1, 3, "constant", 1, 0, 1]


def resident() -> float:
    """Megabytes that this process holds."""
    gc.collect()
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


def generate(address: str, session: str, seed: int) -> None:
    """One call of a session, whose answer is read."""
    url = f"{address}/gradio_api/call/generate"
    body = json.dumps({"data": [*VALUES, seed], "session_hash": session}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        assert b"event: complete" in answer.read()


def grown(requests: int, sessions: int, limit: float) -> None:
    """Fill every table that has a limit; after that, more of the same must not grow by `limit`."""
    demo = build(Backend(build_pipeline("cluster")))
    with served(demo) as address:
        kept = app_module.SESSIONS
        for number in range(kept + 5):
            generate(address, f"first {number}", number)
        start = resident()
        for number in range(requests):
            generate(address, "one", number)
        assert resident() - start < limit, "requests of one session"
        for number in range(sessions):
            generate(address, f"second {number}", number)
        assert resident() - start < limit, "sessions"
        queue, states = demo._queue, demo.app.state_holder
        assert len(states.session_data) <= kept + 1
        assert len(states.time_last_used) <= kept + 1
        assert len(queue.pending_messages_per_session) <= queueing.SESSIONS_WITH_MESSAGES
        # The last connection ends a moment after its answer was read.
        tables = (queue.event_ids_to_events, queue.listeners, demo.app.iterators)
        deadline = time.monotonic() + 10
        while any(tables) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(tables), tables
        assert not queue._waiting()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_bounded(monkeypatch):
    monkeypatch.setattr(app_module, "SESSIONS", 8)
    grown(requests=30, sessions=20, limit=30)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_bounded_for_long():
    grown(requests=300, sessions=100, limit=60)
