"""Gradio's queue with a bounded number of places for each client, shared out fairly.

A client is a session of the page or of gradio_client at an address; calls without a session, as
curl makes them, are one client for each address. Whoever has least waiting or running is next, and
a call whose client has gone loses its place. Written for the internals of Gradio 6.31; the tests in
tests/demo/test_queue.py fail if they change.
"""

import time
from collections import Counter
from typing import Any
from urllib.parse import unquote

import gradio as gr
from gradio.queueing import Event, EventQueue, Queue
from gradio.utils import LRUCache
from gradio_client.utils import is_http_url_like

PLACES = 64  # waiting calls of all clients
ADDRESS_PLACES, NAMELESS_PLACES, SESSION_PLACES = 48, 32, 8  # of one address, without a session, ..
SILENCE = 10.0  # seconds that a call without a listener keeps its place
SESSIONS_WITH_MESSAGES = 500  # of which the last messages are kept

FILE = "/gradio_api/file="
NO_ADDRESSES = "An image must be an uploaded file, not the address of one."


class FairQueue(Queue):
    """See the module.

    Attributes:
        listeners: open connections that wait for messages, by session or by the id of a call.
    """

    def __init__(self, demo: gr.Blocks):
        super().__init__(
            live_updates=True,
            concurrency_count=demo.max_threads,
            update_intervals=1,
            max_size=PLACES,
            blocks=demo,
            default_concurrency_limit=1,
        )
        self.pending_messages_per_session = LRUCache(SESSIONS_WITH_MESSAGES)
        self.listeners: Counter[str] = Counter()

    async def push(self, body, request, username):
        """Give a call a place, or say why not: the answer is (granted, id or reason, kind)."""
        if names_address(body.data, request):  # Gradio would download it
            refusal = {"__type__": "validate", "is_valid": False, "message": NO_ADDRESSES}
            return False, [refusal | {"parameter_name": "image"}], "validator_error"
        # Abandoned places are freed first, so that no honest client is turned away because of them.
        self.drop_unheard()
        reason = self._no_place(address_of(request), body.session_hash)
        if reason:
            return False, reason, "queue_full"
        # Gradio has put the call at the end; sharing out moves it where it belongs, and everyone
        # whose place changed is told.
        granted, answer, kind = await super().push(body, request, username)
        event = self.event_ids_to_events.get(answer) if granted else None
        if event is not None:
            self._share_out(self.event_queue_per_concurrency_id[event.concurrency_id])
            self.broadcast_estimations(event.concurrency_id)
        return granted, answer, kind

    def get_events(self):
        """The next call to run."""
        self.drop_unheard()
        return super().get_events()

    def compute_analytics_summary(self, records) -> dict:
        """Nothing: Gradio makes a pandas table of all recent calls after each, for no reader."""
        return self.cached_event_analytics_summary

    def drop_unheard(self) -> None:
        """Take the places of calls that nobody has listened to for `SILENCE` seconds."""
        latest = time.monotonic() - SILENCE
        for event in self._waiting():
            heard = self.listeners[event.session_hash] or self.listeners[event._id]
            if not heard and event.enqueue_time < latest:
                self._forget(event)

    async def client_left(self, key: str) -> None:
        """Stop and forget the calls of a session, or the call of an id, that nobody listens to."""
        if not self.listeners[key]:
            await self.clean_events(session_hash=key, event_id=key)

    def _forget(self, event: Event) -> None:
        """Take a waiting call out of all of Gradio's tables."""
        self.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
        self.event_ids_to_events.pop(event._id, None)
        # Gradio keeps the messages of a session until its last call is done, which this may have
        # been.
        ids = self.pending_event_ids_session.get(event.session_hash, set())
        ids.discard(event._id)
        if not ids:
            self.pending_event_ids_session.pop(event.session_hash, None)
            self.pending_messages_per_session.pop(event.session_hash, None)

    def _waiting(self) -> list[Event]:
        queues = self.event_queue_per_concurrency_id.values()
        return [event for queue in queues for event in queue.queue]

    def _running(self) -> list[Event]:
        return [event for job in self.active_jobs if job for event in job]

    def _no_place(self, address: str, session: str | None) -> str | None:
        """Why a call gets no place; None where it does."""
        # The narrowest limit first, as its sentence tells the client most. Limits of one address
        # lie below those of all, so that nobody can fill the queue alone.
        waiting = self._waiting()
        here = [event for event in waiting if address_of(event.request) == address]
        own = sum(session_of(event) == session for event in here)
        limit = NAMELESS_PLACES if session is None else SESSION_PLACES
        if own >= limit:
            return f"The queue is full for you: {own} of your calls are waiting. Try again later."
        if len(here) >= ADDRESS_PLACES:
            return f"The queue is full for your address: {len(here)} calls wait. Try again later."
        if len(waiting) >= PLACES:
            return f"The queue is full: all {PLACES} places are taken. Try again in a minute."
        return None

    def _share_out(self, queue: EventQueue) -> None:
        """Order calls by how many of the same client, then of the same address, come before."""
        # Round robin: everybody's first call, then everybody's second. Running calls count, or a
        # client could hold the model by always having one more; arrival breaks ties.
        clients: Counter = Counter()
        addresses: Counter = Counter()
        ranked = []
        running = [e for e in self._running() if e.concurrency_id == queue.concurrency_id]
        arrived = sorted(queue.queue, key=lambda event: event.enqueue_time)
        for event in running + arrived:
            address = address_of(event.request)
            client = address, session_of(event)
            ranked.append((clients[client], addresses[address], len(ranked), event))
            clients[client] += 1
            addresses[address] += 1
        queue.queue[:] = [
            event for *_, event in sorted(ranked[len(running) :], key=lambda r: r[:3])
        ]


def address_of(request: Any) -> str:
    """Internet address of the client of a request, as uvicorn found it."""
    return request.client.host if request is not None and request.client else ""


def session_of(event: Event) -> str | None:
    """Session of a call; None where its client named none, for which Gradio takes the id."""
    return None if event.session_hash == event._id else event.session_hash


def names_address(data: Any, request: Any) -> bool:
    """Whether JSON data holds a file that Gradio would fetch from an internet address.

    The address of a file of this server, which MCP clients send, becomes the path of that file.
    """
    # Any depth, by a list and not by recursion, which deep data would exhaust.
    left, host = [data], request.headers.get("host", "")
    while left:
        value = left.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and is_http_url_like(path.strip()):
                server, found, file = path.partition(FILE)
                if not found or server.split("://")[-1] != host:
                    return True
                value["path"] = unquote(file)
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False
