"""The backend of a pipeline that takes captions: a text field stands where classes would."""

from typing import Any

from .backend import Backend
from .bounds import MAX_PROMPT, short_text

EXAMPLE, PHOTO = "a golden retriever on a beach", "a cup of espresso"
SHOWN = 60  # letters of a caption in a line of text


class CaptionBackend(Backend):
    """`Backend` of a CodecladeTextPipeline; what a class is there is a caption here."""

    captions = True
    condition_name = "prompt"
    first_label = EXAMPLE
    photo_label = PHOTO
    choices = ()

    def label(self, name: Any) -> str:
        """A caption from a client.

        Raises:
            ValueError: no text, an empty one, or one that is too long.
        """
        text = short_text("prompt", name, MAX_PROMPT).strip()
        if not text:
            raise ValueError("say in the prompt what the image shows.")
        return text

    def choice(self, label: str) -> str:
        """The text of a caption in the field."""
        return label

    def some_label(self) -> str:
        """A caption to make an example of."""
        return EXAMPLE

    def name_of(self, label: str) -> str:
        """The start of a caption."""
        return label if len(label) <= SHOWN else label[: SHOWN - 1] + "…"
