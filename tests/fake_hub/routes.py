"""What the test Hub answers: one function for each kind of request."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qs

import yaml

from fake_hub.repos import (
    HubError,
    Repository,
    Upload,
    check_file_path,
    check_repo_name,
    front_matter,
)

REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
URL_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
API = "/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
UPLOAD = "/uploads/(?P<upload>[^/]+)/[0-9a-f]{64}"  # the hash is there for logs and failures
PAGES = "/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)"


class Answer(NamedTuple):
    body: object = b""  # anything but bytes is sent as JSON
    status: int = 200
    headers: dict = {}  # noqa: RUF012

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Request:
    """A request as the routes see it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    user: str | None
    may_write: bool
    endpoint: str

    def url(self, repository: Repository) -> str:
        return f"{self.endpoint}/{URL_PREFIXES[repository.repo_type]}{repository.name}"

    def fields(self) -> dict:
        """The JSON object in the body; {} for an empty body."""
        try:
            fields = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise HubError(400, "Not a JSON object")
        return fields


def error_answer(error: HubError, headers: dict | None = None) -> Answer:
    shown = {
        "X-Error-Message": error.message,
        **({"X-Error-Code": error.code} if error.code else {}),
    }
    body = {"error": error.message, **error.body}
    return Answer(body, error.status, {**shown, **(headers or {})})


@dataclass
class Route:
    method: str
    pattern: re.Pattern
    function: Callable
    access: str | None  # "read" or "write" for routes of one repository


ROUTES: list[Route] = []


def route(method: str, path: str, access: str | None = None):
    """Register `function(hub, request, [repository,] *groups)` for requests to `path`."""

    def register(function):
        ROUTES.append(Route(method, re.compile(path), function, access))
        return function

    return register


# Accounts and repositories


@route("GET", "/api/whoami-v2")
def whoami(hub, request):
    if request.user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    role = "write" if request.may_write else "read"
    member = [name for name, users in hub.organizations.items() if request.user in users]
    fields = {"type": "user", "id": "0" * 24, "name": request.user, "fullname": request.user}
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return Answer({**fields, "orgs": [{"name": name} for name in member], "auth": token})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub, request):
    errors = []
    try:
        front_matter(request.fields()["content"])
    except yaml.YAMLError as error:
        errors.append({"message": str(error)})
    return Answer({"errors": errors, "warnings": []})


def named_repository(hub, request) -> tuple[str, str]:
    """Type and full name of the repository that a request creates or deletes."""
    fields = request.fields()
    name = f"{fields.get('organization') or request.user}/{fields['name']}"
    hub.check_owner(request, check_repo_name(name))
    repo_type = fields.get("type") or "model"
    if repo_type not in URL_PREFIXES:
        raise HubError(400, f"Invalid repository type: {repo_type}")
    return repo_type, name


@route("POST", "/api/repos/create")
def create(hub, request):
    key, fields = named_repository(hub, request), request.fields()
    if key in hub.repositories:
        url = request.url(hub.repositories[key])
        raise HubError(409, f"You already created this {key[0]} repo", url=url)
    private = fields.get("visibility") == "private" or bool(fields.get("private"))
    repository = Repository(*key, author=request.user, private=private)
    if key[0] == "space":
        if not fields.get("sdk"):
            raise HubError(400, "A Space needs an sdk")
        repository.space["sdk"] = fields["sdk"]
        repository.space["hardware"] = fields.get("hardware")
        repository.space["sleep_time"] = fields.get("sleepTimeSeconds")
        repository.secrets = {it["key"]: it for it in fields.get("secrets", [])}
        repository.variables = {it["key"]: it for it in fields.get("variables", [])}
    hub.repositories[key] = repository
    return Answer({"url": request.url(repository), "name": key[1], "id": key[1]})


