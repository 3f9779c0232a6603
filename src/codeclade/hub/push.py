"""Publish a folder on the Hugging Face Hub: files, component code and card in one commit.

A commit is all or nothing. What was uploaded before a lost connection stays in the Hub's file
store, so the same command again sends only what is missing.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

# HTTPError is the base of what the HTTP library raises, lost connections included.
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .card import check_front_matter, render_card
from .repository import Repository, read_repository

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Files of ours that go when a new push no longer has them; anything else stays.
STALE = re.compile(r".*\.(safetensors|index\.json)|.*(modeling_codeclade_\w+|^pipeline)\.py")


@dataclass
class Published:
    """What a push did: the address to look at, the commit, and the stale files it deleted."""

    url: str
    commit: str
    deleted: list[str]


def prepare(
    folder: str | Path,
    repo_id: str,
    licence: str | None = None,
    extra: dict[str, bytes] | None = None,
) -> Repository:
    """Everything a push will send, checked, with the card. Works offline.

    A README.md in the folder is sent as it is, after a look at its metadata; else one is rendered.

    Args:
        folder: pipeline, component or code shards.
        repo_id: "user/name".
        licence: a Hub licence name for the rendered card.
        extra: more files, contents by path in the repository.

    Raises:
        ValueError: a name or folder that cannot be published.
        OSError: weights that are missing or cut short.
    """
    check_repo_id(repo_id)
    repository = read_repository(folder)
    repository.files.update(extra or {})
    if "README.md" in repository.files:
        text = Path(repository.files["README.md"]).read_text()
        check_front_matter(text, f"{folder}/README.md")
        if licence:
            raise ValueError(f"{folder}/README.md is there; state the licence {licence} in it.")
    else:
        text = render_card(repository, repo_id, licence)
        check_front_matter(text, "the card")
        repository.files["README.md"] = text.encode()
    return repository


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless this is a plain "user/name"."""
    if not REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise ValueError(
            f"{repo_id[:100]!r} is no repository name; give user/name of letters, digits, '-', '_' "
            "and '.'."
        )


def push(
    source: Any,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    licence: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> Published:
    """Publish a folder, or a pipeline or component object, under `repo_id`.

    Args:
        source: folder, or anything with `save_pretrained`.
        repo_id: "user/name"; created if it is not there.
        private: whether a new repository is private; an existing one stays as it is.
        create_pr: open a pull request instead of committing to main.
        licence, message, token: for the card, the commit and the Hub.

    Raises:
        ValueError: something to correct: the folder, the name, the token or its rights.
        OSError: damaged weights.
        ConnectionError: the connection was lost; the repository is as it was.
    """
    if hasattr(source, "save_pretrained"):
        with tempfile.TemporaryDirectory() as folder:
            source.save_pretrained(folder)
            repository = prepare(folder, repo_id, licence)
            return publish(repository, repo_id, private, create_pr, message, token)
    repository = prepare(source, repo_id, licence)
    return publish(repository, repo_id, private, create_pr, message, token)


def publish(
    repository: Repository,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
) -> Published:
    """Send a prepared repository in one commit; see `push`."""
    api, kind = HfApi(token=token), repository.repo_type
    with clear_errors(repo_id, api):
        # None leaves the visibility to the account's or organisation's default.
        api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        return commit(
            api, repo_id, kind, repository.files, message or "Upload with codeclade", create_pr
        )


def commit(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: dict[str, Path | bytes],
    message: str,
    create_pr: bool = False,
    stale: re.Pattern = STALE,
) -> Published:
    """Add `files` and delete what matches `stale` beside them, as one commit on the latest one."""
    info = api.repo_info(repo_id, repo_type=repo_type)
    there = {sibling.rfilename for sibling in info.siblings}
    gone = sorted(name for name in there - set(files) if stale.fullmatch(name))
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in sorted(files.items())
    ]
    done = api.create_commit(
        repo_id,
        [*operations, *map(CommitOperationDelete, gone)],
        commit_message=message,
        repo_type=repo_type,
        create_pr=create_pr,
        parent_commit=info.sha,
    )
    return Published(done.pr_url or done.repo_url.url, done.oid, gone)


@contextmanager
def clear_errors(repo_id: str, api: HfApi) -> Iterator[None]:
    """Turn what the Hub or the network answers into one sentence of what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise ValueError(explain(status, repo_id, str(error))) from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's uploads
        raise ConnectionError(
            f"the connection to {api.endpoint} was lost ({_first_line(error)}); nothing was "
            f"published. Run the same command again: {repo_id} gets only what is missing."
        ) from error


def explain(status: int, repo_id: str, message: str) -> str:
    """One sentence for an HTTP status of the Hub, nothing having been published."""
    sentences = {
        401: f"the Hub accepts no write to {repo_id} without a valid token; run `hf auth login` or "
        "set HF_TOKEN to a token with write access.",
        402: f"the Hub asks for payment for {repo_id}: private storage is full, or this kind of "
        "Space needs a subscription (docs: huggingface.co/pricing).",
        403: f"this token may not write to {repo_id}; use one with write access to "
        f"{repo_id.split('/')[0]}, or push under your own name.",
        404: f"the Hub knows no {repo_id}, or this token may not see it; check the name and the "
        "token.",
        409: f"{repo_id} is in use by another operation or exists as another kind of repository; "
        "try again, or choose another name.",
        412: f"somebody committed to {repo_id} in the meantime; run the same command again.",
        413: f"a file is larger than the Hub takes for {repo_id}; save in shards (max_shard_size).",
        429: f"the Hub asks to slow down for {repo_id}; wait a few minutes and run it again.",
    }
    if status >= 500:
        return f"the Hub has a problem of its own (status {status}); {repo_id} is as it was."
    return sentences.get(status) or f"the Hub refused {repo_id}: {message.splitlines()[0]}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
