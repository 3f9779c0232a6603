"""The app's endpoints: bounds on hostile clients, every scheme, other pipelines."""

import contextlib
import json
import os
import pickle
import runpy
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import gradio as gr
import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image

from builders import SCHEMES, build_pipeline, build_scheme
from codeclade import bundled
from codeclade.demo import build, listeners
from codeclade.demo.backend import Backend
from demo.app_client import GENERATE, arrays, connect, post
from demo.server import APP, served

LONG = "x" * 900_000  # larger requests are refused before the app sees them
HOSTILE = [
    ({"name": "gold fish"}, "did you mean goldfish?"),
    ({"name": "hamster"}, "There is no class 'hamster' among the 16, such as goldfish,"),
    ({"name": "penguin"}, "did you mean king penguin?"),
    ({"name": "coral"}, "did you mean brain coral, coral reef?"),
    ({"name": LONG}, "at most 100 characters"),
    ({"name": "../../../../etc/passwd"}, "There is no class"),
    ({"name": "<img src=x onerror=alert(1)>"}, "&lt;img"),
    ({"name": "99"}, "outside 0..15"),
    ({"name": None}, "must be a text"),
    ({"name": ["lion"]}, "must be a text"),
    ({"count": 0}, "1 to 8"),
    ({"count": 9}, "1 to 8"),
    ({"count": 2.5}, "whole number"),
    ({"count": True}, "whole number"),
    ({"seed": -1}, "Seed must be"),
    ({"seed": 2**31}, "Seed must be"),
    ({"seed": "7"}, "Seed must be"),
    ({"seed": None}, "Seed must be"),
    ({"seed": [7]}, "Seed must be"),
    ({"guidance_scale": float("nan")}, "Guidance scale must be"),
    ({"guidance_scale": float("inf")}, "Guidance scale must be"),
    ({"guidance_scale": 10**400}, "Guidance scale must be"),
    ({"guidance_schedule": LONG}, "one of constant"),
    ({"guidance_schedule": {"name": "interval"}}, "one of constant"),
    ({"temperature": -1}, "Temperature must be"),
    ({"temperature": 1e-9}, "0.01 to 5"),
    ({"top_k": 10**12}, "Top-k must be"),
    ({"top_p": 0}, "Top-p must be"),
    ({"top_p": LONG}, "Top-p must be"),
]


def test_hostile_values_get_a_sentence(address):
    for change, message in HOSTILE:
        answer = post(address, "generate", list({**GENERATE, **change}.values()))
        assert "event: error" in answer and message in answer, (str(change)[:80], answer[:300])
        assert "Traceback" not in answer and len(answer) < 700
    assert "event: complete" in post(address, "generate", list(GENERATE.values()))


