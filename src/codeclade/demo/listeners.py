"""Functions as Gradio listeners: on the GPU of a Space, with errors as sentences for the user.

On ZeroGPU a listener runs in a process of its own that is forked from the server: what it changes
is not seen again, so everything it finds out is returned.
"""

import functools
import html
import inspect
import traceback
from collections.abc import Callable

import gradio as gr

SHOWN = 6  # seconds of an error on the page; the next press of a button takes it away

try:
    from spaces import GPU  # Hugging Face's package, which only a Space has
except ImportError:

    def GPU(function):
        return function


def on_gpu(function: Callable) -> Callable:
    """`function` where the GPU of a Space may be used; the same function everywhere else."""
    return GPU(function)


def sentence(error: Exception) -> gr.Error:
    """What the user is told of an error; anything but a ValueError is a fault of ours, logged."""
    # Our ValueErrors are written for users; what any other error says may tell of paths and code.
    message = str(error)
    if not isinstance(error, ValueError):
        traceback.print_exception(error)
        message = f"the server could not do this ({type(error).__name__})."
    message = message if len(message) < 400 else message[:400] + " ..."
    message = html.escape(message[:1].upper() + message[1:], quote=False)  # shown as HTML
    return gr.Error(message, duration=SHOWN, print_exception=False)


def endpoint(function: Callable, gpu: bool = True) -> Callable:
    """`function`, or a generator function, as a listener: on the GPU, with errors as sentences."""
    # Gradio tells the two kinds apart by the function itself, so each needs a wrapper of its kind.
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def listener(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise error if isinstance(error, gr.Error) else sentence(error) from None
    else:

        @functools.wraps(function)
        def listener(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise error if isinstance(error, gr.Error) else sentence(error) from None

    return on_gpu(listener) if gpu else listener
