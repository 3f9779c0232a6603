"""The app's endpoints: right answers, bounds on hostile clients, other pipelines."""

import concurrent.futures
import contextlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from PIL import ExifTags, Image

from builders import SCHEMES, build_map, build_pipeline, build_scheme
from codeclade import CodecladePipeline, bundled
from codeclade.data.pixels import to_pixels
from codeclade.demo import build, listeners
from codeclade.demo.backend import Backend
from codeclade.demo.tabs.clusters import Clusters
from codeclade.demo.tabs.controls import Session
from codeclade.demo.tabs.generate import Generate
from codeclade.demo.tabs.reconstruct import Reconstruct
from codeclade.evaluation.replacement import replace_codes
from codeclade.metrics.image_quality import psnr
from demo.server import APP, bundled_app, served

GENERATE = {
    "name": "lion",
    "count": 2,
    "guidance_scale": 3,
    "guidance_schedule": "constant",
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "seed": 7,
}


@pytest.fixture(scope="module")
def pipe():
    pipe = CodecladePipeline.from_pretrained(bundled())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def address():
    with served(bundled_app()) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return connect(address)


@pytest.fixture
def picture(tmp_path):
    """A file with a picture of smooth colors, wider than high."""
    y, x = np.mgrid[0:96, 0:128] / 128
    array = np.stack([x, y, 1 - x * y], -1) * 255
    path = tmp_path / "picture.png"
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def connect(address: str) -> Client:
    return Client(address, verbose=False, analytics_enabled=False)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(gallery: list[dict]) -> list[np.ndarray]:
    return [np.asarray(Image.open(item["image"]).convert("RGB")) for item in gallery]


def ids_of(path, pipe) -> torch.Tensor:
    """Ids (1, G, G) of the centered square of a picture file, by the pipeline's own parts."""
    image = Image.open(path).convert("RGB")
    left = (image.width - image.height) // 2
    box = (left, 0, left + image.height, image.height)
    image = image.resize((64, 64), Image.Resampling.LANCZOS, box)
    pixels = to_pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    with torch.no_grad():
        return pipe.vq_model.encode(pixels).ids


def test_generate_streams_and_ends_with_what_the_pipeline_makes(client, pipe):
    *parts, last = list(client.submit(**GENERATE, api_name="/generate"))
    expected = pipe("lion", guidance_scale=3.0, num_images_per_prompt=2, generator=seeded()).images
    for image, made in zip(arrays(last[0]), expected, strict=True):
        assert (image == np.asarray(made)).all()
    assert last[0][0]["image"].endswith(".png")
    assert len(parts) == 7, "one picture a row of tokens"
    first = arrays(parts[0][0])[0]
    assert (first[8:] == first[-1, -1]).all() and abs(int(first[-1, -1, 0]) - 128) < 2
    assert first[:8].std() > 5


def test_generate_follows_every_setting(client, pipe):
    settings = {"guidance_schedule": "linear", "temperature": 0.7, "top_k": 50, "top_p": 0.9}
    settings["guidance_scale"] = 5.0
    last, _ = client.predict(**{**GENERATE, **settings}, api_name="/generate")
    expected = pipe("lion", num_images_per_prompt=2, generator=seeded(), **settings).images
    for image, made in zip(arrays(last), expected, strict=True):
        assert (image == np.asarray(made)).all()


def test_generate_keeps_no_earlier_images_until_it_ends(tiny_pipeline):
    with gr.Blocks():
        tab = Generate(Backend(tiny_pipeline("cluster")), gr.State())
    session = Session(made={"ids": []})
    for images, note in tab.generate("tabby", *(1, 3.0), *SAMPLING, session):
        assert len(images) == 1
        assert (session.made is None) == ("row" in note)
    assert set(session.made) == {"ids", "images", "label"}
    assert [note for _, note in tab.generate("1", 1, 3.0, *SAMPLING)][-1].endswith("guidance 3")


SAMPLING = ("constant", 1, 0, 1, 7)


