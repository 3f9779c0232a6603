"""Controls that several tabs have."""

import gradio as gr
from PIL import Image

from ..backend import Backend
from ..bounds import MAX_SEED
from ..listeners import endpoint
from ..pictures import enlarge

# Every listener that runs the model is in this group: one at a time, whatever tab it belongs to.
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
BROWSING = {"concurrency_id": "browsing", "concurrency_limit": 2}  # and those that do not
RANDOM_SEED = f"() => Math.floor(Math.random() * {MAX_SEED})"


def class_menu(backend: Backend, **settings) -> gr.Dropdown:
    """All classes, searchable by typing; other names of a class may be typed too."""
    choices = backend.choices
    return gr.Dropdown(
        choices,
        value=choices[0][1],
        label="Class",
        filterable=True,
        allow_custom_value=True,
        **{"info": "Type to search", **settings},
    )


def seed_row() -> gr.Number:
    """A seed, and a button that rolls another one in the browser."""
    with gr.Row(elem_classes="low-row"):
        seed = gr.Number(
            7, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", min_width=120, scale=2
        )
        roll = gr.Button("Random", min_width=90, scale=1)
    roll.click(None, None, seed, js=RANDOM_SEED, api_visibility="private")
    return seed


def pictures(label: str, columns: int, kind: str = "few", **settings) -> gr.Gallery:
    """A gallery that downloads PNG; `kind` is a class of the style sheet."""
    return gr.Gallery(
        label=label,
        columns=columns,
        format="png",
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=["download", "download_all", "fullscreen"],
        elem_classes=["pictures", kind],
        **settings,
    )


def image_input(backend: Backend, recent: gr.State, **settings) -> gr.Image:
    """A picture to upload, or taken from what was generated last."""
    image = gr.Image(
        label="Your image",
        sources=["upload", "clipboard"],
        type="filepath",
        format="png",
        height=320,
        **settings,
    )
    take_button(backend, recent, image)
    return image


def take_button(backend: Backend, recent: gr.State, target: gr.components.Component) -> None:
    """A button that puts the chosen one of the last images, or a new one, into `target`."""

    def take(recent):
        recent = recent or backend.example()
        return enlarge(chosen_image(recent)), recent

    button = gr.Button("Take a generated image", size="sm")
    button.click(endpoint(take), recent, [target, recent], api_visibility="private", **MODEL)


def chosen_image(recent: dict) -> Image.Image:
    """The image that was clicked last among those generated last; the first without a click."""
    images = recent["images"]
    return images[min(recent.get("chosen", 0), len(images) - 1)]


def cluster_slider(backend: Backend, **settings) -> gr.Slider:
    """Number of clusters to cut the tree into; hidden where there is nothing to choose."""
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
