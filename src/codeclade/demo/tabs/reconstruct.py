"""Reconstruct: what the tokenizer keeps of a picture, and what its clusters keep of that."""

import math

import gradio as gr
import torch

from ...evaluation.replacement import decode_all, replace_codes
from ...metrics.image_quality import psnr
from ..backend import Backend
from ..bounds import MAX_SEED, number, uploaded
from ..listeners import endpoint
from ..pictures import square
from .controls import (
    MODEL,
    cluster_slider,
    image_input,
    pictures,
    seed_row,
    shown_first,
    take_button,
)

EXPLANATION = (
    "The picture as its tokens show it, then with every code replaced by a random member of its "
    "cluster (of pairs the semantic one). The less that changes, the better the clusters."
)


class Reconstruct:
    """The fifth tab."""

    def __init__(self, backend: Backend, session: gr.State, tab: gr.Tab):
        self.backend = backend
        gr.Markdown(EXPLANATION, elem_classes="about")
        if backend.map is None:
            gr.Markdown("This pipeline has no cluster map, so nothing is replaced.")
        with gr.Row(elem_classes="work"):
            with gr.Column(elem_classes="main", min_width=280):
                image = image_input()
                with gr.Row(elem_classes="run"):
                    start = gr.Button("Reconstruct", variant="primary")
                    take_button(backend, session, image)
            with gr.Column(elem_classes="results", min_width=280):
                gallery = pictures("Original, tokens, replaced", 3)
                note = gr.Markdown(label="Summary", elem_classes="note")
            with gr.Column(elem_classes="more", min_width=280):
                clusters = cluster_slider(backend, info="Fewer clusters are coarser")
                seed = seed_row()
        # One endpoint for the button, the first look and the slider.
        data = gr.JSON(label="Data", visible=False)
        inputs, outputs = [image, clusters, seed], [gallery, note, data]
        shown_first(tab, self.reconstruct, inputs, outputs)
        settings = {"preprocess": False, **MODEL}
        run = endpoint(self.reconstruct)
        start.click(run, inputs, outputs, api_name="reconstruct", **settings)
        clusters.input(  # keys move a slider too, and do not release it
            endpoint(self._moved),
            inputs,
            outputs,
            api_visibility="private",
            trigger_mode="always_last",
            **settings,
        )

    def _moved(self, image, *rest) -> tuple:
        """The same with another number of clusters; nothing as long as there is no image."""
        return self.reconstruct(image, *rest) if image is not None else (gr.skip(),) * 3

    def reconstruct(self, image, clusters, seed) -> tuple[list, str, dict]:
        """Tokenize and decode an image, then with codes replaced inside their clusters.

        Args:
            image: an image; its centered square is taken.
            clusters: number of clusters to cut the tree into.
            seed: of the replacement, 0 to 2147483647.

        Returns:
            Original, reconstruction and replaced picture, what they score, and the scores as data:
            PSNR in dB to the original, and of the replaced picture to the reconstruction, null
            where the two are identical; and the share of (semantic) codes that changed.
        """
        backend = self.backend
        # Everything that came from the client is checked before the model runs.
        seed = number("seed", seed, 0, MAX_SEED, integer=True)
        cut = backend.cut(clusters) if backend.map is not None else None
        picture = uploaded(image)
        if picture is None:
            raise ValueError("upload an image first, or take a generated one.")
        pixels, ids = backend.pixels(picture), backend.encode(picture).cpu()
        versions = [("tokens", ids)]
        if cut is not None:
            table = 0 if backend.pairs else None
            versions.append((f"{cut.num_clusters} clusters", replace_codes(ids, cut, seed, table)))
        # One batch through the decoder: the tokens as they are, and replaced.
        every = torch.cat([new for _, new in versions]).to(backend.device)
        shown = decode_all(backend.pipe.vq_model, every).float().cpu()
        scores = psnr(shown, pixels.expand_as(shown)).tolist()
        # The same numbers as data and as a sentence.
        data = {"psnr_tokens": scores[0]}
        note = f"Tokens: {scores[0]:.1f} dB to the original."
        if cut is not None:
            between = psnr(shown[1:], shown[:1]).item()
            different = versions[1][1] != ids
            share = (different[..., 0] if backend.pairs else different).float().mean().item()
            alike = math.isinf(between)
            data |= {"psnr_replaced": scores[1], "changed": share}
            data["psnr_between"] = None if alike else between
            distance = "identical to the tokens" if alike else f"{between:.1f} dB to the tokens"
            note += (
                f" Replaced: {scores[1]:.1f} dB to the original, {distance}; "
                f"{share:.0%} of the codes changed."
            )
        # Original first, so that each picture stands beside the one it is compared with.
        gallery = [(square(picture, backend.side), "original")]
        pictures = backend.pipe.image_processor.postprocess(shown, output_type="pil")
        for (caption, _), score, one in zip(versions, scores, pictures, strict=True):
            gallery.append((one, f"{caption}: {score:.1f} dB"))
        return gallery, note, data