def test_redraw_keeps_the_clusters(client, pipe, picture):
    gallery, note = client.predict(handle_file(picture), "lion", 3, 5, api_name="/redraw")
    ids = ids_of(picture, pipe)
    settings = {"num_images_per_prompt": 3, "generator": seeded(5)}
    new = pipe.redraw(ids=ids, output_type="ids", **settings).images
    clusters = pipe.cluster_map.to_clusters
    assert (clusters(new) == clusters(ids)).all()
    with torch.no_grad():
        pixels = pipe.vq_model.decode(torch.cat([ids, new]))
    expected = pipe.image_processor.postprocess(pixels, output_type="pil")
    for image, made in zip(arrays(gallery)[1:], expected, strict=True):
        assert np.abs(image.astype(int) - np.asarray(made)).max() <= 1
    assert f"{(new != ids).float().mean():.0%}" in note


def test_redraw_takes_the_image_generated_last(address, pipe):
    client = connect(address)
    with pytest.raises(Exception, match=r"^Generate an image first, or upload one\.$"):
        client.predict(None, "lion", 1, 5, api_name="/redraw")
    made, _ = client.predict(**GENERATE, api_name="/generate")
    for image in (None, handle_file(made[0]["image"])):
        gallery, _ = client.predict(image, "lion", 1, 5, api_name="/redraw")
        original, tokens, _ = arrays(gallery)
        assert (original == tokens).all(), "its own ids, not those of the tokenizer"


def test_edit_keeps_the_tokens_outside_the_mask(client, pipe, picture, tmp_path):
    mask = Image.new("RGBA", (128, 96))
    mask.paste((255, 0, 0, 255), (16, 0, 64, 48))  # a quarter of the centered square
    mask.save(tmp_path / "mask.png")
    image = {
        "background": handle_file(picture),
        "layers": [handle_file(tmp_path / "mask.png")],
        "composite": None,
    }
    gallery, note = client.predict(image, "pizza", 1, 3, 5, api_name="/edit")
    ids, cells = ids_of(picture, pipe), torch.zeros(8, 8)
    cells[:4, :4] = 1
    settings = {"mask_image": cells, "guidance_scale": 3.0, "generator": seeded(5)}
    new = pipe("pizza", ids=ids, output_type="ids", **settings).images
    assert (new == ids)[0][cells == 0].all()
    changed = int((new != ids).sum())
    assert note == f"{changed} of 16 tokens changed, 64 in the image."
    with torch.no_grad():
        pixels = pipe.vq_model.decode(torch.cat([ids, new]))
    before, after = pipe.image_processor.postprocess(pixels, output_type="pil")
    shown = arrays(gallery)
    assert np.abs(shown[0].astype(int) - np.asarray(before)).max() <= 1
    assert np.abs(shown[2].astype(int) - np.asarray(after)).max() <= 1
    with pytest.raises(Exception, match="Paint over what should change, or set the strength"):
        client.predict({**image, "layers": []}, "pizza", 1, 3, 5, api_name="/edit")


def test_clusters_lists_the_cut(client, pipe):
    cut = pipe.cluster_map.cut(30)
    seen = []
    for page in (1, 2):
        cards, note, table, _ = client.predict(30, "largest first", page, api_name="/clusters")
        assert len(cards) == len(table) and "30 clusters of 1024 codes" in note
        seen += table
    assert sorted(card["cluster"] for card in seen) == list(range(30))
    sizes = [card["size"] for card in seen]
    assert sizes == sorted(cut.sizes.tolist(), reverse=True)
    assert all(card["codes"] == cut.members(card["cluster"])[:12].tolist() for card in seen)


def test_clusters_come_in_three_orders(client, pipe):
    sizes = pipe.cluster_map.cut(30).sizes
    orders = {
        "largest first": sizes.argsort(descending=True, stable=True),
        "smallest first": sizes.argsort(stable=True),
        "by number": torch.arange(30),
    }
    for order, expected in orders.items():
        *_, table, _ = client.predict(30, order, 1, api_name="/clusters")
        assert [card["cluster"] for card in table] == expected[:24].tolist()


def test_a_card_shows_the_patches_of_its_codes(client):
    cards, _, table, _ = client.predict(30, "largest first", 1, api_name="/clusters")
    card = np.asarray(Image.open(cards[0]["image"]).convert("RGB"))
    assert card.shape == (3 * 42 - 2, 4 * 42 - 2, 3)
    cells = [
        card[row * 42 :][:40, column * 42 :][:, :40] for row in range(3) for column in range(4)
    ]
    assert len(table[0]["codes"]) == 12
    assert all(cell.mean() > 10 for cell in cells) and np.std([c.mean() for c in cells]) > 1