def test_hostile_files_get_a_sentence(client, picture, tmp_path):
    files = {name: tmp_path / name for name in ("big.png", "a.svg", "a.html", "a.png", "cut.png")}
    Image.new("L", (8000, 5000)).save(files["big.png"])
    files["a.svg"].write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>')
    files["a.html"].write_text("<script>alert(1)</script>")
    files["a.png"].write_bytes(files["a.svg"].read_bytes())
    whole = picture.read_bytes()
    files["cut.png"].write_bytes(whole[: len(whole) // 2])
    messages = {"big.png": "20 megapixels", "cut.png": "damaged"}
    for name, path in files.items():
        message = messages.get(name, "The file is no image of type")
        for arguments, endpoint in image_calls(handle_file(path)):
            with pytest.raises(Exception, match=message):
                client.predict(*arguments, api_name=endpoint)
    for arguments, endpoint in image_calls(handle_file(picture))[:1]:
        client.predict(*arguments, api_name=endpoint)


def image_calls(file) -> list[tuple]:
    """A call of every endpoint that takes an image."""
    editor = {"background": file, "layers": [], "composite": None}
    return [
        ((file, "lion", 1, 5), "/redraw"),
        ((file, 100, 0, 0), "/region"),
        ((file, 100, 5), "/reconstruct"),
        ((editor, "lion", 0.5, 3, 5), "/edit"),
    ]


def test_no_file_of_the_server_is_read_or_served(address, picture):
    model = f"{bundled()}/model_index.json"
    for path in ("/etc/passwd", str(APP), model, str(picture), "pyproject.toml"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for arguments, endpoint in image_calls(file):
            answer = post(address, endpoint[1:], list(arguments))
            assert "event: error" in answer and "root:" not in answer and "Traceback" not in answer
        with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
    for value in ("/etc/passwd", 7, [], {"path": None}, {"url": "file:///etc/passwd"}, LONG):
        assert "event: error" in post(address, "region", [value, 100, 0, 0])


def test_hostile_places_and_pages(address, client, picture):
    for arguments in ([0, 0], [4097, 0], ["100", 0], [100, "by name"], [True, 0]):
        data = [arguments[0], arguments[1] or "by number", 1]
        assert "event: error" in post(address, "clusters", data)
    for page in (0, -1, None, 1.5, True, float("nan")):
        answer = post(address, "clusters", [100, "by number", page])
        assert "Page must be a whole number from 1 to 5." in answer
    _, note, _, page = client.predict(100, "by number", 10**6, api_name="/clusters")
    assert note.endswith("Page 5 of 5.") and page == 5
    for row, column in ((8, 0), (-1, 0), (0, 8), (0.5, 0)):
        with pytest.raises(Exception, match="must be a whole number from 0 to 7"):
            client.predict(handle_file(picture), 100, row, column, api_name="/region")


def test_only_the_documented_endpoints(client):
    names = set(client.view_api(return_format="dict")["named_endpoints"])
    assert names == {f"/{name}" for name in NAMES}


NAMES = ("generate", "redraw", "edit", "clusters", "region", "reconstruct")


def test_endpoints_are_documented(address):
    with urllib.request.urlopen(f"{address}/gradio_api/info") as answer:
        endpoints = json.load(answer)["named_endpoints"]
    for name in NAMES:
        assert len(endpoints[f"/{name}"]["description"]) > 30
    named = [one["parameter_name"] for one in endpoints["/generate"]["parameters"]]
    assert named == list(GENERATE)


@pytest.mark.parametrize(
    "scheme",
    # One without clusters and one of pairs by default: each starts a whole app.
    [pytest.param(one, marks=pytest.mark.slow if "cluster" in one else ()) for one in SCHEMES],
)
def test_every_scheme_works(scheme, picture, tmp_path):
    bare = scheme in ("token", "cluster_token")
    pipe = build_scheme(scheme)
    if bare:
        pipe.register_modules(cluster_map=None)
    with served(build(Backend(pipe))) as address:
        client = connect(address)
        made, _ = client.predict(**{**GENERATE, "name": "tabby"}, api_name="/generate")
        assert arrays(made)[0].shape == (16, 16, 3)
        no_map = pipe.cluster_map is None and scheme != "cluster_token"
        with sentence(scheme == "token", "no clusters to keep"):
            gallery, _ = client.predict(handle_file(picture), "tabby", 2, 5, api_name="/redraw")
            assert len(gallery) == 4
        editor = {"background": handle_file(picture), "layers": [], "composite": None}
        gallery, _ = client.predict(editor, "tabby", 0.5, 2, 5, api_name="/edit")
        assert len(gallery) == 3
        with sentence(no_map, "no cluster map"):
            cards, *_ = client.predict(12, "by number", 1, api_name="/clusters")
            assert len(cards) == 12
        with sentence(no_map, "no cluster map"):
            *_, data = client.predict(handle_file(picture), 12, 3, 1, api_name="/region")
            assert data["id"] in data["members"]
        gallery, *_ = client.predict(handle_file(picture), 12, 5, api_name="/reconstruct")
        assert len(gallery) == (2 if no_map else 3)


@contextlib.contextmanager
def sentence(expected: bool, message: str):
    """Expect an error with `message`, or none."""
    with pytest.raises(Exception, match=message) if expected else contextlib.nullcontext():
        yield


def test_classes_without_or_with_shared_names(tiny_pipeline):
    backend = Backend(build_pipeline("token", id2label={}))
    assert backend.choices[1] == ("class (1)", "1") and backend.label("4") == 4
    backend = Backend(tiny_pipeline("token"))
    assert backend.choices[3:] == [("crane (3)", "3"), ("crane (4)", "4")]
    assert [backend.label(value) for _, value in backend.choices] == list(range(5))
    assert backend.label("Carassius auratus") == 0


def test_schedules_become_arguments(tiny_pipeline):
    backend = Backend(tiny_pipeline("token"))
    for name in backend.schedules:
        images = list(backend.sample(1, 1, 3, backend.settings(2, name, 1, 0, 1)))[-1][1]
        assert len(images) == 1
    own = {"name": "linear", "start": 1.5}
    backend = Backend(build_pipeline("token", guidance_schedule=own))
    assert backend.default_schedule == "linear" and backend.schedule("linear") == own


def test_what_crosses_to_a_gpu_process_can_be_pickled(monkeypatch, picture, tiny_pipeline):
    """On ZeroGPU arguments and results of an endpoint pass between two processes."""
    crossed = []

    def crossing(function):
        def call(*args, **kwargs):
            args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
            crossed.append(function.__name__)
            return pickle.loads(pickle.dumps(function(*args, **kwargs)))

        return call

    monkeypatch.setattr(listeners, "GPU", crossing)
    backend = Backend(tiny_pipeline("cluster"))
    assert len(backend.patches([1, 2])) == 2 and crossed == ["_patch_pixels"]
    image = Image.open(picture)
    ids = backend.find_ids(image, backend.example())
    assert isinstance(ids, np.ndarray) and ids.shape == (1, 4, 4), "tensors share memory"


def test_the_file_of_a_space_makes_an_app(tmp_path, monkeypatch):
    build_pipeline("token", id2label={}).save_pretrained(tmp_path)
    monkeypatch.setenv("CODECLADE_PIPELINE", str(tmp_path))
    demo = runpy.run_path(str(APP), run_name="app")["demo"]
    assert "/generate" in demo.get_api_info()["named_endpoints"]
    texts = [block.value for block in demo.blocks.values() if isinstance(block, gr.Markdown)]
    assert any("16 x 16 pixels" in text for text in texts)


@pytest.mark.slow  # each is a process that imports everything
@pytest.mark.parametrize("command", ["app.py", "codeclade demo"])
def test_app_starts_anywhere_with_another_pipeline(command, tmp_path):
    build_pipeline("token", id2label={}).save_pretrained(tmp_path / "pipeline")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "CODECLADE_PIPELINE": str(tmp_path / "pipeline"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
        "OMP_NUM_THREADS": "1",
    }
    arguments = [str(APP)]
    if command == "codeclade demo":
        pipeline, _ = environment.pop("CODECLADE_PIPELINE"), environment.pop("GRADIO_SERVER_PORT")
        arguments = ["-m", "codeclade", "demo", "--pipeline", pipeline, "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        page = wait_for(f"http://127.0.0.1:{port}", process)
        assert "16 x 16 pixels" in page and "class (4)" in page
        deadline = time.monotonic() + 30
        while not lines and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(20)
    reader.join(20)
    output = "".join(lines)
    assert "Traceback" not in output and "share=True" not in output
    assert f":{port} until you press Ctrl-C.\n" in output


def wait_for(address: str, process: subprocess.Popen) -> str:
    """A page, once its server is up."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address) as answer:
            return answer.read().decode()
        time.sleep(0.2)
    raise AssertionError(f"no server at {address}, exit status {process.poll()}.")
