"""Generate: choose a class and watch the images appear row by row."""

from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr

from ..backend import Backend
from ..bounds import MAX_IMAGES, number
from ..listeners import endpoint
from .controls import BROWSING, MODEL, class_menu, pictures, seed_row

SCHEDULES = (
    "How guidance changes over the image. constant: everywhere; interval: first half only; linear "
    "and cosine_power: rising; attention: more where the class is looked at."
)


class Generate:
    """The first tab; `layout` is a namespace with the components that other tabs are fed from."""

    def __init__(self, backend: Backend, recent: gr.State):
        self.backend = backend
        self.layout = SimpleNamespace(recent=recent)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                inputs = self._controls()
            with gr.Column(scale=3, min_width=300):
                self._results()
        outputs = [self.layout.gallery, self.layout.note, recent]
        running = self.layout.start.click(
            endpoint(self.generate),
            inputs,
            outputs,
            api_name="generate",
            preprocess=False,
            show_progress="minimal",
            **MODEL,
        )
        self.layout.stop.click(None, cancels=[running], api_visibility="private")

    def generate(
        self, name, count, guidance_scale, guidance_schedule, temperature, top_k, top_p, seed
    ) -> Iterator[tuple]:
        """Generate images of a class; yields the images so far after every row of tokens.

        Args:
            name: class name, or class number as text.
            count: images, 1 to 8.
            guidance_scale: classifier-free guidance, 0 to 20; up to 1 the class alone speaks.
            guidance_schedule: how the scale changes from token to token.
            temperature: 0 (most likely tokens) to 5.
            top_k: sample among so many most likely tokens; 0: all.
            top_p: sample among the most likely tokens that hold this share.
            seed: 0 to 2147483647; same seed, same image.

        Returns:
            The images as PNG files, and a line that says what they are.
        """
        backend = self.backend
        label, count = backend.label(name), backend.count(count)
        settings = backend.settings(guidance_scale, guidance_schedule, temperature, top_k, top_p)
        seed = backend.generator(seed).initial_seed()
        name = backend.name_of(label)
        for known, images, ids in backend.sample(label, count, seed, settings):
            if ids is None:
                rows = f"{known // backend.grid} of {backend.grid}"
                # Stopped here, no earlier images may be sent on as if they were those shown.
                yield images, f"{name}, seed {seed}: row {rows}", None
            else:
                made = {"ids": ids, "images": images}
                yield images, f"{name}, seed {seed}, guidance {guidance_scale:g}", made

    def _controls(self) -> list:
        """Left side; the inputs of the endpoint in its order."""
        backend = self.backend
        name = class_menu(backend)
        count = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Images")
        scale = gr.Slider(
            0,
            10,
            value=backend.default_guidance,
            step=0.25,
            label="Guidance scale",
            info="Higher is more typical of the class, with less variety",
        )
        seed = seed_row()
        with gr.Accordion("Sampling", open=False):
            default = backend.pipe.config
            schedule = gr.Dropdown(
                backend.schedules,
                value=backend.default_schedule,
                label="Guidance schedule",
                info=SCHEDULES,
            )
            temperature = gr.Slider(0, 2, value=default.temperature, step=0.05, label="Temperature")
            top_k = gr.Slider(0, 1000, value=default.top_k, step=1, label="Top-k (0: all)")
            top_p = gr.Slider(0.05, 1, value=default.top_p, step=0.01, label="Top-p")
        with gr.Row():
            self.layout.start = gr.Button("Generate", variant="primary", scale=2, min_width=120)
            self.layout.stop = gr.Button("Stop", scale=1, min_width=80)
        return [name, count, scale, schedule, temperature, top_k, top_p, seed]

    def _results(self) -> None:
        """Right side, with the way to the other tabs."""
        layout = self.layout
        layout.gallery = pictures("Images", 2, "many")
        layout.note = gr.Markdown(
            "Choose a class and press Generate.", label="Summary", elem_classes="note"
        )
        with gr.Row():
            layout.to_layout = gr.Button("New details, same layout", size="sm")
            layout.to_edit = gr.Button("Edit", size="sm")

        def choose(recent, event: gr.SelectData):
            chosen = number("image", getattr(event, "index", None), 0, MAX_IMAGES - 1, integer=True)
            return recent | {"chosen": chosen} if recent else gr.skip()

        layout.gallery.select(
            endpoint(choose, gpu=False),
            layout.recent,
            layout.recent,
            show_progress="hidden",
            api_visibility="private",
            **BROWSING,
        )