def test_region_tells_id_cluster_and_neighbors(client, pipe, picture):
    *_, note, data = client.predict(handle_file(picture), 300, 2, 6, api_name="/region")
    code, cut = int(ids_of(picture, pipe)[0, 2, 6]), pipe.cluster_map.cut(300)
    cluster = int(cut.mapping[code])
    assert data["id"] == code and data["cluster"] == cluster
    assert data["members"] == cut.members(cluster).tolist()
    codebook = pipe.vq_model.codebook.detach().float()
    means = torch.stack([codebook[cut.members(k)].mean(0) for k in range(300)])
    distances = (means - means[cluster]).norm(dim=1)
    nearest = distances.argsort()[1:9].tolist()
    assert [one["cluster"] for one in data["neighbors"]] == nearest
    for one in data["neighbors"]:
        members = cut.members(one["cluster"])
        height = joining_height(pipe.cluster_map, code, int(members[0]))
        assert one["joined_at"] == pytest.approx(height, rel=1e-5)
    assert f"code {code}" in note


def joining_height(cluster_map, first: int, second: int) -> float:
    """Height at which two codes come together: the first cut that has them in one cluster."""
    low, high = 1, cluster_map.codebook_size
    while high - low > 1:  # together at `low` clusters, apart at `high`
        middle = (low + high) // 2
        mapping = cluster_map.cut(middle).mapping
        together = bool(mapping[first] == mapping[second])
        low, high = (middle, high) if together else (low, middle)
    return cluster_map.heights[cluster_map.codebook_size - high].item()


def test_reconstruct_measures(client, pipe, picture):
    gallery, _, data = client.predict(handle_file(picture), 200, 3, api_name="/reconstruct")
    original, tokens, replaced = (to_pixels(torch.tensor(one))[None] for one in arrays(gallery))
    pairs = {
        "psnr_tokens": (tokens, original),
        "psnr_replaced": (replaced, original),
        "psnr_between": (replaced, tokens),
    }
    for name, (image, reference) in pairs.items():
        assert data[name] == pytest.approx(psnr(image, reference).item(), abs=0.05)
    assert data["psnr_between"] < 40
    ids, cut = ids_of(picture, pipe), pipe.cluster_map.cut(200)
    new = replace_codes(ids, cut, 3)
    with torch.no_grad():
        pixels = pipe.vq_model.decode(torch.cat([ids, new]))
    expected = pipe.image_processor.postprocess(pixels, output_type="pil")
    for image, made in zip(arrays(gallery)[1:], expected, strict=True):
        assert np.abs(image.astype(int) - np.asarray(made)).max() <= 1
    assert data["changed"] == pytest.approx((new != ids).float().mean().item())


def test_reconstruct_with_every_code_alone(client, picture):
    _, note, data = client.predict(handle_file(picture), 1024, 3, api_name="/reconstruct")
    assert data["psnr_between"] is None and data["changed"] == 0
    assert "identical to the tokens; 0% of the codes changed" in note


def test_reconstruct_counts_the_replaced_table_alone(picture):
    pipe = build_scheme("semantic_detail")
    pipe.register_modules(cluster_map=build_map(pipe.vq_model.codebook))
    backend = Backend(pipe)
    tab = SimpleNamespace(backend=backend)
    file = upload(picture)
    *_, data = Reconstruct.reconstruct(tab, file, 12, 5)
    ids = backend.encode(Image.open(picture).convert("RGB"))[..., 0]
    new = replace_codes(ids, backend.map.cut(12), 5)
    assert (new != ids).any()
    assert data["changed"] == pytest.approx((new != ids).float().mean().item())


def upload(path) -> dict:
    """A file as Gradio describes one that was uploaded."""
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return {"path": shutil.copy(path, folder / f"{uuid.uuid4()}{path.suffix}")}


def clicked(backend, path, index) -> tuple[int, int]:
    """Row and column of a click at `index` in a picture file."""
    return Clusters._clicked(
        SimpleNamespace(backend=backend), upload(path), SimpleNamespace(index=index)
    )


