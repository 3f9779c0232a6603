"""The app of the bundled pipeline, and apps served on a loopback port."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

# Read when gradio is imported.
os.environ.setdefault("GRADIO_TEMP_DIR", os.environ["HF_HOME"] + "/gradio")

import gradio as gr

from codeclade import CodecladePipeline, bundled
from codeclade.demo import build, start
from codeclade.demo.backend import Backend

APP = Path(__file__).parents[2] / "spaces" / "app.py"


def bundled_backend(version: str = "") -> Backend:
    """A backend of a bundled pipeline."""
    pipe = CodecladePipeline.from_pretrained(bundled(version))
    pipe.set_progress_bar_config(disable=True)
    return Backend(pipe)


@functools.cache
def bundled_app() -> gr.Blocks:
    """The app of the bundled pipeline, built once."""
    return build(bundled_backend())


@contextlib.contextmanager
def served(demo: gr.Blocks) -> Iterator[str]:
    """Address of an app that runs while the context lasts."""
    address = start(demo, server_name="127.0.0.1")
    try:
        yield address
    finally:
        demo.close(verbose=False)
