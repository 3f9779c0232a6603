"""Controls that several tabs have."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image

from ..backend import Backend
from ..bounds import MAX_PROMPT, MAX_SEED
from ..canvas import WithoutStub
from ..listeners import endpoint, on_gpu
from ..pictures import enlarge

# Every listener that runs the model is in this group: one at a time, whatever tab it belongs to.
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
BROWSING = {"concurrency_id": "browsing", "concurrency_limit": 2}  # and those that do not
PHOTO = Path(__file__).parents[1] / "espresso.jpg"  # by Rachel Michetti, CC0
RANDOM_SEED = f"() => Math.floor(Math.random() * {MAX_SEED})"


@dataclasses.dataclass
class Session:
    """What the server remembers of one client.

    Listeners change it in place, in the server's process: as an output it would be part of what
    every call answers, and MCP clients could not read the answer.

    Attributes:
        made: the images generated last: `images`, their `ids`, `label`, and which was `chosen`.
        shown: the page of clusters shown last: `clusters` of its cut and those on its `cards`.
    """

    made: dict | None = None
    shown: dict | None = None


class ClassMenu(gr.Dropdown, metaclass=WithoutStub):
    """A Dropdown that takes any text, which Gradio's own tells the page but not other clients."""

    is_template = True

    def api_info(self) -> dict:
        some = ", ".join(value for _, value in self.choices[:3])
        return {"type": "string", "description": f"a class such as {some}, or its number as text"}


def class_menu(backend: Backend, **settings) -> gr.Dropdown | gr.Textbox:
    """All classes, searchable by typing; other names of a class may be typed too.

    Of a pipeline that takes captions: a field for a text.
    """
    if backend.captions:
        given = {"value": backend.first_label, "label": "Prompt", **settings}
        return gr.Textbox(lines=2, max_length=MAX_PROMPT, **given)
    first = backend.choice(backend.first_label)
    return ClassMenu(
        backend.choices,
        filterable=True,
        allow_custom_value=True,
        **{"value": first, "label": "Class", "info": "Type to search", **settings},
    )


def seed_row(value: int = 7) -> gr.Number:
    """A seed, and a button that rolls another one in the browser."""
    with gr.Row(elem_classes="low-row"):
        seed = gr.Number(
            value, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", min_width=120, scale=2
        )
        roll = gr.Button("Random", size="sm", min_width=90, scale=1)
    roll.click(None, None, seed, js=RANDOM_SEED, api_visibility="private")
    return seed


def pictures(label: str, columns: int, kind: str = "few", **settings) -> gr.Gallery:
    """A gallery that downloads PNG; `kind` is a class of the style sheet.

    Cards and codes, to be clicked on, have no buttons.
    """
    buttons = ["download", "download_all", "fullscreen"] if kind in ("few", "many") else []
    return gr.Gallery(
        label=label,
        columns=columns,
        format="png",
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=buttons,
        elem_classes=["pictures", kind],
        **settings,
    )


def image_input(**settings) -> gr.Image:
    """A picture to upload; at first the example photo."""
    return gr.Image(
        PHOTO,
        sources=["upload", "clipboard"],
        type="filepath",
        format="png",
        height=320,
        elem_classes="photo",
        **{"label": "Your image", **settings},
    )


def take_button(
    backend: Backend,
    session: gr.State,
    target: gr.components.Component,
    menu: gr.Dropdown | None = None,
) -> None:
    """A button that puts the chosen one of the last images, or a new one, into `target`.

    Its class goes into the menu of classes, if there is one.
    """

    example = on_gpu(backend.example)

    def take(session):
        # Only a session that has generated nothing yet waits for an example to be sampled.
        session.made = session.made or example()
        image = enlarge(chosen_image(session.made))
        return (image, backend.choice(session.made["label"])) if menu is not None else image

    outputs = [target] + ([menu] if menu is not None else [])
    button = gr.Button("Take a generated image", size="sm", min_width=120)
    button.click(endpoint(take, gpu=False), session, outputs, api_visibility="private", **MODEL)


def shown_first(tab: gr.Tab, function: Callable, inputs: list, outputs: list) -> None:
    """Fill `outputs` when a session opens `tab` for the first time."""

    def first(shown, *values):
        # Remembered for each session: a tab that nobody opens costs no run of the model.
        if shown:
            return (gr.skip(),) * (len(outputs) + 1)
        return *function(*values), True

    shown = gr.State(False)
    tab.select(
        endpoint(first),
        [shown, *inputs],
        [*outputs, shown],
        api_visibility="private",
        preprocess=False,
        show_progress="hidden",
        **MODEL,
    )


def last_made(session: Session | None) -> dict | None:
    """The images that a client generated last; None for clients without a session."""
    return session.made if session is not None else None


def chosen_image(made: dict) -> Image.Image:
    """The image that was clicked last among those generated last; the first without a click."""
    images = made["images"]
    return images[min(made.get("chosen", 0), len(images) - 1)]


def cluster_slider(backend: Backend, **settings) -> gr.Slider:
    """Number of clusters to cut the tree into; hidden where there is nothing to choose."""
    # A slider needs two ends that differ, even where it is hidden since there is nothing to choose.
    low, high = backend.cluster_bounds
    return gr.Slider(
        low,
        max(high, low + 1),
        value=backend.map.num_clusters if backend.map is not None else low,
        step=1,
        label="Clusters",
        visible=low < high,
        **settings,
    )
