"""The Gradio app: class-conditional images, drawn token by token.

`codeclade demo` starts it on this machine, spaces/app.py in a Space of the Hugging Face Hub.
"""

import os

# Both are read when gradio is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from .app import build, create, launch, start

__all__ = ["build", "create", "launch", "start"]
