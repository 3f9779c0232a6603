"""Edit: paint over a part of a picture, and the tokens beneath are sampled anew."""

import io
from collections.abc import Iterator

import gradio as gr
import numpy as np
import torch
from gradio.components.image_editor import EditorData
from PIL import Image, ImageDraw

from ...components.editing import token_mask
from ..backend import Backend
from ..bounds import cached, number, on_white, read_image
from ..canvas import CANVAS, MAX_LAYERS, Canvas
from ..listeners import endpoint
from ..pictures import marked, square_box
from ..streaming import stream
from .controls import (
    MODEL,
    PHOTO,
    class_menu,
    last_made,
    pictures,
    seed_row,
    shown_first,
    take_button,
)

PAINT = "#d64884"
DRAWN = 48  # of 255; how much a pixel differs where something was drawn on it
EXPLANATION = (
    "Paint over what should change, choose what it should become and press Edit. Tokens "
    "that the brush touches are sampled anew, the others stay."
)


def example_drawing() -> tuple[Image.Image, Image.Image]:
    """The example photo, and paint on the cup."""
    photo = Image.open(PHOTO).resize((CANVAS, CANVAS))
    layer = Image.new("RGBA", photo.size)
    eighth = CANVAS // 8
    cup = [2 * eighth, eighth, 6 * eighth - 1, 4 * eighth - 1]  # whole cells of a grid of 8
    ImageDraw.Draw(layer).ellipse(cup, fill=PAINT)
    return photo, layer


