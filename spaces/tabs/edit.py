"""Edit: paint over a part of a picture, and the tokens beneath are sampled anew."""

import io

import gradio as gr
import numpy as np
import torch
from bounds import number, on_white, read_image
from engine import Engine, endpoint
from gradio.components.image_editor import EditorData
from pictures import marked, square_box
from PIL import Image

from codeclade.components.editing import token_mask

from .shared import MODEL, class_menu, pictures, seed_row, take_button

CANVAS = 512
PROGRESS = gr.Progress()  # marks the argument; every run is given its own
EXPLANATION = (
    "Upload an image or take a generated one, paint over what should change, choose what it should "
    "become. Tokens that the brush touches are sampled anew, the others stay."
)


class Edit:
    """The third tab."""

    def __init__(self, engine: Engine, recent: gr.State):
        self.engine = engine
        gr.Markdown(EXPLANATION)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.canvas = self._canvas()
                take_button(engine, recent, self.canvas)
            with gr.Column(scale=3, min_width=300):
                inputs = self._controls()
        gallery = pictures("Before and after", 3)
        note = gr.Markdown(label="Summary", elem_classes="note")
        self.start.click(
            endpoint(self.edit),
            [self.canvas, *inputs, recent],
            [gallery, note],
            api_name="edit",
            preprocess=False,
            **MODEL,
        )

    def edit(self, image, name, strength, guidance_scale, seed, recent, progress=PROGRESS):
        """Sample the painted tokens of an image anew.

        Args:
            image: `background` is the picture, each of `layers` a picture of the same size that is
                opaque where tokens may change; no paint: anywhere.
            name: class name, or class number as text.
            strength: share of these tokens that change, 0 to 1.
            guidance_scale: classifier-free guidance, 0 to 20.
            seed: 0 to 2147483647.

        Returns:
            The picture, the tokens that may change, the result; and how many tokens changed.
        """
        engine = self.engine
        label, strength = engine.label(name), number("strength", strength, 0, 1)
        settings = {
            "strength": strength,
            "guidance_scale": number("guidance scale", guidance_scale, 0, 20),
            "generator": engine.generator(seed),
        }
        picture, mask = self._painted(image)
        if mask is None and strength == 1:
            raise ValueError("paint over what should change, or set the strength below 1.")
        ids, cells = engine.ids_of(picture, recent), torch.ones(engine.grid, engine.grid) > 0
        if mask is not None:
            cells = token_mask(mask, engine.grid)[0]
        new = self._sampled(label, progress, latents=ids, mask_image=cells.float(), **settings)
        changed = int((new != ids).reshape(engine.steps, -1).any(-1).sum())
        before, after = engine.decode(torch.cat([ids, new]))
        shown = marked(before, cells.numpy())
        gallery = [(before, "before"), (shown, "tokens that may change"), (after, "after")]
        return gallery, (
            f"{changed} of {int(cells.sum())} tokens changed, {engine.steps} in the image."
        )

    def _sampled(self, label: int, progress: gr.Progress, **settings) -> torch.Tensor:
        """Ids of the edited image; a client that goes away stops it."""
        engine = self.engine

        def run(callback_on_step_end):
            def after_token(pipe, step, token, kwargs):
                progress((step + 1, engine.steps), unit="tokens")
                return callback_on_step_end(pipe, step, token, kwargs)

            return engine.pipe(
                label, output_type="latent", callback_on_step_end=after_token, **settings
            ).images.cpu()

        (new,) = engine.stream(run)
        return new

    def _painted(self, value) -> tuple[Image.Image, torch.Tensor | None]:
        """Background and mask (H, W), cropped alike; the page sends bytes, clients send files."""
        try:
            data = EditorData.model_validate(value)
        except ValueError:
            raise ValueError("the image must be a background with layers.") from None
        if data.id is not None:
            data = self.canvas.blob_storage.pop(data.id, None) or data
        if data.background is None:
            raise ValueError("upload an image first, or take a generated one.")
        files = [data.background, *(data.layers or [])[:8]]
        sources = [io.BytesIO(file) if isinstance(file, bytes) else file.path for file in files]
        background, *layers = [read_image(source) for source in sources]
        left, top, side = square_box(background.size)
        paint = np.zeros((side, side), bool)
        for layer in layers:
            alpha = np.asarray(layer.resize(background.size).getchannel("A"))
            paint |= alpha[top : top + side, left : left + side] > 127
        return on_white(background), torch.from_numpy(paint) if paint.any() else None

    def _canvas(self) -> gr.ImageEditor:
        return gr.ImageEditor(
            label="Paint over what should change",
            sources=["upload", "clipboard"],
            type="pil",
            format="png",
            canvas_size=(CANVAS, CANVAS),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=48, colors=["#d64884"], color_mode="fixed"),
            eraser=gr.Eraser(default_size=48),
            height=480,
        )

    def _controls(self) -> list:
        """Right side; the inputs of the endpoint after the canvas."""
        name = class_menu(self.engine, info="What the painted part becomes")
        strength = gr.Slider(
            0, 1, value=1, step=0.05, label="Strength", info="Share of painted tokens that change"
        )
        scale = gr.Slider(
            0, 10, value=self.engine.default_guidance, step=0.25, label="Guidance scale"
        )
        seed = seed_row()
        self.start = gr.Button("Edit", variant="primary")
        return [name, strength, scale, seed]
