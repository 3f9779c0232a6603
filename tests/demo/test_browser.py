"""The app in a real browser: every tab, on a desktop and on a phone.

By default each tab is used once; what a second visit finds is `slow`, as every page takes seconds.
"""

import contextlib
import os
import re
import shutil
import time

import pytest
import torch

from codeclade.demo import build
from demo.server import bundled_backend, served

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; name one in CHROMIUM")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
CUT_OFF = """() => [...document.querySelectorAll('.tabitem button, .tabitem input')]
  .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth)
  .map(e => e.textContent || e.ariaLabel)"""
GRADIO_SAYS = "No draw texture found for layer"  # of the painted layer, which it does show
TABS = ("Generate", "Redraw", "Edit", "Clusters", "Reconstruct")


@pytest.fixture(scope="module")
def backend():
    return bundled_backend()


@pytest.fixture(scope="module")
def address(backend):
    with served(build(backend)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["desktop", pytest.param("phone", marks=pytest.mark.slow)])
def page(request, browser, address):
    """A fresh page that must stay quiet, inside loopback and inside its width."""
    with opened(browser, address, request.param) as page:
        yield page


@pytest.fixture
def desktop(browser, address):
    with opened(browser, address, "desktop") as page:
        yield page


@contextlib.contextmanager
def opened(browser, address, size):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)  # for busy machines
    errors, outside = [], []
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    local = (address + "/", "data:", "blob:")
    page.on(
        "request",
        lambda request: None if request.url.startswith(local) else outside.append(request.url),
    )
    page.goto(address)
    button(page, "Generate").wait_for()
    wait_for_note(page, r"An example: espresso, seed 7\s*$")
    yield page
    assert [error for error in errors if error != GRADIO_SAYS] == [] and outside == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def button(page, name):
    return page.get_by_role("button", name=name, exact=True).locator("visible=true").first


def open_tab(page, name):
    """Choose a tab; all of them have room on a phone too."""
    page.get_by_role("tab", name=name, exact=True).locator("visible=true").first.click()


def note(page):
    return page.locator(".note:visible").last.inner_text()


def wait_for_note(page, pattern):
    page.locator(".note:visible", has_text=re.compile(pattern)).last.wait_for()


def generated(page):
    button(page, "Generate").click()
    wait_for_note(page, "guidance 4")


def test_every_tab_works(page):
    wide = page.viewport_size["width"]
    generated(page)
    assert page.locator(".pictures:visible img").count() == 4
    for tab in TABS:
        open_tab(page, tab)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= wide, tab
        assert page.evaluate(CUT_OFF) == [], tab
        assert page.locator("button.primary:visible").count() == (tab != "Clusters"), tab
    button(page, "Take a generated image").click()
    page.locator('[data-testid="image"] img:visible').wait_for()
    button(page, "Reconstruct").click()
    wait_for_note(page, r"dB to the original\. Replaced")
    open_tab(page, "Generate")
    button(page, "Redraw this image").click()
    page.locator('[data-testid="image"] img:visible').wait_for()
    button(page, "Redraw").click()
    wait_for_note(page, r"On average \d+% of the 64 tokens changed")
    assert page.locator(".pictures:visible img").count() == 6
    assert page.locator("text=Error").count() == 0


@contextlib.contextmanager
def slowed(backend, seconds):
    """Every token takes longer; yields a list that grows with each."""
    forward = backend.pipe.transformer.forward

    calls = []

    def slow(*args, **kwargs):
        calls.append(time.sleep(seconds))
        return forward(*args, **kwargs)

    backend.pipe.transformer.forward = slow
    yield calls
    backend.pipe.transformer.forward = forward


@pytest.mark.slow
def test_pictures_stream(desktop, backend):
    with slowed(backend, 0.02):
        button(desktop, "Generate").click()
        seen = []
        while "guidance 4" not in note(desktop):
            picture = desktop.locator(".pictures:visible img").first
            state = picture.get_attribute("src") if picture.count() else None
            if state and (not seen or seen[-1] != state):
                seen.append(state)
            desktop.wait_for_timeout(50)
    assert len(set(seen)) >= 4


def test_stop_stops(desktop, backend):
    with slowed(backend, 0.08) as calls:
        button(desktop, "Generate").click()
        wait_for_note(desktop, "row [1-4] of 8")
        button(desktop, "Stop").click()
        desktop.wait_for_timeout(700)
        with backend.lock:
            made = len(calls)
        assert 8 <= made < 64
        stopped = note(desktop)
        assert re.search("row [1-7] of 8", stopped)
        desktop.wait_for_timeout(700)
        assert len(calls) == made and note(desktop) == stopped
    generated(desktop)


