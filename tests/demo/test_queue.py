"""Places in the queue: how many a client has, in which order, and when it loses them."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from gradio_client import Client

from builders import build_pipeline
from codeclade.demo import build, queueing
from codeclade.demo.backend import Backend
from demo.server import served

VALUES = ["tabby", 1, 3, "constant", 1, 0, 1, 7]
KIND = {"Content-Type": "application/json"}


class Gate:
    """A pipeline whose tokens wait until `open` is set; `calls` counts them."""

    def __init__(self, backend):
        self.open, self.calls, self.sleep = threading.Event(), 0, 0.0
        self.lock = backend.lock  # held as long as something runs
        forward = backend.pipe.transformer.forward

        def gated(*args, **kwargs):
            if "stage" in kwargs:  # logits of a token that was counted
                return forward(*args, **kwargs)
            self.open.wait(60)
            self.calls += 1
            time.sleep(self.sleep)
            return forward(*args, **kwargs)

        backend.pipe.transformer.forward = gated


@pytest.fixture
def app():
    """Address, queue and gate of an app whose runs wait for the gate."""
    backend = Backend(build_pipeline("cluster"))
    gate, demo = Gate(backend), build(backend)
    with served(demo) as address:
        try:
            yield address, demo._queue, gate
        finally:
            gate.open.set()


def asked(url: str, body: dict, **headers: str) -> tuple[int, dict]:
    """Status and JSON answer of a POST request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), KIND | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def call(address: str, session: str | None = None, client: str | None = None, seed: int = 7):
    """Status and answer of a call of /generate, from a session at an address."""
    headers = {"X-Forwarded-For": client} if client else {}  # believed from this machine alone
    body = {"data": [*VALUES[:-1], seed]} | ({"session_hash": session} if session else {})
    return asked(f"{address}/gradio_api/call/generate", body, **headers)


def waiting(queue) -> int:
    return len(queue)


def until(condition, seconds: float = 20) -> None:
    """Return once `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def occupy(app) -> None:
    """Let one call run and wait for the gate, so that all others wait for a place."""
    address, queue, _ = app
    assert call(address, "first", "10.0.0.9")[0] == 200
    until(lambda: queue.get_active_worker_count() == 1 and not len(queue))


@pytest.mark.parametrize("path", ["run/generate", "api/generate", "run/predict"])
def test_calls_that_pass_the_queue_by_are_refused(app, path):
    address, _, gate = app
    gate.open.set()
    for index in range(40):
        body = {"data": VALUES, "fn_index": index, "session_hash": "a"}
        status, answer = asked(f"{address}/gradio_api/{path}", body)
        assert status == 404 and answer["detail"].startswith("Direct runs are closed"), index
    assert gate.calls == 0


def test_a_client_cannot_hold_all_places(app):
    address, queue, _ = app
    occupy(app)
    answers = [call(address, "a") for _ in range(20)]
    assert [status for status, _ in answers].count(200) == queueing.SESSION_PLACES
    assert "8 of your calls are waiting" in answers[-1][1]["detail"]
    answers = [call(address) for _ in range(40)]
    assert [status for status, _ in answers].count(200) == queueing.NAMELESS_PLACES
    assert {status for status, _ in answers} == {200, 503}
    answers = [call(address, f"session {i}") for i in range(20)]
    granted = queueing.ADDRESS_PLACES - queueing.NAMELESS_PLACES - queueing.SESSION_PLACES
    assert [status for status, _ in answers].count(200) == granted
    assert "full for your address: 48 calls wait" in answers[-1][1]["detail"]
    assert call(address, "b", "10.0.0.1")[0] == 200, "another address has places left"
    for i in range(15):
        assert call(address, f"c{i}", f"10.0.0.{i + 2}")[0] == 200
    status, answer = call(address, "d", "10.0.1.1")
    assert status == 503
    assert answer["detail"].startswith("The queue is full: all 64 places are taken.")
    assert waiting(queue) == queueing.PLACES


def test_who_has_least_waiting_is_next(app):
    address, queue, _ = app
    occupy(app)
    for seed in range(5):
        assert call(address, "greedy", "10.0.0.1", seed)[0] == 200
    for seed in range(3):
        assert call(address, None, "10.0.0.2", seed)[0] == 200
    assert call(address, "honest", "10.0.0.1", 9)[0] == 200
    assert call(address, "first", "10.0.0.9", 9)[0] == 200
    (line,) = (one.queue for one in queue.event_queue_per_concurrency_id.values() if one.queue)
    names = {"10.0.0.1": "same", "10.0.0.2": "nameless", "10.0.0.9": "first"}
    order = [
        (names[event.request.client.host], queueing.session_of(event), event.data.data[7])
        for event in line
    ]
    assert order == [
        ("same", "greedy", 0),
        ("nameless", None, 0),
        ("same", "honest", 9),  # the sixth of its address
        ("same", "greedy", 1),
        ("nameless", None, 1),
        ("first", "first", 9),  # whose other call is running
        ("same", "greedy", 2),
        ("nameless", None, 2),
        ("same", "greedy", 3),
        ("same", "greedy", 4),
    ]


def test_calls_that_nobody_listens_to_lose_their_places(app, monkeypatch):
    address, queue, gate = app
    occupy(app)
    monkeypatch.setattr(queueing, "SILENCE", 1.0)
    for _ in range(5):
        call(address)
    _, answer = call(address, "listens")
    connection = listening(address, answer["event_id"])
    time.sleep(1.5)
    assert call(address, "late")[0] == 200
    assert [event.session_hash for event in queue._waiting()] == ["listens", "late"]
    kept = {"first", "listens", "late"}
    assert set(queue.pending_messages_per_session) == kept
    assert set(queue.pending_event_ids_session) == kept and len(queue.event_ids_to_events) == 3
    gate.open.set()
    assert b"event: complete" in connection.getresponse().read()
    until(lambda: not queue.listeners)


def listening(address: str, event: str) -> http.client.HTTPConnection:
    """A connection that has asked for the messages of a call."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("GET", f"/gradio_api/call/generate/{event}")
    return connection


