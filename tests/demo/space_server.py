"""The Space, loaded from spaces/app.py and served on a loopback port."""

import contextlib
import functools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

APP = Path(__file__).parents[2] / "spaces" / "app.py"


@functools.cache
def space() -> SimpleNamespace:
    """The names of app.py, with the bundled pipeline's app as `demo`."""
    os.environ.setdefault("GRADIO_TEMP_DIR", os.environ["HF_HOME"] + "/gradio")
    names = SimpleNamespace(**runpy.run_path(str(APP)))
    names.engine = sys.modules["engine"]
    return names


@contextlib.contextmanager
def served(demo) -> Iterator[str]:
    """Address of an app that runs while the context lasts."""
    settings = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
    _, address, _ = space().launch(demo, **settings)
    try:
        yield address.rstrip("/")
    finally:
        demo.close(verbose=False)
