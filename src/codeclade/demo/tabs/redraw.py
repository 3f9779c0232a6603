"""Same layout, new details: the clusters of an image stay, the ids inside them are drawn again.

Of pairs the semantic codes stay.
"""

import gradio as gr
import torch

from ..backend import Backend
from ..bounds import MAX_IMAGES, uploaded
from ..listeners import endpoint
from ..pictures import square
from .controls import (
    MODEL,
    chosen_image,
    class_menu,
    image_input,
    last_made,
    pictures,
    seed_row,
    shown_first,
    take_button,
)

EXPLANATION = (
    "A cluster holds codes that look alike. Here every token keeps its cluster, which is the "
    "layout, and gets another code of it, which is the detail."
)
PAIRS = (
    "A token is a pair of codes. Here every token keeps its semantic code, which is the layout, "
    "and gets another detail code."
)
NO_CLUSTERS = "This pipeline has no clusters to keep: it needs a cluster map or two stages."


class Redraw:
    """The second tab."""

    def __init__(self, backend: Backend, session: gr.State, tab: gr.Tab):
        self.backend = backend
        self.two_stages = backend.pipe.transformer.scheme.two_stages
        self.able = self.two_stages or backend.pipe.cluster_map is not None
        about = PAIRS if backend.pipe.transformer.scheme.detail_codes else EXPLANATION
        gr.Markdown(about if self.able else NO_CLUSTERS, elem_classes="about")
        # The class is made before the button that sets it and shown after.
        with gr.Row(elem_classes="work"):
            with gr.Column(elem_classes="main", min_width=280):
                name = class_menu(
                    backend,
                    value=backend.choice(backend.photo_label),
                    visible=self.two_stages,
                    info="Guides the second stage",
                    render=False,
                )
                self.image = image_input()
                with gr.Row(elem_classes="run"):
                    start = gr.Button("Redraw", variant="primary", interactive=self.able)
                    take_button(backend, session, self.image, name)
            with gr.Column(elem_classes="results", min_width=280):
                gallery = pictures("Original and variants", 3)
                note = gr.Markdown(label="Summary", elem_classes="note")
            with gr.Column(elem_classes="more", min_width=280):
                name.render()
                count = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Variants")
                seed = seed_row()
        # The endpoint, and what the tab shows before it is used.
        self.menu = name
        inputs, outputs = [self.image, name, count, seed, session], [gallery, note]
        if self.able:
            shown_first(tab, self.redraw, inputs, outputs)
        start.click(
            endpoint(self.redraw),
            inputs,
            outputs,
            api_name="redraw",
            preprocess=False,
            **MODEL,
        )

    def redraw(self, image, name, count, seed, session=None) -> tuple[list, str]:
        """Keep the clusters or semantic codes of an image and draw the rest of its tokens again.

        Args:
            image: an image; none: the chosen one of those this session generated last.
            name: class name, or class number as text; two-stage pipelines alone need it.
            count: variants, 1 to 8.
            seed: 0 to 2147483647.

        Returns:
            The image as it was given and as its tokens show it, then the variants; and the mean
            share of tokens that changed.
        """
        backend = self.backend
        if not self.able:
            raise ValueError(NO_CLUSTERS)
        # Everything that came from the client is checked before the model runs.
        count, generator = backend.count(count), backend.generator(seed)
        picture, made = uploaded(image), last_made(session)
        if picture is None and not made:
            raise ValueError("generate an image first, or upload one.")
        picture = chosen_image(made) if picture is None else picture
        # Only a second stage is conditioned on a class; members of a map are drawn without one. The
        # lock keeps a run in another thread from changing the pipeline's guidance scale.
        ids = backend.ids_of(picture, made)
        labels = {backend.condition_name: backend.label(name)} if self.two_stages else {}
        with backend.lock:
            new = backend.pipe.redraw(
                ids=ids,
                num_images_per_prompt=count,
                generator=generator,
                output_type="ids",
                **labels,
            ).images.cpu()
        # A pair of codes is one token, changed if either is. All is decoded in one batch, so that
        # pictures differ by their tokens alone.
        changed = (new != ids.cpu()).reshape(count, backend.steps, -1).any(-1).float().mean(1)
        shown = backend.decode(torch.cat([ids.cpu(), new]))
        captions = ["as tokens"] + [f"{share:.0%} of tokens changed" for share in changed.tolist()]
        gallery = [(square(picture, backend.side), "original"), *zip(shown, captions, strict=True)]
        return gallery, f"On average {changed.mean():.0%} of the {backend.steps} tokens changed."
