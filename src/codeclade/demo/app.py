"""The app put together: the tabs around one pipeline, the queue, the server and its limits."""

import contextlib
import importlib.util
import io
import os
import warnings
from types import SimpleNamespace

import gradio as gr
import torch
from gradio.exceptions import InvalidPathError
from starlette.middleware import Middleware

from .. import CodecladePipeline, bundled
from ..checkpoints.caption_pipelines import load_caption_pipeline, takes_captions
from ..checkpoints.papers import PAPERS
from ..data.hub_ids import is_hub_id
from ..hub.citations import cited_keys
from .backend import Backend
from .captions import CaptionBackend
from .listeners import sentence
from .middleware import Listeners, Refusals
from .pictures import enlarge
from .queueing import FairQueue
from .tabs.clusters import Clusters
from .tabs.controls import BROWSING, MODEL, Session, chosen_image
from .tabs.edit import Edit
from .tabs.generate import Generate
from .tabs.reconstruct import Reconstruct
from .tabs.redraw import Redraw
from .theme import appearance

HEAD = """# codeclade
Images of {kinds}, {side} x {side} pixels, drawn token by token. A token is one place of
the {grid} x {grid} grid that an image is made of: {token}{clusters}.
{links}"""
PAPER_NAMES = {"llamagen": "LlamaGen"}  # the others are initials
SESSIONS = 64  # whose values are kept, at about 2 MB each; the page of an older one still works
ARXIV, HUB = "https://arxiv.org/abs/", "https://huggingface.co"


def heading(backend: Backend) -> str:
    """What is shown here, what a token is, and where to read more."""
    count = backend.map.num_clusters if backend.map is not None else 0
    vq_model = backend.pipe.vq_model
    token, which = f"the number of one of {vq_model.codebook_size:,} learned codes", ", which"
    if vq_model.detail_codebook_size is not None:
        token = (
            f"the numbers of one of {vq_model.codebook_size:,} semantic codes and of one of "
            f"{vq_model.detail_codebook_size:,} detail codes"
        )
        which = "; the semantic ones"
    clusters = f"{which} fall into {count} clusters of codes that look alike" if count else ""
    kinds = f"{backend.pipe.transformer.config.num_classes} classes"
    kinds = "what a text says" if backend.captions else kinds
    return HEAD.format(
        side=backend.side,
        grid=backend.grid,
        token=token,
        clusters=clusters,
        kinds=kinds,
        links=" · ".join(f"[{name}]({url})" for name, url in links(backend.pipe)),
    )


def links(pipe: CodecladePipeline) -> list[tuple[str, str]]:
    """Names and addresses of the papers behind a pipeline and of the repositories shown."""
    # The papers are found as the model cards find them, by the parts that are loaded, so that what
    # is credited here is what runs here.
    parts = {
        name: SimpleNamespace(class_name=type(part).__name__, config=config_of(part))
        for name, part in pipe.components.items()
        if part is not None
    }
    found = [
        (f"{PAPER_NAMES.get(key, key.upper())} paper", f"{ARXIV}{PAPERS[key][-1]}")
        for key in cited_keys(parts)
    ]
    source = os.environ.get("CODECLADE_PIPELINE", "")
    if is_hub_id(source):
        found.append(("pipeline", f"{HUB}/{source}"))
    if os.environ.get("SPACE_ID"):
        found.append(("code of this app", f"{HUB}/spaces/{os.environ['SPACE_ID']}/tree/main"))
    return found


def config_of(part) -> dict:
    """Configuration of a component of either library as a plain dictionary."""
    config = getattr(part, "config", {})  # a tokenizer of captions has none
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def send(
    button: gr.Button, generate: Generate, backend: Backend, tab: Redraw | Edit, tabs: gr.Tabs
) -> None:
    """Let a button take the chosen image and its class to another tab."""
    # Without an image the other tab opens all the same, and says itself what it lacks.
    name = type(tab).__name__.lower()

    def take(session):
        made = session.made
        if not made:
            return gr.skip(), gr.skip(), gr.Tabs(selected=name)
        return enlarge(chosen_image(made)), backend.choice(made["label"]), gr.Tabs(selected=name)

    private = {"api_visibility": "private", "show_progress": "hidden", **BROWSING}
    button.click(take, generate.layout.session, [tab.image, tab.menu, tabs], **private)


