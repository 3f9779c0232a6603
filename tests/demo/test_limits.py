"""What the app refuses of clients that do not keep to Gradio's page, and what it lets go of."""

import contextlib
import io
import json
import pickle
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.components.image_editor import EditorDataBlobs
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from PIL import Image

from builders import build_pipeline
from codeclade.demo import build, listeners
from codeclade.demo import canvas as canvas_module
from codeclade.demo.backend import Backend
from codeclade.demo.tabs.edit import Edit
from demo.server import served

CLAIMS = (
    {},
    {"meta": {}},
    {"meta": {"_type": "x"}},
    {"is_stream": True},
    {"meta": {"_type": "gradio.FileData"}},
)


@pytest.fixture(scope="module")
def app():
    return build(Backend(build_pipeline("cluster")))


@pytest.fixture(scope="module")
def address(app):
    with served(app) as address:
        yield address


@pytest.fixture
def picture(tmp_path):
    """An image file outside of the folder that Gradio keeps files in."""
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.fixture
def link(address, picture):
    """A link to that file, inside of the folder."""
    path = Path(get_upload_folder()) / "link.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(picture)
    yield path
    path.unlink()


def sent(url: str, body: bytes, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
        return answer.read()


def called(address: str, endpoint: str, data: list) -> str:
    """The events of a raw API call, as curl would make it."""
    url = f"{address}/gradio_api/call{endpoint}"
    body = json.dumps({"data": data}).encode()
    event = json.loads(sent(url, body, **{"Content-Type": "application/json"}))["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=60) as answer:
        return answer.read().decode()


def image_calls(file, other=None) -> list[tuple]:
    """A call of every endpoint that takes an image, with `other` where it takes a second."""
    return [
        ("/redraw", [file, "tabby", 1, 5]),
        ("/region", [file, 10, 0, 0]),
        ("/reconstruct", [file, 10, 5]),
        ("/edit", [{"background": file, "layers": [], "composite": None}, "tabby", 0.5, 3, 5]),
        ("/edit", [{"background": other or file, "layers": [file]}, "tabby", 0.5, 3, 5]),
    ]


def test_only_uploaded_files_are_opened(address, picture, link):
    outside = [str(picture), str(link), f"{get_upload_folder()}/../{picture.name}", "a\0b", "."]
    for path in outside:
        for claim in CLAIMS if path in outside[:2] else CLAIMS[:1]:
            for endpoint, data in image_calls({"path": path, **claim}):
                answer = called(address, endpoint, data)
                assert "event: error" in answer, (path, claim, endpoint)
                assert "event: complete" not in answer and len(answer) < 300
                assert "PNG" not in answer and "Traceback" not in answer


def test_uploaded_files_are_opened_whatever_they_claim(address, picture):
    client = Client(address, verbose=False, analytics_enabled=False)
    for endpoint, data in image_calls(handle_file(picture)):
        client.predict(*data, api_name=endpoint)
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
    body += b"\r\n" + picture.read_bytes() + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    (path,) = json.loads(sent(f"{address}/gradio_api/upload", body, **kind))
    for endpoint, data in image_calls({"path": path})[:3]:
        assert "event: complete" in called(address, endpoint, data)
    meta = {"meta": {"_type": "gradio.FileData"}}  # Gradio insists on it inside of an editor
    for file, outcome in ((path, "complete"), (str(picture), "error")):
        calls = image_calls({"path": file, **meta}, {"path": path, **meta})
        assert f"event: {outcome}" in called(address, *calls[4]), "a layer is a file as well"


def draw(address: str, canvas, **changes) -> int:
    """Status of a drawing that is sent as the page sends it."""
    fields = {
        "type": "layer",
        "index": "0",
        "id": "a",
        "fn_name": "accept_blobs",
        "component_id": str(canvas._id),
        "session_hash": "limits",
    }
    lines = []
    for name, value in {**fields, **changes}.items():
        lines += ["--x", f'Content-Disposition: form-data; name="{name}"', "", value]
    lines += ["--x", 'Content-Disposition: form-data; name="file"; filename="a.png"', ""]
    body = "\r\n".join([*lines, "drawing", "--x--", ""]).encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return status(f"{address}/gradio_api/component_server", body, **kind)


def status(url: str, body: bytes, **headers: str) -> int:
    try:
        sent(url, body, **headers)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.fixture
def canvas(app):
    (canvas,) = (one for one in app.blocks.values() if type(one).__name__ == "Canvas")
    canvas.pending.clear()
    yield canvas
    canvas.pending.clear()


def test_pending_drawings_are_bounded(address, canvas, monkeypatch):
    assert canvas.get_block_name() == "imageeditor"
    for index in ("30000000", "8", "-1", "1.5", "x"):
        assert draw(address, canvas, index=index) == 400
    assert draw(address, canvas, id="x" * 65) == 400 and not canvas.pending
    for number in range(40):
        assert draw(address, canvas, id=str(number), index="7") == 200
    assert list(canvas.pending) == [str(number) for number in range(8, 40)]
    assert canvas.pending["39"].layers == [None] * 7 + [b"drawing"]
    monkeypatch.setattr(canvas_module, "MAX_PENDING_BYTES", 30)
    assert draw(address, canvas, type="background", index="null") == 200
    assert list(canvas.pending) == ["37", "38", "39", "a"]


def test_another_canvas_of_a_session_finds_the_drawing(canvas):
    """Gradio makes one whenever an event changes the settings of the first."""
    other = type(canvas)(render=False)
    fields = {"type": "background", "index": "null", "id": "b"}
    other.accept_blobs(SimpleNamespace(data=fields, files=[("a.png", b"drawing")]))
    assert canvas.pending["b"].background == b"drawing"
    assert not Path(canvas_module.__file__).with_suffix(".pyi").exists()


@pytest.fixture
def edit(monkeypatch, tiny_pipeline):
    """The tab of a small pipeline, and names of what ran on the GPU, with only what can cross."""
    crossed = []

    def crossing(function):
        def call(*args, **kwargs):
            crossed.append(function.__name__)
            args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
            with contextlib.closing(function(*args, **kwargs)) as results:
                for result in results:
                    yield pickle.loads(pickle.dumps(result))

        return call

    backend = Backend(tiny_pipeline("cluster"))
    monkeypatch.setattr(listeners, "GPU", crossing)
    with gr.Blocks():
        return Edit(backend, gr.State(), gr.Tab(render=False)), crossed


def drawing(canvas, picture) -> dict:
    """An editor's value whose background and layer wait under an id."""
    layer = io.BytesIO()
    Image.new("RGBA", Image.open(picture).size, "red").save(layer, "png")
    blobs = {"background": picture.read_bytes(), "layers": [None, layer.getvalue()]}
    canvas.pending["c"] = EditorDataBlobs(**blobs, composite=None)
    return {"background": None, "layers": [], "composite": None, "id": "c"}


def test_edit_reads_the_drawing_before_the_gpu_process(edit, picture):
    tab, crossed = edit
    results = list(tab.edit(drawing(tab.image, picture), "0", 1, 3, 7, None))
    assert crossed == ["_sample"] and not tab.image.pending
    assert [note for _, note in results[:-1]] == [f"Row {row} of 4" for row in (1, 2, 3)]
    gallery, note = results[-1]
    assert len(gallery) == 3 and "of 16 tokens changed" in note


def test_edit_stops_when_nobody_waits(edit, picture):
    tab, _ = edit
    calls, forward = [], tab.backend.pipe.transformer.forward

    def slow(*args, **kwargs):
        if "stage" in kwargs:  # logits of a token that was counted
            return forward(*args, **kwargs)
        calls.append(time.sleep(0.05))
        return forward(*args, **kwargs)

    tab.backend.pipe.transformer.forward = slow
    results = tab.edit(drawing(tab.image, picture), "0", 1, 3, 7, None)
    next(results)
    results.close()
    with tab.backend.lock:
        pass
    assert len(calls) <= 7, "a row of four tokens, and what was on its way"


def test_large_requests_are_refused(app, address, canvas):
    kind = {"Content-Type": "application/json"}
    body = json.dumps({"data": ["x" * 1_000_000, 1, 3, "constant", 1, 0, 1, 7]}).encode()
    for path in ("call/generate", "queue/join", "call/v2/generate"):
        assert status(f"{address}/gradio_api/{path}", body, **kind) == 413
    chunked = {**kind, "Transfer-Encoding": "chunked"}
    assert status(f"{address}/gradio_api/call/generate", iter([body]), **chunked) == 411
    large = "x" * 25_000_000  # and the rest of the request
    assert draw(address, canvas, id=large) == 413 and not canvas.pending
    assert draw(address, canvas, content="x" * 1_500_000) in (200, 400)
    assert app.state_session_capacity == 64 and app.delete_cache == (600, 3600)