def test_clicks_land_in_the_centered_square(tmp_path):
    grid = SimpleNamespace(grid=8)
    wide, turned = tmp_path / "wide.png", tmp_path / "turned.jpg"
    Image.new("RGB", (200, 96)).save(wide)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn, so it is shown 96 wide and 200 high
    Image.new("RGB", (200, 96)).save(turned, exif=exif)
    for row, column in ((0, 0), (2, 6), (7, 7)):
        x, y = (column + 0.5) * 12, (row + 0.5) * 12
        assert clicked(grid, wide, [52 + x, y]) == (row, column)
        assert clicked(grid, turned, [x, 52 + y]) == (row, column)
    assert clicked(grid, wide, [0, 95]) == (7, 0) and clicked(grid, wide, [199, 0]) == (0, 7)


def test_clicks_that_no_page_makes(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (200, 96)).save(path)
    for index in (5, None, "x", [1], ["x", 2], [float("nan"), 0]):
        with pytest.raises(ValueError, match="must be"):
            clicked(SimpleNamespace(grid=8), path, index)
    members = Clusters.members
    for index in (-1, 2, "x", None, [0]):
        with pytest.raises(ValueError, match="card must be"):
            session = Session(shown={"clusters": 30, "cards": [3, 4]})
            members(None, session, SimpleNamespace(index=index))
    with pytest.raises(ValueError, match="not shown yet"):
        members(None, Session(), SimpleNamespace(index=0))


def test_twenty_clients_are_served_in_turn(tiny_pipeline):
    pipe = tiny_pipeline("cluster")
    expected = {
        seed: np.asarray(pipe("tabby", guidance_scale=3.0, generator=seeded(seed)).images[0])
        for seed in range(3)
    }

    def ask(seed):
        values = {**GENERATE, "name": "tabby", "count": 1, "seed": seed}.values()
        (last,) = post(address, "generate", list(values)).split("event: complete\ndata: ")[1:]
        with urllib.request.urlopen(json.loads(last)[0][0]["image"]["url"]) as file:
            return seed, np.asarray(Image.open(file).convert("RGB"))

    with (
        served(build(Backend(pipe))) as address,
        concurrent.futures.ThreadPoolExecutor(20) as pool,
    ):
        for seed, image in pool.map(ask, [i % 3 for i in range(20)]):
            assert (image == expected[seed]).all()


def test_a_closed_stream_stops_the_worker(tiny_pipeline):
    backend = Backend(tiny_pipeline("cluster"))
    stream = backend.sample(0, 1, 7, {})
    calls, forward = [], backend.pipe.transformer.forward

    def slow(*args, **kwargs):
        calls.append(time.sleep(0.05))
        return forward(*args, **kwargs)

    backend.pipe.transformer.forward = slow
    next(stream)
    stream.close()
    with backend.lock:  # the next run has it as soon as the stopped one is out
        pass
    assert len(calls) <= 7, "a row of four tokens, and what was on its way"
    backend.pipe.transformer.forward = forward
    assert len(list(backend.sample(0, 1, 7, {}))) == 4


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


def post(address: str, endpoint: str, data: list) -> str:
    """The last event of a raw API call, as curl would make it."""
    url = f"{address}/gradio_api/call/{endpoint}"
    request = urllib.request.Request(
        url, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        return answer.read().decode()


def test_hostile_values_get_a_sentence(address):
    for change, message in HOSTILE:
        answer = post(address, "generate", list({**GENERATE, **change}.values()))
        assert "event: error" in answer and message in answer, (str(change)[:80], answer[:300])
        assert "Traceback" not in answer and len(answer) < 700
    assert "event: complete" in post(address, "generate", list({**GENERATE, "count": 1}.values()))


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
    for arguments in ([0, 0], [1025, 0], ["100", 0], [100, "by name"], [True, 0]):
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_works(scheme, picture, tmp_path):
    bare = scheme in ("token", "cluster_token")
    pipe = build_scheme(scheme)
    if bare:
        pipe.register_modules(cluster_map=None)
    with served(build(Backend(pipe))) as address:
        client = connect(address)
        made, _ = client.predict(**{**GENERATE, "name": "tabby", "count": 1}, api_name="/generate")
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