def test_painting_changes_only_what_is_beneath(desktop, backend, monkeypatch):
    generated(desktop)
    decoded, decode = [], backend.decode

    def recorded(ids):
        decoded.append(ids)
        return decode(ids)

    monkeypatch.setattr(backend, "decode", recorded)
    button(desktop, "Edit this image").click()
    canvas = desktop.locator("canvas:visible").first
    canvas.wait_for()
    desktop.wait_for_timeout(4000)  # it is drawn some time after the canvas is there
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    desktop.mouse.move(middle[0] - 20, middle[1])
    desktop.mouse.down()
    desktop.mouse.move(middle[0] + 20, middle[1], steps=4)
    desktop.mouse.up()
    button(desktop, "Edit").click()
    wait_for_note(desktop, r"\d+ of \d+ tokens changed, 64 in the image")
    before, after = decoded[-1]
    source = backend.pipe(
        "espresso",
        num_images_per_prompt=4,
        generator=torch.Generator().manual_seed(7),
        output_type="ids",
    ).images
    assert (before == source[0]).all(), "a generated image keeps its own ids"
    changed = (before != after).any(-1).nonzero()  # either code of a pair
    assert len(changed) > 2
    assert changed.min() >= 1 and changed.max() <= 6, "the stroke is in the middle"
    assert (before != after).any(-1)[2:6, 2:6].sum() >= 2
    painted = int(re.search(r"of (\d+) tokens changed", note(desktop))[1])
    assert len(changed) <= painted < 40


def choose_card(page, card) -> int:
    """Click a card of a cluster and wait for its codes; how many codes it says it has."""
    cluster, size = map(int, re.search(r"(\d+) · (\d+) code", card.inner_text()).groups())
    card.click()
    page.locator("#codes", has_text=f"Codes of cluster {cluster}, {size} of them").wait_for()
    return size


def test_clusters_and_places_can_be_clicked(desktop, backend):
    generated(desktop)
    open_tab(desktop, "Clusters")
    card = desktop.locator("#cards button:has(img)").nth(2)
    card.wait_for()
    codes = desktop.locator("#codes button:has(img)")
    codes.first.wait_for()  # of the first cluster, which is chosen from the start
    size = choose_card(desktop, card)
    playwright.expect(codes).to_have_count(size)
    button(desktop, "Next").click()
    desktop.locator(".note:visible", has_text="Page 2 of 22").first.wait_for()
    button(desktop, "Take a generated image").click()
    wait_for_note(desktop, "Row 4, column 4")
    for picture, row, column in (("Its tokens: click on one", 1, 6), ("Your image", 7, 2)):
        image = desktop.locator(f'.block:has(label:text-is("{picture}")) img:visible').first
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        side = min(box["width"], box["height"])  # the picture is square, in the middle of its box
        left, top = ((box["width"] - side) / 2, (box["height"] - side) / 2)
        place = {"x": left + (column + 0.5) * side / 8, "y": top + (row + 0.5) * side / 8}
        image.click(position=place)
        wait_for_note(desktop, f"Row {row}, column {column}: code")
    assert desktop.locator("#region-codes button:has(img)").count() >= 1
    assert desktop.locator("#neighbors button:has(img)").count() == 8


@pytest.mark.slow
def test_cards_and_codes_are_of_the_cut_shown(desktop, backend, monkeypatch):
    open_tab(desktop, "Clusters")
    desktop.locator("#cards button:has(img)").first.wait_for()
    slider = desktop.locator('input[type="range"]:visible').first
    slider.focus()
    for _ in range(3):
        desktop.keyboard.press("ArrowLeft")
    count = backend.map.num_clusters - 3
    wait_for_note(desktop, f"{count} clusters of 4,096 codes")
    asked = []
    members = type(backend.map).members

    def recorded(cut, cluster):
        asked.append(cut.num_clusters)
        return members(cut, cluster)

    monkeypatch.setattr(type(backend.map), "members", recorded)
    choose_card(desktop, desktop.locator("#cards button:has(img)").nth(1))
    assert set(asked) == {count}