@route("DELETE", "/api/repos/delete")
def delete(hub, request):
    if hub.repositories.pop(named_repository(hub, request), None) is None:
        raise HubError(404, "Repository not found", "RepoNotFound")
    return Answer({})


@route("POST", "/api/repos/move")
def move(hub, request):
    fields = request.fields()
    repo_type, source, target = fields.get("type") or "model", fields["fromRepo"], fields["toRepo"]
    repository = hub.find(request, repo_type, source, write=True)
    hub.check_owner(request, check_repo_name(target))
    if (repo_type, target) in hub.repositories:
        raise HubError(409, f"{target} exists")
    hub.repositories[repo_type, target] = hub.repositories.pop((repo_type, source))
    repository.name = target
    return Answer({})


@route("PUT", f"{API}/settings", "write")
def settings(hub, request, repository):
    fields = request.fields()
    if "visibility" in fields:
        repository.private = fields["visibility"] == "private"
    repository.gated = fields.get("gated", repository.gated)
    return Answer({})


# Reading


@route("GET", f"{API}(?:/revision/(?P<revision>[^/]+))?", "read")
def info(hub, request, repository, revision):
    commit = repository.resolve(revision or "main")
    return Answer(repository.info(commit, request.query.get("blobs", "").lower() == "true"))


