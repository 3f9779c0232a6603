"""The codeclade Space: class-conditional images, predicted cluster by cluster of a codebook.

    python app.py

Runs on the CPU with the bundled pipeline, on CUDA where there is some, and on ZeroGPU. Set
CODECLADE_PIPELINE to a folder or Hub id to show another pipeline.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # runpy does not do this

import gradio as gr
from bounds import BodyLimit
from engine import Engine, load
from look import look
from pictures import enlarge
from starlette.middleware import Middleware
from tabs.clusters import Clusters
from tabs.edit import Edit
from tabs.generate import Generate
from tabs.layout import Layout
from tabs.reconstruct import Reconstruct

HEAD = """# codeclade
Class-conditional images, predicted cluster by cluster of a codebook. {side} x {side} pixels from
{grid} x {grid} tokens of {codes} codes{clusters}; {classes} classes."""


def heading(engine: Engine) -> str:
    """What is shown here, in two lines."""
    clusters = f" in {engine.map.num_clusters} clusters" if engine.map is not None else ""
    return HEAD.format(
        side=engine.side,
        grid=engine.grid,
        codes=engine.pipe.vq_model.codebook_size,
        clusters=clusters,
        classes=engine.pipe.transformer.config.num_classes,
    )


def send(button: gr.Button, generate: Generate, target: gr.Image, tabs: gr.Tabs, tab: str) -> None:
    """Let a button take the chosen image to another tab."""

    def take(recent, chosen):
        if not recent:
            return gr.skip(), gr.Tabs(selected=tab)
        images = recent["images"]
        return enlarge(images[min(chosen, len(images) - 1)]), gr.Tabs(selected=tab)

    layout = generate.layout
    inputs = [layout.recent, layout.chosen]
    button.click(take, inputs, [target, tabs], api_visibility="private", show_progress="hidden")


def build(engine: Engine) -> gr.Blocks:
    """The whole app around a pipeline."""
    with gr.Blocks(title="codeclade", delete_cache=(600, 3600)) as demo:  # seconds
        recent = gr.State()  # ids and images this session generated last
        gr.Markdown(heading(engine), elem_classes="head")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                generate = Generate(engine, recent)
            with gr.Tab("New details", id="layout"):
                layout = Layout(engine, recent)
            with gr.Tab("Edit", id="edit"):
                edit = Edit(engine, recent)
            with gr.Tab("Clusters", id="clusters") as tab:
                Clusters(engine, recent, tab)
            with gr.Tab("Reconstruct", id="reconstruct"):
                Reconstruct(engine, recent)
        send(generate.layout.to_layout, generate, layout.image, tabs, "layout")
        send(generate.layout.to_edit, generate, edit.canvas, tabs, "edit")
    return demo.queue(default_concurrency_limit=1, max_size=32)


def launch(demo: gr.Blocks, **settings):
    """Serve `build`'s app with our look and limits; `settings` are Gradio's."""
    limits = {
        "max_file_size": "20mb",
        "state_session_capacity": 200,
        "app_kwargs": {"middleware": [Middleware(BodyLimit)]},
    }
    return demo.launch(**limits, **look(), **settings)


demo = build(Engine(load()))

if __name__ == "__main__":
    launch(demo)
