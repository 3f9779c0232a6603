"""How to install what an extra brings: from where this package itself came."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname

# Modules that only an extra brings, and which.
EXTRA_OF = {"datasets": "train", "matplotlib": "eval", "peft": "peft", "gradio": "demo"}


def install_command(extra: str, origin: str | None = None) -> str:
    """The pip command that adds an extra.

    Args:
        origin: text of a direct_url.json (PEP 610), "" from an index; None: this installation's.
    """
    found = json.loads((_origin() if origin is None else origin) or "{}")
    url = found.get("url", "")
    if found.get("dir_info", {}).get("editable"):
        return f"pip install --editable '{url2pathname(urlsplit(url).path)}[{extra}]'"
    if found.get("vcs_info"):
        url = f"{found['vcs_info']['vcs']}+{url}"
    return f"pip install 'codeclade[{extra}]{' @ ' if url else ''}{url}'"


def missing_extra(error: Exception) -> str:
    """What to add to the message of a module that is not there; empty for all others."""
    name = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in EXTRA_OF:
        return ""
    return f"; {install_command(EXTRA_OF[name])}"


def _origin() -> str | None:
    try:
        return distribution("codeclade").read_text("direct_url.json")
    except PackageNotFoundError:  # on the path, and not installed
        return None
