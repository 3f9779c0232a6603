"""A server on this machine that huggingface_hub, hf_xet and the `hf` command take for the Hub.

    with hub_server.serve(tmp_path, tokens={"hf_tester": "tester"}) as server:
        api = HfApi(endpoint=server.endpoint, token="hf_tester")
        server.fail_on("POST", "/commit/", status=412)

`python -m fake_hub.server ROOT [PORT]`, run in tests/, starts one by hand. It listens on the
loopback address only and never sleeps. It knows no quotas, gating, .gitignore rules or Space
builds, and a file that came by Xet goes out by Xet only: it answers 501 to clients with
HF_HUB_DISABLE_XET=1. Xet contents pass through a folder instead of HTTP, so failures can be
injected into the requests around them only.
"""

import contextlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from fake_hub.repos import HubError, LargeFiles, Repository, check_repo_name
from fake_hub.routes import REPO_TYPES, ROUTES, Answer, Request, error_answer

MESSAGES = {
    401: "Invalid username or password.",
    402: "Payment required: please subscribe to create this repository.",
    403: "You don't have the rights to do this.",
    404: "Not found",
    409: "A conflicting operation is in progress.",
    412: "A commit has happened since. Please refresh and try again.",
    429: "Too many requests",
    500: "Internal error",
    503: "Service unavailable",
}
TOKENS = {"hf_tester": "tester"}


class LogLine(NamedTuple("LogLine", [("method", str), ("path", str)])):
    """Method and path of a request, with `query`, `user`, `agent`, `received` bytes, `status`.

    `status` is None as long as there is no answer, and for ever if the connection was dropped.
    """

    query = agent = ""
    user = status = None
    received = 0


@dataclass
class Failure:
    """What goes wrong with the next requests that match.

    `hits` counts the requests that it hit so far.
    """

    method: str | None
    path: str
    times: int | None
    answer: Answer | None = None  # None: the connection is dropped
    after_bytes: int = 0
    during: str = "request"
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        left = self.times is None or self.hits < self.times
        return left and self.method in (None, method) and re.search(self.path, path) is not None


