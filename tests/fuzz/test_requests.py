"""Mutated requests to the app: every answer comes soon, and none is a raw traceback.

Seeded, so that a failure can be repeated: its number is in the message.
"""

import contextlib
import json
import logging
import random
import socket
import time

import pytest

from builders import build_pipeline
from codeclade.demo import build
from codeclade.demo.backend import Backend
from demo.server import served

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(600)]
MUTATIONS, LONGEST = 200, 20.0  # requests; seconds for an answer
MARKS = ("Traceback", 'File "/', "site-packages", '.py"')
SENTENCE = 1000  # characters of an error

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
CALLS = {
    "generate": ["tabby", 1, 3, "constant", 1, 0, 1, 7],
    "redraw": [FILE, "tabby", 1, 5],
    "edit": [{"background": FILE, "layers": [], "composite": None}, "tabby", 0.5, 3, 5],
    "clusters": [12, "by number", 1],
    "region": [FILE, 12, 0, 0],
    "reconstruct": [FILE, 12, 5],
}
NAMES = {
    "generate": [
        "name",
        "count",
        "guidance_scale",
        "guidance_schedule",
        "temperature",
        "top_k",
        "top_p",
        "seed",
    ],
    "redraw": ["image", "name", "count", "seed"],
    "edit": ["image", "name", "strength", "guidance_scale", "seed"],
    "clusters": ["clusters", "order", "page"],
    "region": ["image", "clusters", "row", "column"],
    "reconstruct": ["image", "clusters", "seed"],
}
VALUES = [
    None, True, -1, 0, 1e308, -1e308, 10**30, 0.5, "", "x", "\0", "\ud800", "tabby", "9" * 90,
    "<script>alert(1)</script>", "../../etc/passwd", "http://127.0.0.1:1/a.png", "data:,x",
    "x" * 5000, [], [[]], {}, {"path": "/dev/zero"}, {"path": "http://10.0.0.1/"}, [None] * 1000,
    {"path": "data:image/png;base64,AAAA", "meta": {"_type": "gradio.FileData"}},
    {"__type__": "update", "value": 1}, {"background": None}, {"id": "x", "layers": [{}]},
]  # fmt: skip
FIELDS = ("session_hash", "fn_index", "trigger_id", "event_data", "batched", "event_id", "data")


def mutated(random: random.Random) -> tuple[str, str, bytes, dict]:
    """Method, path, body and headers of a request that once made sense."""
    name = random.choice(list(CALLS))
    data, headers = list(CALLS[name]), {"Content-Type": "application/json"}
    body: object = {"data": data}
    path, method = random.choice([f"call/{name}", f"call/v2/{name}", "queue/join"]), "POST"
    if "v2" in path:  # takes values by name
        body = dict(zip(NAMES[name], data, strict=True))
    for _ in range(random.randint(1, 3)):
        kind = random.randrange(9)
        if kind <= 2 and data:
            data[random.randrange(len(data))] = random.choice(VALUES)
        elif kind == 3:
            data[:] = random.choices([*data, *VALUES], k=random.randrange(12))
        elif kind == 4 and isinstance(body, dict):
            body[random.choice([*FIELDS, *body])] = random.choice([*VALUES, random.randrange(60)])
        elif kind == 5:
            path = random.choice(
                [f"run/{name}", "run/predict", f"api/{name}", "cancel", "reset", "component_server",
                 "upload", f"call/{name}/x", "call/nothing", "queue/data?session_hash=x", "info",
                 "stream/x", "heartbeat/x", "process_recording", "vibe-edit", "file=/etc/passwd",
                 "file=http://127.0.0.1:1/a", "proxy=http://127.0.0.1:1/a", "upload_progress"]
            )  # fmt: skip
            method = random.choice(["POST", "POST", "GET", "PUT"])
        elif kind == 6:
            headers["Content-Type"] = random.choice(
                ["text/plain", "multipart/form-data; boundary=x", "multipart/form-data", "x"]
            )
        elif kind == 7:
            body = random.choice([data, "x", None, 7, {}])
    raw = json.dumps(body).encode()
    if random.random() < 0.15:
        at = random.randrange(len(raw))
        raw = random.choice([raw[:at], raw[:at] + b"\xff" + raw[at:], b"[" * 100_000, b""])
    return method, path, raw, headers


def answered(address: str, method: str, path: str, body: bytes, headers: dict) -> tuple[int, str]:
    """Status and the first characters of an answer; streams are read for as long as they send."""
    host, port = address.removeprefix("http://").split(":")
    lines = [f"{method} /gradio_api/{path} HTTP/1.1", f"Host: {host}:{port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    with socket.create_connection((host, int(port)), timeout=LONGEST) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        connection.settimeout(1.0 if path.startswith(STREAMS) else LONGEST)
        got = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                got += part
                if len(got) > 2_000_000:
                    break
    head, _, text = got.decode(errors="replace").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 "), got[:100]
    return int(head.split()[1]), text


STREAMS = ("heartbeat/", "queue/data", "upload_progress", "stream/")


def test_mutated_requests(caplog, capfd):
    seen: dict[int, int] = {}
    with served(build(Backend(build_pipeline("cluster")))) as address:
        for number in range(MUTATIONS):
            request = mutated(random.Random(number))
            start = time.monotonic()
            status, text = answered(address, *request)
            case = (number, request[1], request[2][:200], status, text[:300])
            if status == 200 and request[1].startswith("call/") and "event_id" in text:
                event = json.loads(text[text.index("{") : text.rindex("}") + 1])["event_id"]
                path = "/".join([*request[1].split("/"), event])
                _, text = answered(address, "GET", path, b"", {})
                assert "event: " in text, case
            assert time.monotonic() - start < LONGEST, case
            if request[1] not in ("info",) and "event: complete" not in text:
                assert not any(mark in text for mark in MARKS), case
                assert len(text) < SENTENCE or status == 422, case
            assert "root:" not in text and status != 500, case
            seen[status] = seen.get(status, 0) + 1
        # After all that it works as before.
        _, text = answered(
            address, "POST", "call/generate", json.dumps({"data": CALLS["generate"]}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        event = json.loads(text[text.index("{") : text.rindex("}") + 1])["event_id"]
        assert "event: complete" in answered(address, "GET", f"call/generate/{event}", b"", {})[1]
    output = "".join(capfd.readouterr())
    assert "Traceback" not in output, output[-3000:]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert seen.get(200, 0) >= 20 and sum(seen.values()) == MUTATIONS, seen
