"""What the server does with a request before Gradio sees it, and after its client has gone."""

import asyncio
import contextlib
import logging
import traceback
from urllib.parse import parse_qs

import gradio as gr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

LOG = logging.getLogger(__name__)
MAX_BODY, MAX_DRAWING_BODY = 1_000_000, 25_000_000  # bytes of a request
CLOSED = "Direct runs are closed; POST to /gradio_api/call/NAME, which waits its turn in the queue."


class Refusals:
    """ASGI middleware that refuses what no honest client sends.

    These are calls that pass the queue by, and requests that are too large: Gradio keeps the last
    values of every session, whatever an endpoint thinks of them. A request that Gradio fails on is
    answered with one sentence, and logged with one line.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        refused = self.refusal(scope) if scope["type"] == "http" else None
        unread, more = MAX_DRAWING_BODY, refused is not None
        while more and unread > 0:  # clients that are still sending do not see an answer
            message = await receive()
            unread, more = unread - len(message.get("body", b"")), message.get("more_body", False)
        # Two answers to one request would break the connection, so it is noted whether one has
        # begun.
        answer, begun = refused or self.app, False

        async def send_on(message):
            nonlocal begun
            begun = True
            await send(message)

        try:
            await answer(scope, receive, send_on)
        except Exception as error:
            if scope["type"] != "http" or begun:
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            LOG.warning("%s: %r at %s:%s", scope["path"], error, where.filename, where.lineno)
            answer = JSONResponse({"detail": "The server could not make sense of this."}, 400)
            await answer(scope, receive, send)

    def refusal(self, scope) -> JSONResponse | None:
        """The answer to a request that is not passed on."""
        # Calls that pass by the queue would run without a place, a limit or a fair turn.
        path, headers = scope["path"].rstrip("/"), Headers(scope=scope)
        if any(part in path for part in ("/gradio_api/run/", "/gradio_api/api/")):
            return JSONResponse({"detail": CLOSED}, 404)
        if path.endswith("/gradio_api/upload"):  # Gradio has a limit of its own for files
            return None
        if "transfer-encoding" in headers:  # of no declared length; no client of ours sends that
            return JSONResponse({"detail": "The request must say its length."}, 411)
        # The declared length is enough: the server reads no more of a request than it declared.
        drawing = path.endswith("/gradio_api/component_server")
        limit = MAX_DRAWING_BODY if drawing else MAX_BODY
        length = headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) <= limit:
            return None
        return JSONResponse({"detail": f"The request has more than {limit} bytes."}, 413)


class Listeners:
    """ASGI middleware that tells the queue which clients listen, and at once when one has gone.

    Gradio itself notices after 10 to 15 seconds, in which a run goes on for nobody.
    """

    def __init__(self, app, demo: gr.Blocks):
        self.app, self.demo = app, demo

    async def __call__(self, scope, receive, send):
        key = listens_to(scope) if scope["type"] == "http" else None
        if key is None:
            await self.app(scope, receive, send)
            return
        queue, gone = self.demo._queue, asyncio.Event()

        # The server's messages end with one that the client has gone; Gradio polls for it.
        async def watch():
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            queue.listeners[key] -= 1
            await queue.client_left(key)

        async def receive_end():
            await gone.wait()
            return {"type": "http.disconnect"}

        # From here on the watcher alone reads what the server says; Gradio gets the end from it.
        queue.listeners[key] += 1
        watcher = asyncio.create_task(watch())
        try:
            await self.app(scope, receive_end, send)
        finally:
            # An answer that is complete is no client that has left.
            if not gone.is_set():
                watcher.cancel()
                queue.listeners[key] -= 1
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            if not queue.listeners[key]:
                del queue.listeners[key]


def listens_to(scope) -> str | None:
    """Session or id of the calls whose messages a request asks for; None for other requests."""
    if scope["method"] != "GET":
        return None
    _, _, path = scope["path"].partition("/gradio_api/")
    parts = path.strip("/").split("/")
    if parts == ["queue", "data"]:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return query.get("session_hash", [None])[0]
    return parts[-1] if parts[0] == "call" and len(parts) > 2 else None