@route("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "read")
def tree(hub, request, repository, revision, folder):
    folder = check_file_path(folder.rstrip("/")) if folder else ""
    recursive = request.query.get("recursive", "").lower() == "true"
    return Answer(repository.tree(repository.resolve(revision), folder, recursive))


@route("POST", f"{API}/paths-info/(?P<revision>[^/]+)", "read")
def paths_info(hub, request, repository, revision):
    if "json" in request.headers.get("content-type", ""):
        paths = request.fields()["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    return Answer(repository.paths(repository.resolve(revision), paths))


@route("GET", f"{API}/commits/(?P<revision>[^/]+)", "read")
def commits(hub, request, repository, revision):
    return Answer(repository.history(repository.resolve(revision)))


@route("GET", f"{PAGES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "read")
def resolve(hub, request, repository, revision, path):
    commit, file = repository.resolve(revision), None
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    file = commit.files.get(check_file_path(path))
    if file is None:
        return error_answer(HubError(404, "Entry not found", "EntryNotFound"), headers)
    headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.sha256:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(file.size)}
    if file.xet_hash:
        route_name = f"/api/{repository.repo_type}s/{repository.name}/xet-read-token/{commit.oid}"
        headers["X-Xet-Hash"] = file.xet_hash
        headers["X-Xet-Refresh-Route"] = request.endpoint + route_name
        if request.method != "HEAD":
            raise HubError(501, "This file came by Xet and can be read by Xet only")
        return Answer(b"", 200, {**headers, "Content-Length": str(file.size)})
    content = hub.store.path(file.sha256).read_bytes() if file.sha256 else file.content
    return part_of(content, request.headers.get("range"), headers)


def part_of(content: bytes, wanted: str | None, headers: dict) -> Answer:
    """All of `content`, or the range of bytes that the client wants."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if match is None or match[0] == "bytes=-":
        return Answer(content, 200, headers)
    if match[1]:
        start, stop = int(match[1]), min(int(match[2] or len(content)), len(content) - 1) + 1
    else:
        start, stop = max(len(content) - int(match[2]), 0), len(content)
    if start >= stop:
        return Answer(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
    return Answer(content[start:stop], 206, headers)


# References and pull requests


@route("GET", f"{API}/refs", "read")
def references(hub, request, repository):
    groups = {"refs/heads/": [], "refs/tags/": [], "refs/pr/": []}
    for name, oid in repository.references.items():
        prefix = next(it for it in groups if name.startswith(it))
        short = name if prefix == "refs/pr/" else name.removeprefix(prefix)
        groups[prefix].append({"name": short, "ref": name, "targetCommit": oid})
    branches, tags, pull_requests = groups.values()
    answer = {"branches": branches, "tags": tags, "converts": [], "pullRequests": pull_requests}
    return Answer(answer)


@route("POST", f"{API}/branch/(?P<branch>[^/]+)", "write")
def create_branch(hub, request, repository, branch):
    start = repository.resolve(request.fields().get("startingPoint") or "main")
    repository.add_reference(f"refs/heads/{branch}", start)
    return Answer({})


@route("POST", f"{API}/tag/(?P<revision>[^/]+)", "write")
def create_tag(hub, request, repository, revision):
    repository.add_reference(f"refs/tags/{request.fields()['tag']}", repository.resolve(revision))
    return Answer({})


@route("DELETE", f"{API}/(?P<kind_of_reference>branch|tag)/(?P<reference>[^/]+)", "write")
def delete_reference(hub, request, repository, kind_of_reference, reference):
    if (kind_of_reference, reference) == ("branch", "main"):
        raise HubError(403, "The main branch stays")
    folder = "heads" if kind_of_reference == "branch" else "tags"
    repository.delete_reference(f"refs/{folder}/{reference}")
    return Answer({})


@route("POST", f"{API}/discussions", "write")
def open_discussion(hub, request, repository):
    fields = request.fields()
    if not fields.get("pullRequest"):
        raise HubError(400, "This Hub knows pull requests only")
    number = repository.open_pull_request(fields["title"], request.user, repository.resolve())
    url = f"{request.url(repository)}/discussions/{number}"
    return Answer({"num": number, "url": url, "pullRequest": True})


@route("GET", f"{API}/discussions", "read")
def discussions(hub, request, repository):
    count = len(repository.pull_requests)
    listed = [repository.pull_request(number + 1) for number in range(count)]
    return Answer({"count": count, "start": 0, "discussions": listed})


@route("GET", f"{API}/discussions/(?P<number>[0-9]+)", "read")
def discussion(hub, request, repository, number):
    return Answer(repository.pull_request(int(number)))


@route("POST", f"{API}/discussions/(?P<number>[0-9]+)/merge", "write")
def merge(hub, request, repository, number):
    repository.merge(int(number))
    return Answer({})


# Writing


@route("POST", f"{API}/preupload/(?P<revision>[^/]+)", "write")
def preupload(hub, request, repository, revision):
    commit, listed = repository.resolve(revision), []
    for it in request.fields()["files"]:
        path, sample = check_file_path(it["path"]), base64.b64decode(it["sample"])
        mode = repository.upload_mode(commit, path, it["size"], sample)
        listed.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if path in commit.files:
            listed[-1]["oid"] = commit.files[path].etag
    return Answer({"files": listed})


@route("POST", f"{API}/commit/(?P<revision>[^/]+)", "write")
def commit(hub, request, repository, revision):
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    except ValueError as error:
        raise HubError(400, f"Not ndjson: {error}") from error
    opens = request.query.get("create_pr") == "1"
    made = repository.commit(revision, lines, request.user, hub.store, moves=not opens)
    answer = {"success": True, "commitOid": made.oid, "pullRequestUrl": None, "hookOutput": ""}
    answer["commitUrl"] = f"{request.url(repository)}/commit/{made.oid}"
    if opens:
        number = repository.open_pull_request(made.title, request.user, made)
        answer["pullRequestUrl"] = f"{request.url(repository)}/discussions/{number}"
    return Answer(answer)


@route("GET", f"{API}/xet-read-token/(?P<revision>[^/]+)", "read")
def xet_read_token(hub, request, repository, revision):
    if not hub.store.xet:
        raise HubError(404, "This Hub has no Xet")
    folder, expires = f"local://{hub.store.xet_folder}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": folder, "X-Xet-Access-Token": "test"}
    headers["X-Xet-Token-Expiration"] = str(expires)
    return Answer({"casUrl": folder, "accessToken": "test", "exp": expires}, 200, headers)


@route("GET", f"{API}/xet-write-token/(?P<revision>[^/]+)", "write")
def xet_write_token(hub, request, repository, revision):
    return xet_read_token(hub, request, repository, revision)


@route("POST", rf"{PAGES}\.git/info/lfs/objects/batch", "write")
def lfs_batch(hub, request, repository):
    """Say for each large file where to upload it, or nothing if the repository has it."""
    listed, transfer = [], "basic"
    for it in request.fields()["objects"]:
        answer = {"oid": it["oid"], "size": it["size"], "authenticated": True}
        listed.append(answer)
        if it["oid"] in repository.large_files:
            continue
        part_size = hub.part_size if hub.part_size and it["size"] > hub.part_size else None
        upload = Upload(hub.store, repository, it["oid"], it["size"], part_size)
        url = f"{request.endpoint}/uploads/{upload.name}/{upload.sha256}"
        action = {"href": url}
        if part_size:
            transfer, numbers = "multipart", range(1, upload.number_of_parts + 1)
            parts = {f"{number:05d}": f"{url}/{number}" for number in numbers}
            action = {"href": f"{url}/complete", "header": {"chunk_size": str(part_size), **parts}}
        answer["actions"] = {"upload": action, "verify": {"href": f"{url}/verify"}}
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    return Answer({"transfer": transfer, "objects": listed}, 200, headers)


def announced(hub, name: str) -> Upload:
    if name not in hub.store.uploads:
        raise HubError(403, "No such upload was announced")
    return hub.store.uploads[name]


@route("PUT", UPLOAD)
def upload_all(hub, request, upload):
    announced(hub, upload).receive(request.body)
    return Answer()


@route("PUT", f"{UPLOAD}/(?P<number>[0-9]+)")
def upload_part(hub, request, upload, number):
    announced(hub, upload).parts[int(number)] = request.body
    return Answer(b"", 200, {"ETag": f'"{hashlib.sha256(request.body).hexdigest()}"'})


@route("POST", f"{UPLOAD}/complete")
def upload_complete(hub, request, upload):
    announced(hub, upload).complete()
    return Answer({})


@route("POST", f"{UPLOAD}/verify")
def upload_verify(hub, request, upload):
    announced(hub, upload).verify(request.fields().get("size"))
    return Answer({})


# Spaces


SPACE = "/api/(?P<kind>spaces)/(?P<name>[^/]+/[^/]+)"


@route("GET", f"{SPACE}/runtime", "read")
def runtime(hub, request, repository):
    return Answer(repository.runtime())


@route("POST", f"{SPACE}/(?P<action>hardware|sleeptime|restart|pause)", "write")
def manage(hub, request, repository, action):
    fields, space = request.fields(), repository.space
    space["stage"] = "PAUSED" if action == "pause" else "RUNNING"
    space["hardware"] = fields.get("flavor", space["hardware"])
    space["sleep_time"] = fields.get("seconds", fields.get("sleepTimeSeconds", space["sleep_time"]))
    return Answer(repository.runtime())


@route("GET", f"{SPACE}/(?P<store>secrets|variables)", "write")
def stored_values(hub, request, repository, store):
    """What is stored by key. The values of secrets stay on the server."""
    hidden = {"value"} if store == "secrets" else set()
    values = getattr(repository, store)
    shown = {
        key: {name: it for name, it in fields.items() if name not in hidden}
        for key, fields in values.items()
    }
    return Answer(shown)


@route("POST", f"{SPACE}/(?P<store>secrets|variables)", "write")
def store_value(hub, request, repository, store):
    fields = request.fields()
    getattr(repository, store)[fields["key"]] = fields
    return stored_values(hub, request, repository, store)


@route("DELETE", f"{SPACE}/(?P<store>secrets|variables)", "write")
def delete_value(hub, request, repository, store):
    getattr(repository, store).pop(request.fields()["key"], None)
    return stored_values(hub, request, repository, store)
