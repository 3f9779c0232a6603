"""Generate: choose a class and watch the images appear row by row."""

import contextlib
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr

from ..backend import Backend
from ..bounds import MAX_IMAGES, number
from ..listeners import endpoint, on_gpu
from .controls import BROWSING, MODEL, class_menu, pictures, seed_row

EXAMPLES, EXAMPLE_SEED = 4, 7
SCHEDULES = (
    "How guidance changes over the image. constant: everywhere; interval: first half only; linear "
    "and cosine_power: rising; attention: more where the class is looked at."
)


class Generate:
    """The first tab; `layout` is a namespace with the components that other tabs are fed from."""

    def __init__(self, backend: Backend, session: gr.State):
        self.backend = backend
        self.layout = SimpleNamespace(session=session)
        with gr.Row(elem_classes="work"):
            # A phone shows these one below the other, a wide page the second beside both others.
            with gr.Column(elem_classes="main", min_width=280):
                name = self._class()
            with gr.Column(elem_classes="results", min_width=280):
                self._results()
            with gr.Column(elem_classes="more", min_width=280):
                inputs = [name, *self._controls()]
        outputs = [self.layout.gallery, self.layout.note]
        # Stop cancels the run, so its event must be known.
        running = self.layout.start.click(
            endpoint(self.generate, gpu=False),  # a client's memory is in this process
            [*inputs, session],
            outputs,
            api_name="generate",
            preprocess=False,
            show_progress="minimal",
            **MODEL,
        )
        self.layout.stop.click(None, cancels=[running], api_visibility="private")
        # What a page shows at first is drawn once, when somebody asks.
        self._first: tuple | None = None  # files and memory of what a page shows when it opens
        self._sampled = on_gpu(backend.sample)
        self.layout.first = endpoint(self._opened, gpu=False), [session], outputs

    def generate(
        self,
        name,
        count,
        guidance_scale,
        guidance_schedule,
        temperature,
        top_k,
        top_p,
        seed,
        session=None,
    ) -> Iterator[tuple]:
        """Generate images of a class; yields the images so far after every row of tokens.

        Args:
            name: class name, or class number as text; of a pipeline of captions: the caption.
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
        # All settings are checked before the first token: an error after half of the rows would be
        # late.
        label, count = backend.label(name), backend.count(count)
        settings = backend.settings(guidance_scale, guidance_schedule, temperature, top_k, top_p)
        seed = backend.generator(seed).initial_seed()
        name = backend.name_of(label)
        # Unfinished images have no ids to remember: those of earlier ones go with the first row.
        for images, row, made in self._rows(label, count, seed, settings):
            if session is not None:  # stopped early, no older images are taken for those shown
                session.made = made
            yield images, f"{name}, seed {seed}" + (row or f", guidance {guidance_scale:g}")

    def _rows(self, label: int, count: int, seed: int, settings: dict) -> Iterator[tuple]:
        """Images after every row of tokens, which row that is, and with the last how to keep them.

        Closing it stops the sampling.
        """
        # Gradio closes this generator when a client stops; `closing` hands that on to the thread of
        # the run, which would go on for nobody.
        grid = self.backend.grid
        with contextlib.closing(self._sampled(label, count, seed, settings)) as results:
            for known, images, ids in results:
                made = None if ids is None else {"ids": ids, "images": images, "label": label}
                yield images, "" if made else f": row {known // grid} of {grid}", made

    def _opened(self, session) -> Iterator[tuple]:
        """The example images, which the first page that is opened samples for all others."""
        label = self.backend.first_label
        run = self._rows(label, EXAMPLES, EXAMPLE_SEED, {})
        caption = f"An example: {self.backend.name_of(label)}, seed {EXAMPLE_SEED}"
        # Sampled for the first visitor, not at start, so that a Space asks for its GPU only when
        # somebody is there.
        if self._first is None:
            with contextlib.closing(run):
                for images, row, made in run:
                    session.made = made
                    yield images, caption + row
            # Kept as files: Gradio would write images again while other pages load them.
            self._files = tempfile.TemporaryDirectory(prefix="codeclade-example-")
            paths = [f"{self._files.name}/{number}.png" for number in range(len(images))]
            for image, path in zip(images, paths, strict=True):
                image.save(path)
            self._first = paths, made
        paths, session.made = self._first
        yield paths, caption

    def _class(self) -> gr.Dropdown:
        """What most people choose, and the button."""
        name = class_menu(self.backend)
        with gr.Row(elem_classes="run"):
            self.layout.start = gr.Button("Generate", variant="primary", scale=3, min_width=120)
            self.layout.stop = gr.Button("Stop", scale=1, min_width=70)
        return name

    def _controls(self) -> list:
        """All other inputs of the endpoint in its order."""
        backend = self.backend
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
        return [count, scale, schedule, temperature, top_k, top_p, seed]

    def _results(self) -> None:
        """Right side, with the way to the other tabs."""
        layout = self.layout
        layout.gallery = pictures("Images", 2, "many")
        layout.note = gr.Markdown(
            "Example images are on their way.", label="Summary", elem_classes="note"
        )
        with gr.Row():
            layout.to_redraw = gr.Button("Redraw this image", size="sm", min_width=120)
            layout.to_edit = gr.Button("Edit this image", size="sm", min_width=120)

        # The image that was clicked on is the one that other tabs take.
        def choose(session, event: gr.SelectData):
            chosen = number("image", getattr(event, "index", None), 0, MAX_IMAGES - 1, integer=True)
            if session.made:  # the example images are those of many sessions
                session.made = session.made | {"chosen": chosen}

        layout.gallery.select(
            endpoint(choose, gpu=False),
            layout.session,
            None,
            show_progress="hidden",
            api_visibility="private",
            **BROWSING,
        )
