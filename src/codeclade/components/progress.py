"""Which progress bars a load shows."""

import contextlib
import os
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def without_weights_bar(source: str | os.PathLike) -> Iterator[None]:
    """Weights of a folder here load without transformers' bar, those of the Hub with it.

    diffusers shows a bar of a pipeline's components, and the other one would stand inside it; when
    components of a Hub pipeline load, they are in a folder already.
    """
    # The switch also silences downloads, so it is left alone where there may be one.
    if not os.path.isdir(source) or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
