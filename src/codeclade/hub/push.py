"""Publish a folder on the Hugging Face Hub: files, component code and card in one commit.

A commit is all or nothing. What was uploaded before a lost connection stays in the Hub's file
store, so the same command again sends only what is missing.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

# HTTPError is the base of what the HTTP library raises, lost connections included.
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from ..data.hub_ids import is_hub_id
from .card import check_front_matter, render_card
from .codes_card import render_codes_card
from .repository import Repository, read_repository

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")
OWN_CODE = re.compile(r"(.*/)?(modeling_codeclade_\w+\.py|codes\.json)")
WEIGHTS = re.compile(r".*\.(safetensors|safetensors\.index[\w.-]*\.json|bin|pt|ckpt|pth|msgpack)")


@dataclass
class Published:
    """What a push did: the address to look at, the commit, and the stale files it deleted."""

    url: str
    commit: str
    deleted: list[str]


def prepare(
    folder: str | Path,
    repo_id: str,
    license: str | None = None,
    extra: dict[str, bytes] | None = None,
) -> Repository:
    """Everything a push will send, checked, with the card. Works offline.

    A README.md in the folder is sent as it is, if its metadata is valid; else one is rendered.

    Args:
        folder: pipeline, component or code shards.
        repo_id: "user/name".
        license: a Hub license name for the rendered card.
        extra: more files, contents by path in the repository.

    Raises:
        ValueError: a name or folder that cannot be published.
        OSError: weights that are missing or cut short.
    """
    # What was typed comes before the folder, whose weight files are all opened.
    check_repo_id(repo_id)
    if license is not None and (not LICENSE.fullmatch(license) or license == "other"):
        raise ValueError(
            f"--license {license!r} is none of the Hub's names (mit, apache-2.0, cc-by-4.0, ...); "
            "state a license of your own in a README.md with license_name and license_link."
        )
    repository = read_repository(folder)
    repository.files.update(extra or {})
    # A card written by hand is never changed, hence no license beside it, which it might
    # contradict. A rendered card is checked as well: it is made of files from anywhere.
    if "README.md" in repository.files:
        text = Path(repository.files["README.md"]).read_text()
        check_front_matter(text, f"{folder}/README.md")
        if license:
            raise ValueError(f"{folder}/README.md is there; state the license {license} in it.")
    else:
        render = render_codes_card if repository.kind == "codes" else render_card
        text = render(repository, repo_id, license)
        check_front_matter(text, "the card")
        repository.files["README.md"] = text.encode()
    return repository


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless this is a plain "user/name" that the Hub takes."""
    if not is_hub_id(repo_id):
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
    license: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> Published:
    """Publish a folder, or a pipeline or component object, under `repo_id`.

    Args:
        source: folder, or anything with `save_pretrained`.
        repo_id: "user/name"; created if it is not there.
        private: whether a new repository is private; an existing one stays as it is.
        create_pr: open a pull request instead of committing to main.
        license, message, token: for the card, the commit and the Hub.

    Raises:
        ValueError: something to correct: the folder, the name, the token or its rights.
        OSError: damaged weights.
        ConnectionError: the connection was lost; the repository is as it was.
    """
    with ExitStack() as until_sent:  # the files of an object are gone after it
        if hasattr(source, "save_pretrained"):
            folder = until_sent.enter_context(tempfile.TemporaryDirectory())
            source.save_pretrained(folder)
            source = folder
        repository = prepare(source, repo_id, license)
        return publish(repository, repo_id, private, create_pr, message, token)


def publish(
    repository: Repository,
    repo_id: str,
    private: bool,
    create_pr: bool,
    message: str | None,
    token: str | None = None,
) -> Published:
    """Send a prepared repository in one commit; see `push`."""
    api, kind = HfApi(token=token), repository.repo_type
    with clear_errors(repo_id, api):
        # None leaves the visibility to the account's or organization's default.
        api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        # An existing repository keeps its visibility whatever was asked for, so it is looked at:
        # weights meant to be private must not become public, not even for a minute.
        info = api.repo_info(repo_id, repo_type=kind)
        if private and not info.private:
            raise ValueError(
                f"{repo_id} is there and public; nothing was sent. Make it private in its settings "
                "first, or choose another name."
            )
        # What is stale is judged by one revision and committed on that revision: if somebody else
        # commits in between, the Hub refuses, and nothing of theirs is deleted unseen.
        there = {sibling.rfilename for sibling in info.siblings}
        gone = stale_files(repo_id, there, repository)
        message = message or "Upload with codeclade"
        return commit(api, repo_id, kind, repository.files, gone, message, create_pr, info.sha)


def check_access(repo_id: str, token: str | None = None) -> None:
    """Raise a ValueError or ConnectionError unless the Hub knows the token; before long work."""
    api = HfApi(token=token)
    with clear_errors(repo_id, api):
        api.whoami()