def test_a_client_that_leaves_frees_its_place(app):
    address, queue, _ = app
    occupy(app)
    connections = []
    for session in ("a", "b"):
        _, answer = call(address, session)
        connections.append(listening(address, answer["event_id"]))
    until(lambda: sum(queue.listeners.values()) == 2)
    connections[0].close()
    until(lambda: [event.session_hash for event in queue._waiting()] == ["b"], 3)
    connections[1].close()
    until(lambda: not queue._waiting() and not queue.listeners, 3)


def test_a_run_stops_when_its_client_leaves(app):
    address, queue, gate = app
    gate.sleep = 0.1
    gate.open.set()
    _, answer = call(address, "a")
    connection = listening(address, answer["event_id"])
    assert connection.getresponse().readline() == b"event: generating\n"
    until(lambda: gate.calls >= 4)
    connection.sock.close()
    connection.close()
    until(lambda: queue.get_active_worker_count() == 0, 5)
    with gate.lock:
        assert gate.calls < 16, "of 16 tokens"


def test_cancelling_stops_the_work(app):
    address, queue, gate = app
    gate.sleep = 0.1
    gate.open.set()
    client = Client(address, verbose=False, analytics_enabled=False)
    job = client.submit(*VALUES, api_name="/generate")
    until(lambda: gate.calls >= 5)
    job.cancel()
    until(lambda: queue.get_active_worker_count() == 0, 5)
    with gate.lock:
        assert gate.calls < 16, "of 16 tokens"


def test_a_full_queue_is_told_in_words(app, monkeypatch):
    address, _, _ = app
    occupy(app)
    monkeypatch.setattr(queueing, "PLACES", 0)
    client = Client(address, verbose=False, analytics_enabled=False)
    with pytest.raises(Exception, match="Queue is full! Please try again"):
        client.predict(*VALUES, api_name="/generate")


def test_an_honest_client_beside_a_hundred_calls():
    """The page answers, and a client is served next, whatever others send."""
    backend = Backend(build_pipeline("cluster"))
    gate = Gate(backend)
    gate.sleep = 0.1  # so that a run of 16 tokens takes over a second
    gate.open.set()
    with served(build(backend)) as address:
        client = Client(address, verbose=False, analytics_enabled=False)

        def page():
            urllib.request.urlopen(address).read()

        def predict():
            client.predict(*VALUES, api_name="/generate")

        idle, idle_page = min(map(seconds, [predict] * 2)), max(map(seconds, [page] * 2))
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            for kind in ("run", "call"):
                url = f"{address}/gradio_api/{kind}/generate"
                flood = [pool.submit(asked, url, {"data": VALUES}) for _ in range(100)]
                time.sleep(0.2)
                assert seconds(page) < max(2, 2 * idle_page)  # 2 s where it is not busy otherwise
                busy = seconds(predict)
                assert busy < 3 * idle, (kind, busy, idle)
                statuses = {job.result()[0] for job in flood}
                assert statuses == ({404} if kind == "run" else {200, 503})


def seconds(action) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


ADDRESSES = ("http://127.0.0.1:{port}/a.png", "https://10.0.0.1/a.png", " http://[::1]:{port}/a")


def test_addresses_of_images_are_refused_unread(app):
    """The server itself asks no other machine for an image, nor this one."""
    address, _, _ = app
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        other.settimeout(0.3)
        for url in ADDRESSES:
            for meta in ({"meta": {"_type": "gradio.FileData"}}, {}):
                file = {"path": url.format(port=port), **meta}
                editor = {"background": file, "layers": [file], "composite": None}
                for name, data in (
                    ("redraw", [file, "tabby", 1, 5]),
                    ("region", [file, 10, 0, 0]),
                    ("reconstruct", [file, 10, 5]),
                    ("edit", [editor, "tabby", 0.5, 3, 5]),
                ):
                    answer = asked(f"{address}/gradio_api/call/{name}", {"data": data})
                    assert answer[0] == 422 and queueing.NO_ADDRESSES in str(answer[1])
        with pytest.raises(TimeoutError):
            other.accept()
    client = Client(address, verbose=False, analytics_enabled=False)
    with pytest.raises(Exception, match="must be an uploaded file, not the address of one"):
        file = {"path": "http://127.0.0.1/a.png", "meta": {"_type": "gradio.FileData"}}
        client.predict(file, "tabby", 1, 5, api_name="/redraw")