@pytest.mark.slow
def test_pages_end(desktop, backend):
    open_tab(desktop, "Clusters")
    page, last = desktop.get_by_label("Page", exact=True), -(-backend.map.num_clusters // 24)
    wait_for_note(desktop, f"Page 1 of {last}")
    page.fill(str(last))
    page.press("Enter")
    for _ in range(2):
        wait_for_note(desktop, f"Page {last} of {last}")
        button(desktop, "Next").click()
        desktop.wait_for_timeout(700)
    playwright.expect(page).to_have_value(str(last))
    button(desktop, "Back").click()
    wait_for_note(desktop, f"Page {last - 1} of {last}")


@pytest.mark.slow
def test_a_stopped_run_sends_no_earlier_images(desktop, backend):
    generated(desktop)
    with slowed(backend, 0.08):
        button(desktop, "Generate").click()
        wait_for_note(desktop, "row [1-4] of 8")
        button(desktop, "Stop").click()
    button(desktop, "Redraw this image").click()
    button(desktop, "Redraw").wait_for()
    desktop.wait_for_timeout(500)
    photo = desktop.locator('.block:has(label:text-is("Your image")) img:visible')
    assert "espresso" in photo.get_attribute("src"), "the example is still there"


@pytest.mark.slow
def test_the_chosen_image_is_taken_and_cleared(desktop, backend):
    generated(desktop)
    source = backend.pipe(
        "espresso",
        num_images_per_prompt=4,
        generator=torch.Generator().manual_seed(7),
        output_type="ids",
    ).images
    desktop.locator(".pictures:visible button:has(img)").nth(2).click()
    desktop.wait_for_timeout(500)
    open_tab(desktop, "Clusters")
    button(desktop, "Take a generated image").click()
    wait_for_note(desktop, f"Row 4, column 4: code {source[2, 4, 4, 0]},")
    button(desktop, "Remove Image").click()
    desktop.locator("#region-codes button:has(img)").first.wait_for(state="detached")
    assert desktop.locator("#neighbors button:has(img)").count() == 0


def choose(page, name):
    box = page.get_by_label("Class", exact=True).locator("visible=true").first
    box.fill(name)
    box.press("Enter")


def test_errors_are_said_once_and_go_away(desktop):
    toasts = desktop.locator(".toast-body, [data-testid='toast-body']")
    answers = {
        "gold fish": "There is no class 'gold fish'; did you mean goldfish?",
        "hamster": "There is no class 'hamster' among the 16, such as goldfish, king penguin,",
    }
    for name, sentence in answers.items():
        choose(desktop, name)
        button(desktop, "Generate").click()
        # The one before goes with the click, but not before the eye sees the new one.
        toasts.filter(has_text=sentence).first.wait_for()
        desktop.wait_for_timeout(300)
        assert toasts.count() == 1 and desktop.locator("text=Error >> visible=true").count() == 1
        assert desktop.locator(".pictures:visible img").count() == 4, "the images stay"
    choose(desktop, "lion")
    button(desktop, "Generate").click()
    wait_for_note(desktop, "lion, seed 7, guidance 4")
    assert toasts.count() == 0
    assert "Traceback" not in desktop.content()


@pytest.mark.slow
def test_no_tab_opens_empty(desktop):
    """An example is there, and what the tab does with it; links and a sentence are above."""
    page = desktop
    assert page.locator(".pictures:visible img").count() == 4
    head = page.locator(".prose.intro").inner_text()
    assert "A token is one place of the 8 x 8 grid" in head
    links = page.locator(".prose.intro a").evaluate_all("all => all.map(a => a.href)")
    assert "https://arxiv.org/abs/2406.06525" in links and "arxiv.org/abs/2510.04220" in str(links)
    for tab, count, words in (
        ("Redraw", 6, r"On average \d+% of the 64 tokens changed"),
        ("Edit", 2, "Press Edit to sample"),
        ("Reconstruct", 3, "dB to the original"),
        ("Clusters", 24, "Row 4, column 4: code"),
    ):
        open_tab(page, tab)
        wait_for_note(page, words)
        assert page.locator(".pictures:visible img").count() >= count, tab
    assert page.locator('.block:has(label:text-is("Its tokens: click on one")) img').count() == 1


@pytest.mark.slow
def test_edit_keeps_the_class_of_the_picture(desktop):
    open_tab(desktop, "Edit")
    box = desktop.get_by_label("Class", exact=True).locator("visible=true").first
    playwright.expect(box).to_have_value("espresso")
    open_tab(desktop, "Generate")
    choose(desktop, "lion")
    generated(desktop)
    button(desktop, "Edit this image").click()
    playwright.expect(box).to_have_value("lion")


@pytest.mark.slow
def test_on_a_phone_the_images_are_above_the_fold(browser, address):
    with opened(browser, address, "phone") as page:
        generated(page)
        assert page.evaluate("scrollY") == 0
        boxes = [image.bounding_box() for image in page.locator(".pictures:visible img").all()]
        assert len(boxes) == 4
        assert all(box["y"] + box["height"] <= SIZES["phone"][1] for box in boxes)
        assert page.locator(".overflow-menu > button:visible").count() == 0
        for tab in ("Redraw", "Edit", "Reconstruct"):  # so are what they start from, and the button
            open_tab(page, tab)
            box = button(page, tab).bounding_box()
            assert box["y"] + box["height"] <= SIZES["phone"][1], tab
        # A picture of the results is in view once the button was pressed.
        open_tab(page, "Redraw")
        button(page, "Redraw").click()
        wait_for_note(page, "tokens changed")
        page.wait_for_timeout(1500)  # smooth scrolling
        box = page.locator(".pictures:visible img").nth(2).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= SIZES["phone"][1]
