"""The app put together: the tabs around one pipeline, the queue, the server and its limits."""

import os

import gradio as gr
from starlette.middleware import Middleware

from .. import CodecladePipeline, bundled
from .backend import Backend
from .middleware import Listeners, Refusals
from .pictures import enlarge
from .queueing import FairQueue
from .tabs.clusters import Clusters
from .tabs.controls import BROWSING, chosen_image
from .tabs.edit import Edit
from .tabs.generate import Generate
from .tabs.reconstruct import Reconstruct
from .tabs.redraw import Redraw
from .theme import appearance

HEAD = """# codeclade
Class-conditional images, predicted cluster by cluster of a codebook. {side} x {side} pixels from
{grid} x {grid} tokens of {codes} codes{clusters}; {classes} classes."""


def heading(backend: Backend) -> str:
    """What is shown here, in two lines."""
    clusters = f" in {backend.map.num_clusters} clusters" if backend.map is not None else ""
    return HEAD.format(
        side=backend.side,
        grid=backend.grid,
        codes=backend.pipe.vq_model.codebook_size,
        clusters=clusters,
        classes=backend.pipe.transformer.config.num_classes,
    )


def send(button: gr.Button, generate: Generate, target: gr.Image, tabs: gr.Tabs, tab: str) -> None:
    """Let a button take the chosen image to another tab."""

    def take(recent):
        image = enlarge(chosen_image(recent)) if recent else gr.skip()
        return image, gr.Tabs(selected=tab)

    private = {"api_visibility": "private", "show_progress": "hidden", **BROWSING}
    button.click(take, generate.layout.recent, [target, tabs], **private)


def build(backend: Backend) -> gr.Blocks:
    """The whole app around a pipeline."""
    with gr.Blocks(title="codeclade", delete_cache=(600, 3600)) as demo:  # seconds
        recent = gr.State()  # ids and images this session generated last
        gr.Markdown(heading(backend), elem_classes="head")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                generate = Generate(backend, recent)
            with gr.Tab("New details", id="redraw"):
                redraw = Redraw(backend, recent)
            with gr.Tab("Edit", id="edit"):
                edit = Edit(backend, recent)
            with gr.Tab("Clusters", id="clusters") as tab:
                Clusters(backend, recent, tab)
            with gr.Tab("Reconstruct", id="reconstruct"):
                Reconstruct(backend, recent)
        send(generate.layout.to_layout, generate, redraw.image, tabs, "redraw")
        send(generate.layout.to_edit, generate, edit.canvas, tabs, "edit")
    demo.queue()
    demo._queue = FairQueue(demo)
    return demo


def create() -> gr.Blocks:
    """The app of the pipeline CODECLADE_PIPELINE names (a folder or Hub id), else the bundled one.

    Raises:
        ValueError, OSError: there is no pipeline of that name, or it is damaged.
    """
    pipe = CodecladePipeline.from_pretrained(os.environ.get("CODECLADE_PIPELINE") or bundled())
    pipe.set_progress_bar_config(disable=True)
    return build(Backend(pipe))


def start(demo: gr.Blocks, **settings) -> str:
    """Serve the app in the background; its address.

    Args:
        settings: those of `gr.Blocks.launch`.
    """
    limits = {
        "max_file_size": "20mb",
        "state_session_capacity": 200,
        "enable_monitoring": False,
        "app_kwargs": {"middleware": [Middleware(Refusals), Middleware(Listeners, demo=demo)]},
    }
    quiet = {"quiet": True, "prevent_thread_lock": True}
    _, address, _ = demo.launch(**limits, **quiet, **appearance(), **settings)
    return address.rstrip("/")


def launch(demo: gr.Blocks, **settings) -> None:
    """Serve the app until the process is interrupted; `settings` as in `start`."""
    print(f"The app runs at {start(demo, **settings)} until you press Ctrl-C.", flush=True)
    demo.block_thread()