class App(gr.Blocks):
    """Blocks that answer values which Gradio itself cannot read with one sentence, too."""

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        # What Gradio raises on such values is no sentence for a client. A path outside of its
        # folders is answered as any other bad image, which tells nothing of what is on the disk.
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except InvalidPathError:
            raise sentence(ValueError("the image must be an uploaded file.")) from None
        except Exception as error:
            names = ", ".join(block_fn.input_parameter_names or [])
            reason = f"these are not the values that {block_fn.api_name} takes: {names}."
            raise error if isinstance(error, gr.Error) else sentence(ValueError(reason)) from None


def build(backend: Backend) -> gr.Blocks:
    """The whole app around a pipeline."""
    with App(title="codeclade", delete_cache=(600, 3600)) as demo:  # seconds
        session = gr.State(Session())
        gr.Markdown(heading(backend), elem_classes="intro")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                generate = Generate(backend, session)
            with gr.Tab("Redraw", id="redraw") as tab:
                redraw = Redraw(backend, session, tab)
            with gr.Tab("Edit", id="edit") as tab:
                edit = Edit(backend, session, tab)
            with gr.Tab("Clusters", id="clusters") as tab:
                Clusters(backend, session, tab)
            with gr.Tab("Reconstruct", id="reconstruct") as tab:
                Reconstruct(backend, session, tab)
        send(generate.layout.to_redraw, generate, backend, redraw, tabs)
        send(generate.layout.to_edit, generate, backend, edit, tabs)
        first, inputs, outputs = generate.layout.first
        demo.load(first, inputs, outputs, api_visibility="private", show_progress="hidden", **MODEL)
    # This switches queueing on and makes Gradio's own queue, which ours replaces before anything
    # runs.
    demo.queue()
    demo._queue = FairQueue(demo)
    return demo


def create() -> gr.Blocks:
    """The app of the pipeline CODECLADE_PIPELINE names (a folder or Hub id), else the bundled one.

    CODECLADE_TEXT_ENCODER names the T5 of one that takes captions and holds none.

    Raises:
        ValueError, OSError: there is no pipeline of that name, or it is damaged.
    """
    source = os.environ.get("CODECLADE_PIPELINE") or bundled()
    if takes_captions(source):
        encoder = os.environ.get("CODECLADE_TEXT_ENCODER")
        pipe, backend = load_caption_pipeline(source, torch.float32, encoder), CaptionBackend
    else:
        pipe, backend = CodecladePipeline.from_pretrained(source), Backend
    pipe.set_progress_bar_config(disable=True)
    return build(backend(pipe))


def start(demo: gr.Blocks, **settings) -> str:
    """Serve the app in the background; its address.

    Args:
        settings: those of `gr.Blocks.launch`.
    """
    # What is held for strangers is bounded: files, sessions, requests, places in the queue.
    limits = {
        "max_file_size": "20mb",
        "state_session_capacity": SESSIONS,
        "enable_monitoring": False,
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "app_kwargs": {"middleware": [Middleware(Refusals), Middleware(Listeners, demo=demo)]},
    }
    quiet = {"quiet": True, "prevent_thread_lock": True}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # Said of MCP: a session's memory is None there, which all listeners take.
        warnings.filterwarnings("ignore", "This MCP server includes a tool that has a gr.State")
        _, address, _ = demo.launch(**limits, **quiet, **appearance(), **settings)
    return address.rstrip("/")


def launch(demo: gr.Blocks, **settings) -> None:
    """Serve the app until the process is interrupted; `settings` as in `start`."""
    print(f"The app runs at {start(demo, **settings)} until you press Ctrl-C.", flush=True)
    demo.block_thread()
