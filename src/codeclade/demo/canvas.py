"""The picture to paint on: Gradio's editor with a bound on the drawings it keeps."""

from abc import ABCMeta
from typing import ClassVar

import gradio as gr
from fastapi import HTTPException
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorDataBlobs

CANVAS = 512  # pixels, width and height
MAX_LAYERS, MAX_PENDING, MAX_PENDING_BYTES = 8, 32, 256_000_000


class WithoutStub(type(gr.ImageEditor)):
    """Gradio's metaclass without the stub file that it writes beside the source of a component."""

    def __new__(cls, *args):
        return ABCMeta.__new__(cls, *args)


class Canvas(gr.ImageEditor, metaclass=WithoutStub):
    """An ImageEditor that keeps a bounded number of drawings until they are asked for.

    Attributes:
        pending: drawings by id, for all canvases: Gradio makes another canvas for a session in
            which an event has changed this one's settings.
    """

    is_template = True  # the page shows what it shows for the class above
    pending: ClassVar[dict[str, EditorDataBlobs]] = {}

    def api_info(self) -> dict:
        """What clients other than the page send; Gradio's own schema does not stand by itself."""
        kind = {"type": "object", "properties": {"_type": {"const": "gradio.FileData"}}}
        file = {"type": "object", "properties": {"path": {"type": "string"}, "meta": kind}}
        background = {**file, "description": "the picture"}
        composite = {**file, "description": "the picture with something drawn on what may change"}
        return {
            "type": "object",
            "properties": {"background": background, "composite": composite},
            "required": ["background"],
        }

    @server
    def accept_blobs(self, data: AcceptBlobs):
        """Keep a background, layer or composite that the page sends ahead of an event."""
        # The page sends a drawing in parts, before the event that uses it and without a place in
        # the queue: what a part may be is said here, as nothing else looks at it.
        try:
            key, index = str(data.data["id"]), data.data["index"] or "null"
            fits = len(key) <= 64 and (index == "null" or 0 <= int(index) < MAX_LAYERS)
            fits = fits and len(data.files) == 1 and isinstance(data.data["type"], str)
        except (AttributeError, KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise HTTPException(400, f"A drawing has an id and at most {MAX_LAYERS} layers.")
        self.blob_storage = self.pending
        super().accept_blobs(data)
        # Oldest first, but never the one that has just come: drawings whose event never follows
        # would otherwise stay for good.
        for oldest in list(self.pending)[:-1]:
            sizes = [drawing_bytes(drawing) for drawing in list(self.pending.values())]
            if len(sizes) > MAX_PENDING or sum(sizes) > MAX_PENDING_BYTES:
                self.pending.pop(oldest, None)


def drawing_bytes(drawing: EditorDataBlobs) -> int:
    """How much a pending drawing holds."""
    parts = [drawing.background, drawing.composite, *drawing.layers]
    return sum(len(part) for part in parts if part)
