"""Names of Hub repositories: the one test of what can be a "user/name"."""

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
