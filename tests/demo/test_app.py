"""The app's endpoints: right answers."""

import concurrent.futures
import json
import shutil
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
from gradio_client import handle_file
from PIL import ExifTags, Image

from builders import build_map, build_scheme
from codeclade.data.pixels import to_pixels
from codeclade.demo import build
from codeclade.demo.backend import Backend
from codeclade.demo.tabs.clusters import Clusters
from codeclade.demo.tabs.controls import Session
from codeclade.demo.tabs.generate import Generate
from codeclade.demo.tabs.reconstruct import Reconstruct
from codeclade.demo.tabs.redraw import Redraw
from codeclade.evaluation.replacement import replace_codes
from codeclade.metrics.image_quality import psnr
from demo.app_client import GENERATE, arrays, connect, ids_of, post, seeded
from demo.server import bundled_backend, served


def test_generate_streams_and_ends_with_what_the_pipeline_makes(client, pipe):
    asked = GENERATE | {"count": 2}
    *parts, last = list(client.submit(**asked, api_name="/generate"))
    named = {"guidance_scale": 3.0, "temperature": 1.0, "num_images_per_prompt": 2}
    expected = pipe("lion", generator=seeded(), **named).images
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
    expected = pipe("lion", generator=seeded(), **settings).images
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
    new = pipe.redraw(ids=ids, class_labels="lion", output_type="ids", **settings).images
    assert (new[..., 0] == ids[..., 0]).all(), "the semantic codes stay"
    with torch.no_grad():
        pixels = pipe.vq_model.decode(torch.cat([ids, new]))
    expected = pipe.image_processor.postprocess(pixels, output_type="pil")
    for image, made in zip(arrays(gallery)[1:], expected, strict=True):
        assert np.abs(image.astype(int) - np.asarray(made)).max() <= 1
    assert f"{(new != ids).any(-1).float().mean():.0%}" in note


def test_redraw_of_single_ids_keeps_the_clusters(picture):
    backend = bundled_backend("ids")
    tab = SimpleNamespace(backend=backend, able=True, two_stages=False)
    _, note = Redraw.redraw(tab, upload(picture), "lion", 3, 5)
    pipe = backend.pipe
    ids, settings = ids_of(picture, pipe), {"num_images_per_prompt": 3, "generator": seeded(5)}
    new = pipe.redraw(ids=ids, output_type="ids", **settings).images
    clusters = pipe.cluster_map.to_clusters
    assert (clusters(new) == clusters(ids)).all()
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
    changed = int((new != ids).any(-1).sum())
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
        assert len(cards) == len(table) and "30 clusters of 4,096 codes" in note
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
    code, cut = int(ids_of(picture, pipe)[0, 2, 6, 0]), pipe.cluster_map.cut(300)
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
    new = replace_codes(ids, cut, 3, table=0)
    with torch.no_grad():
        pixels = pipe.vq_model.decode(torch.cat([ids, new]))
    expected = pipe.image_processor.postprocess(pixels, output_type="pil")
    for image, made in zip(arrays(gallery)[1:], expected, strict=True):
        assert np.abs(image.astype(int) - np.asarray(made)).max() <= 1
    assert data["changed"] == pytest.approx((new != ids).any(-1).float().mean().item())


def test_reconstruct_with_every_code_alone(client, picture):
    _, note, data = client.predict(handle_file(picture), 4096, 3, api_name="/reconstruct")
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
        if "stage" in kwargs:  # logits of a token that was counted
            return forward(*args, **kwargs)
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