def stale_files(repo_id: str, there: set[str], repository: Repository) -> list[str]:
    """Files of an earlier push of the same kind that the new one no longer has.

    Raises:
        ValueError: a repository of another kind, or with weights that codeclade did not write.
    """
    # Our code beside weights is the mark of an earlier push: what it left may be deleted.
    own_folders = {str(Path(name).parent) for name in there if OWN_CODE.fullmatch(name)}
    pipeline = "model_index.json" in there
    # A component over a pipeline would leave the files of both, and load as neither.
    if own_folders and pipeline != (repository.kind == "pipeline"):
        raise ValueError(
            f"{repo_id} holds {'a pipeline' if pipeline else 'one component'}, and this is "
            f"{'one component' if pipeline else 'a pipeline'}; choose another name."
        )
    # The root of a pipeline has code for transformers' AutoModel, but no weights of its own.
    if pipeline:
        own_folders.discard(".")
    # Weights without that mark, in no folder of a component, may be anybody's work. Deleting them
    # cannot be undone by a second push, and keeping them would mix two models: refused.
    foreign = sorted(
        name
        for name in there - set(repository.files)
        if WEIGHTS.fullmatch(name)
        and str(Path(name).parent) not in own_folders
        and name.split("/")[0] not in repository.parts
    )
    if foreign:
        raise ValueError(
            f"{repo_id} holds weights that codeclade did not write ({foreign[0]}); choose another "
            "name, or delete them on the Hub first."
        )
    # The rest was ours: shards of another count, code of an older layout, configs of parts that are
    # no more. Pictures, notes and other files of the owner stay.
    return sorted(
        name
        for name in there - set(repository.files)
        if (WEIGHTS.fullmatch(name) or OWN_CODE.fullmatch(name))
        or (str(Path(name).parent) in own_folders and Path(name).name == "config.json")
    )


def commit(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: dict[str, Path | bytes],
    gone: list[str],
    message: str,
    create_pr: bool = False,
    parent: str | None = None,
) -> Published:
    """Add `files` and delete `gone` as one commit on `parent`."""
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in sorted(files.items())
    ]
    # One commit on the one that was looked at: either all of it is there, or nothing changes.
    done = api.create_commit(
        repo_id,
        [*operations, *map(CommitOperationDelete, gone)],
        commit_message=message,
        repo_type=repo_type,
        create_pr=create_pr,
        parent_commit=parent,
    )
    return Published(done.pr_url or done.repo_url.url, done.oid, gone)


@contextmanager
def clear_errors(repo_id: str, api: HfApi) -> Iterator[None]:
    """Turn what the Hub or the network answers into one sentence of what to do."""
    try:
        yield
    # From special to general: all of these are OSErrors, and the last clause would call a missing
    # token a lost connection.
    except OfflineModeIsEnabled:
        raise ValueError("HF_HUB_OFFLINE is set; unset it to reach the Hub.") from None
    except LocalTokenNotFoundError:
        raise ValueError(explain(401, repo_id)) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = getattr(error, "server_message", None) or ""
        raise ValueError(explain(status, repo_id, reason)) from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's uploads
        raise ConnectionError(
            f"the connection to {api.endpoint} was lost ({_first_line(error)}); nothing is half "
            f"published. Run the same command again: {repo_id} gets only what is missing."
        ) from error


def explain(status: int, repo_id: str, reason: str = "") -> str:
    """One sentence for an HTTP status of the Hub, with the reason it gave."""
    owner = repo_id.split("/")[0]
    sentences = {
        401: f"the Hub accepts no write to {repo_id} without a valid token; run `hf auth login` or "
        "set HF_TOKEN to a token with write access",
        402: f"the Hub asks for payment for {repo_id}: private storage is full, or this kind of "
        "Space needs a subscription (huggingface.co/pricing)",
        403: f"this token may not write to {repo_id}; use one with write access to {owner}, or "
        "push under your own name",
        404: f"the Hub knows no {repo_id}, or this token may not see it; check the name and the "
        "token",
        409: f"{repo_id} is in use by another operation or exists as another kind of repository; "
        "try again, or choose another name",
        412: f"somebody committed to {repo_id} in the meantime; run the same command again",
        413: f"a file is larger than the Hub takes for {repo_id}; save in shards (max_shard_size)",
        429: f"the Hub asks to slow down for {repo_id}; wait a few minutes and run it again",
    }
    sentence = sentences.get(status, f"the Hub refused {repo_id} (status {status})")
    if status >= 500:
        sentence = f"the Hub has a problem of its own (status {status}); {repo_id} is as it was"
    # The Hub's own words at the end; of a missing token they only repeat ours.
    told = " ".join(reason.split())[:300]
    return f"{sentence}; it says: {told}" if told and status != 401 else f"{sentence}."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