class Edit:
    """The third tab."""

    def __init__(self, backend: Backend, session: gr.State, tab: gr.Tab):
        self.backend = backend
        self._sampled = endpoint(self._sample)
        gr.Markdown(EXPLANATION, elem_classes="about")
        with gr.Row(elem_classes=["work", "drawn"]):
            with gr.Column(elem_classes="main", min_width=280):
                self.image = self._canvas()
                self.menu = class_menu(
                    backend,
                    value=backend.choice(backend.photo_label),
                    info="What the painted part becomes; at first the class of the picture",
                )
                with gr.Row(elem_classes="run"):
                    self.start = gr.Button("Edit", variant="primary", scale=2, min_width=80)
                    self.stop = gr.Button("Stop", scale=1, min_width=60)
                    take_button(backend, session, self.image, self.menu)
            with gr.Column(elem_classes="results", min_width=280):
                gallery = pictures("Before and after", 3)
                note = gr.Markdown(label="Summary", elem_classes="note")
            with gr.Column(elem_classes="more", min_width=280):
                inputs = [self.menu, *self._controls()]
        # The endpoint, and what the tab shows before it is used.
        shown_first(tab, self._example, [], [gallery, note])
        running = self.start.click(
            endpoint(self.edit, gpu=False),  # drawings are in this process, not in the GPU's
            [self.image, *inputs, session],
            [gallery, note],
            api_name="edit",
            preprocess=False,
            show_progress="minimal",
            **MODEL,
        )
        self.stop.click(None, cancels=[running], api_visibility="private")

    def edit(
        self, image, name, strength, guidance_scale, seed, session=None
    ) -> Iterator[tuple[list, str]]:
        """Sample the painted tokens of an image anew; yields after every row of tokens.

        Args:
            image: `background` is the picture, `composite` the same with something drawn on it.
                Tokens may change where they differ; or where one of `layers`, of the same size, is
                opaque; without any difference or paint: anywhere.
            name: class name, or class number as text.
            strength: share of these tokens that change, 0 to 1.
            guidance_scale: classifier-free guidance, 0 to 20.
            seed: 0 to 2147483647.

        Returns:
            The picture, the tokens that may change, the result; and how many tokens changed.
        """
        # Checked in this process, before a place on the GPU is asked for.
        backend = self.backend
        label, strength = backend.label(name), number("strength", strength, 0, 1)
        scale = number("guidance scale", guidance_scale, 0, 20)
        seed = backend.generator(seed).initial_seed()
        picture, mask = self._painted(image)
        if mask is None and strength == 1:
            raise ValueError("paint over what should change, or set the strength below 1.")
        # Tokens are whole cells: one touched pixel frees all of its cell. Without paint all are
        # free, and the strength alone bounds the change.
        cells = np.ones((backend.grid, backend.grid), bool)
        if mask is not None:
            cells = token_mask(torch.from_numpy(mask), backend.grid)[0].numpy()
        settings = {"strength": strength, "guidance_scale": scale}
        yield from self._sampled(label, picture, cells, seed, settings, last_made(session))

    def _example(self) -> tuple[list, str]:
        """The example drawing before it is sampled."""
        backend = self.backend
        photo, layer = example_drawing()
        (before,) = backend.decode(backend.encode(photo))
        paint = np.asarray(layer.getchannel("A")) > 127
        cells = token_mask(torch.from_numpy(paint), backend.grid)[0].numpy()
        gallery = [(before, "before"), (marked(before, cells), "tokens that may change")]
        return gallery, "Press Edit to sample the marked tokens anew."

    def _sample(
        self, label: int, picture: Image.Image, cells: np.ndarray, seed: int, settings, made
    ) -> Iterator[tuple[list, str]]:
        """What the endpoint yields, on the GPU; closing it stops the sampling."""
        backend = self.backend
        # The picture before, shown from the first row on.
        ids = backend.ids_of(picture, made)
        (before,) = backend.decode(ids)
        shown = marked(before, cells)
        gallery = [(before, "before"), (shown, "tokens that may change")]

        # Cells and not pixels are the mask, so that exactly what is shown as marked is sampled.
        def run(**callback):
            return backend.pipe(
                label,
                ids=ids,
                mask_image=torch.from_numpy(cells).float(),
                generator=backend.generator(seed),
                output_type="ids",
                **settings,
                **callback,
            ).images.cpu()

        for result in stream(backend, run, lambda tokens, known: known):
            if isinstance(result, int):
                yield gallery, f"Row {result // backend.grid} of {backend.grid}"
        # Both decoded in one batch, so that they differ by their tokens alone.
        before, after = backend.decode(torch.cat([ids, result]))
        changed = int((result != ids).reshape(backend.steps, -1).any(-1).sum())
        yield (
            [*gallery, (after, "after")],
            f"{changed} of {int(cells.sum())} tokens changed, {backend.steps} in the image.",
        )

    def _painted(self, value) -> tuple[Image.Image, np.ndarray | None]:
        """Background and mask (H, W), cropped alike; the page sends bytes, clients send files."""
        # From the page the drawing was sent ahead and is fetched by its id, once; other clients
        # send paths.
        try:
            data = EditorData.model_validate(value)
        except ValueError:
            raise ValueError("the image must be a background with layers.") from None
        if data.id is not None:
            data = Canvas.pending.pop(data.id, None) or data
        if data.background is None:
            raise ValueError("upload an image first, or take a generated one.")
        files = [data.background, *filter(None, (data.layers or [])[:MAX_LAYERS])]
        sources = [
            io.BytesIO(file) if isinstance(file, bytes) else cached(file.path) for file in files
        ]
        background, *layers = [read_image(source) for source in sources]
        # Paint is cropped as the tokenizer crops the picture, or the mask would be shifted.
        left, top, side = square_box(background.size)
        paint = np.zeros((side, side), bool)
        for layer in layers:
            alpha = np.asarray(layer.resize(background.size).getchannel("A"))
            paint |= alpha[top : top + side, left : left + side] > 127
        # The page sends layers, and a composite that it has drawn at another size.
        if not data.layers and data.composite is not None and data.id is None:
            drawn = on_white(read_image(cached(data.composite.path))).resize(background.size)
            gap = np.abs(np.asarray(drawn).astype(int) - np.asarray(on_white(background)))
            paint |= gap.max(-1)[top : top + side, left : left + side] > DRAWN
        return on_white(background), paint if paint.any() else None

    def _canvas(self) -> Canvas:
        photo, layer = example_drawing()
        return Canvas(
            {"background": photo, "layers": [layer], "composite": None},
            label="Paint over what should change",
            sources=["upload", "clipboard"],
            type="pil",
            format="png",
            canvas_size=(CANVAS, CANVAS),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=48, colors=[PAINT], color_mode="fixed"),
            eraser=gr.Eraser(default_size=48),
            height=450,
            elem_classes="drawing",
        )

    def _controls(self) -> list:
        """Other settings; the inputs of the endpoint after the class."""
        strength = gr.Slider(
            0, 1, value=1, step=0.05, label="Strength", info="Share of painted tokens that change"
        )
        scale = gr.Slider(
            0, 10, value=self.backend.default_guidance, step=0.25, label="Guidance scale"
        )
        seed = seed_row(8)  # the seed of Generate would give a class its own tokens again
        return [strength, scale, seed]