class Hub:
    """The state of the server and what tests do with it.

    Args:
        root: Folder for file contents; nothing is written or served outside.
        tokens: User by token. `"tester:read"` makes a token that may not write.
        organizations: Members by organization.
        xet: Whether clients may use Xet. Otherwise they use Git LFS.
        part_size: Larger LFS files are uploaded in parts of so many bytes.
    """

    def __init__(self, root, tokens=None, organizations=None, xet=True, part_size=None):
        self.store = LargeFiles(Path(root).resolve(), xet)
        self.tokens = dict(TOKENS if tokens is None else tokens)
        self.organizations = {name: tuple(it) for name, it in (organizations or {}).items()}
        self.part_size = part_size
        self.endpoint = ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.log: list[LogLine] = []
        self.failures: list[Failure] = []
        self.lock = threading.RLock()

    # What tests use

    def repository(self, name: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, name]

    def requests(self, method: str | None = None, path: str = "") -> list[LogLine]:
        """The logged requests by method and regular expression for the path."""
        lines = [line for line in self.log if method in (None, line.method)]
        return [line for line in lines if re.search(path, line.path)]

    def fail_on(
        self, method=None, path="", status=500, times=1, message=None, code=None, headers=None
    ) -> Failure:
        """Answer the next matching requests with an error.

        Args:
            method: HTTP method, or None for all.
            path: Regular expression searched in the path.
            status: HTTP status, e.g. 402 payment required, 409 or 412 conflict.
            times: How many requests fail; None for all from now on.
            message: What the client shows.
            code: `X-Error-Code`, e.g. `GatedRepo`.
            headers: Further headers, e.g. `Retry-After`.
        """
        error = HubError(status, message or MESSAGES.get(status, "Injected failure"), code)
        return self._inject(Failure(method, path, times, error_answer(error, headers)))

    def drop_on(self, method=None, path="", times=1, after_bytes=0, during=None) -> Failure:
        """Close the connection in the middle of the next matching requests.

        Args:
            method: HTTP method, or None for all.
            path: Regular expression searched in the path.
            times: How many connections are dropped; None for all from now on.
            after_bytes: How many bytes of the body get through.
            during: `"request"`: nothing is done; `"answer"`: done, but the client does not learn
                it. Default: the answer to GET, the request otherwise.
        """
        during = during or ("answer" if method == "GET" else "request")
        return self._inject(Failure(method, path, times, None, after_bytes, during))

    def _inject(self, failure: Failure) -> Failure:
        with self.lock:
            self.failures.append(failure)
        return failure

    def environment(self, home, token: str | None = "") -> dict[str, str]:
        """The environment of a fresh process that knows this Hub only.

        Args:
            home: `HF_HOME`: cache and settings; empty for a user who downloads for the first time.
            token: `HF_TOKEN`; the first one of the server if not given, None for an anonymous user.
        """
        foreign = re.compile("HF_|HUGGINGFACE|HUGGING_FACE_|TRANSFORMERS_OFFLINE")
        variables = {name: it for name, it in os.environ.items() if not foreign.match(name)}
        variables |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # the command would ask PyPI
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if token == "":
            token = next(iter(self.tokens), None)
        if token is not None:
            variables["HF_TOKEN"] = token
        if not self.store.xet:
            variables["HF_HUB_DISABLE_XET"] = "1"
        return variables

    # What the routes use

    def take_failure(self, method: str, path: str) -> Failure | None:
        with self.lock:
            failure = next((it for it in self.failures if it.matches(method, path)), None)
            if failure is not None:
                failure.hits += 1
            return failure

    def who(self, authorization: str) -> tuple[str | None, bool]:
        """User of a token, and whether the token may write."""
        scheme, _, token = authorization.partition(" ")
        name = self.tokens.get(token, "") if scheme == "Bearer" else ""
        user, _, role = name.partition(":")
        return user or None, bool(user) and role != "read"

    def belongs_to(self, name: str, user: str | None) -> bool:
        """Whether `user` owns the repository `name`, or is in the organization that does."""
        owner = name.split("/")[0]
        return user is not None and (owner == user or user in self.organizations.get(owner, ()))

    def check_owner(self, request: Request, name: str) -> None:
        if request.user is None:
            raise HubError(401, MESSAGES[401])
        if not (request.may_write and self.belongs_to(name, request.user)):
            raise HubError(403, MESSAGES[403])

    def find(self, request: Request, repo_type: str, name: str, write: bool) -> Repository:
        """The repository, if the user may do this. Strangers do not learn of private ones."""
        repository = self.repositories.get((repo_type, check_repo_name(name)))
        hidden = repository is None or (
            repository.private and not self.belongs_to(name, request.user)
        )
        if hidden:
            status = 401 if request.user is None else 404
            raise HubError(status, "Repository not found", "RepoNotFound")
        if write:
            self.check_owner(request, name)
        return repository

    def answer(self, request: Request) -> Answer:
        try:
            return self._follow_route(request)
        except HubError as error:
            return error_answer(error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return error_answer(HubError(400, f"Malformed request: {error!r}"))

    def _follow_route(self, request: Request) -> Answer:
        for it in ROUTES:
            method = "GET" if request.method == "HEAD" else request.method
            match = it.pattern.fullmatch(request.path) if method == it.method else None
            if match is None:
                continue
            groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
            kind, name = groups.pop("kind", ""), groups.pop("name", "")
            with self.lock:
                if it.access is None:
                    return it.function(self, request, **groups)
                repo_type = REPO_TYPES[kind or "models"]
                repository = self.find(request, repo_type, name, it.access == "write")
                return it.function(self, request, repository, **groups)
        raise HubError(404, f"No route for {request.method} {request.path}")


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    hub: Hub  # set by `serve`
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise every answer waits for an acknowledgement

    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self):
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):  # the client may be gone
            super().finish()

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_):
        """Requests go to `hub.log`; standard error belongs to the tests."""

    def serve_request(self):
        url = urlsplit(self.path)
        user, may_write = self.hub.who(self.headers.get("Authorization", ""))
        line = LogLine(self.command, url.path)
        line.query, line.user, line.agent = url.query, user, self.headers.get("User-Agent", "")
        self.hub.log.append(line)
        failure = self.hub.take_failure(self.command, url.path)
        dropped = failure is not None and failure.answer is None
        if dropped and failure.during == "request":
            line.received = len(self.read_body(failure.after_bytes))
            return self.hang_up()
        body = self.read_body()
        line.received = len(body)
        if failure is not None and not dropped:
            answer = failure.answer
        else:
            query = dict(parse_qsl(url.query))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(
                self.command, url.path, query, headers, body, user, may_write, self.hub.endpoint
            )
            answer = self.hub.answer(request)
        if dropped:
            self.send_answer(answer, failure.after_bytes)
            return self.hang_up()
        line.status = answer.status
        self.send_answer(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve_request

    def read_body(self, limit: int | None = None) -> bytes:
        """The body, or its first `limit` bytes."""
        limit = sys.maxsize if limit is None else limit
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(min(int(self.headers.get("Content-Length", 0)), limit))
        body = b""
        while len(body) < limit:
            size = int(self.rfile.readline().strip() or b"0", 16)
            body += self.rfile.read(min(size, limit - len(body)))
            if len(body) < limit:
                self.rfile.readline()
            if size == 0:
                break
        return body

    def send_answer(self, answer: Answer, limit: int | None = None) -> None:
        """Send the answer, or all of its headers and the first `limit` bytes of its body."""
        content = answer.content
        headers = {"Content-Length": str(len(content)), "X-Request-Id": "test"} | answer.headers
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:limit])

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """The listening socket and the open connections."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, handler: type[Handler]):
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), handler)

    def stop(self) -> None:
        """Stop listening and end the connections that clients keep open for later requests."""
        self.shutdown()
        self.server_close()
        for connection in tuple(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serve(root, tokens=None, xet=True, port=0, **settings) -> Iterator[Hub]:
    """Run a Hub until the end of the `with` block.

    Args:
        root: Folder for file contents.
        tokens: User by token; default `TOKENS`.
        xet: Whether clients may use Xet. Otherwise they use Git LFS.
        port: Port on the loopback address; 0 for any that is free.
        **settings: Further arguments of `Hub`.

    Yields:
        The `Hub`.
    """
    hub = Hub(root, tokens, xet=xet, **settings)
    server = Server(port, type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.stop()
        thread.join()


def main(arguments: list[str]) -> None:
    if len(arguments) not in (1, 2):
        sys.exit("usage: python -m fake_hub.server ROOT [PORT]")
    with serve(arguments[0], port=int(arguments[1]) if arguments[1:] else 0) as hub:
        print(f"HF_ENDPOINT={hub.endpoint} HF_TOKEN={next(iter(hub.tokens))}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
