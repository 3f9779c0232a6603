"""Names of Hub repositories: the one test of what can be a "user/name", and of what is there."""

import re

# huggingface_hub's own rule: letters, digits, '-', '_' and '.', no doubled or final punctuation.
_NAME = r"[A-Za-z0-9_](?:[\w-]|\.(?!\.))*"
HUB_ID = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
LONGEST = 96  # characters of the whole id


def is_hub_id(text: str) -> bool:
    """Whether the Hub could have a repository "user/name" of this name."""
    return (
        len(text) <= LONGEST
        and HUB_ID.fullmatch(text) is not None
        and "--" not in text
        and not text.endswith((".", "-", ".git"))
        and "./" not in text
        and "-/" not in text
    )


def why_not_on_hub(name: str, kind: str) -> Exception | None:
    """Why the Hub gives no repository of this name; None: it gives one.

    Asked once: without a connection the libraries try six times for every file they look for.

    Args:
        kind: "model" or "dataset".
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    transport = HfHubHTTPError.__bases__[0]  # of httpx, or the fork this huggingface_hub uses
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=10)
    except (OSError, transport) as error:  # pyright: ignore[reportGeneralTypeIssues]
        return error
    return None
