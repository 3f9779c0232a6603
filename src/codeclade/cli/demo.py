"""`codeclade demo`: the Gradio app on this machine."""

import argparse
import os
import socket

from ..data.extras import install_command
from .arguments import add_verb, check_source


def add_demo(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "demo",
        _demo,
        "start the Gradio app on this machine",
        "codeclade demo --pipeline runs/generator/pipeline --port 7861",
    )
    parser.add_argument("--pipeline", help="folder or Hub id; default: the bundled pipeline")
    parser.add_argument("--text-encoder", metavar="MODEL", help="T5 of a pipeline without one")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows it to the network")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")


def _demo(arguments: argparse.Namespace) -> None:
    import importlib.util

    # Whatever is wrong is said before gradio and the pipeline are loaded.
    if not 0 < arguments.port < 65536:
        raise ValueError(f"--port {arguments.port} must be 1 to 65535.")
    # A port that only waits after an earlier stop is free to a server, hence SO_REUSEADDR.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((arguments.host, arguments.port))
        except OSError as error:
            where = f"{arguments.host}:{arguments.port}"
            raise ValueError(f"{where} cannot be used ({error.strerror}); give --port.") from None
    if not importlib.util.find_spec("gradio"):
        raise ImportError(f"the demo needs gradio; {install_command('demo')}.")
    if arguments.pipeline:
        check_source(arguments.pipeline)
        # The app takes its pipeline from here, on this machine as in a Space.
        os.environ["CODECLADE_PIPELINE"] = arguments.pipeline
    if arguments.text_encoder:
        os.environ["CODECLADE_TEXT_ENCODER"] = arguments.text_encoder

    from ..demo import create, launch

    launch(create(), server_name=arguments.host, server_port=arguments.port)
