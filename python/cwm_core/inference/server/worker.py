"""One thread owns the engine; the event loop hands it requests and gets their tokens.

All methods of `Worker` and `Ticket` are for the event loop. What the loop waits for never blocks it: the thread leaves
tokens in an outbox and wakes the loop, at most once for each time that the loop looks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ..engine import Engine, Event, Handle, Request
from .protocol import ApiError, invalid

logger = logging.getLogger(__name__)

# After so many steps in a row that raised, the engine is taken for broken, as CUDA is after a failed kernel.
MAX_FAILURES = 3

# So many tokens of a request may wait for its client to read those before; memory, some 500 bytes each.
MAX_UNREAD = 65_536


class Ticket:
    """The sequences of one HTTP request."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """For requests in the order of the answer's choices."""
        self.requests = tuple(requests)
        self.open = set(range(len(requests)))
        """Choices that neither ended nor were cancelled."""
        self._events: list[tuple[int, Event]] = []
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    @property
    def unread(self) -> int:
        """Events that wait for `read`."""
        return len(self._events)

    async def read(self) -> list[tuple[int, Event]]:
        """All events since the last call, each with its choice; waits for one. Raises `ApiError` where it failed."""
        await self._news.wait()
        self._news.clear()
        if self._error:
            raise self._error
        events, self._events = self._events, []
        return events

    def put(self, choice: int, event: Event) -> None:
        """An event for `read`; one that comes after the choice was cancelled is dropped."""
        if choice in self.open:
            self._events.append((choice, event))
            self._news.set()

    def fail(self, error: ApiError) -> None:
        """Let `read` raise."""
        self.open.clear()
        self._events.clear()
        self._error = error
        self._news.set()


@dataclass(frozen=True)
class _Place:
    """Whose sequence it is."""

    ticket: Ticket
    choice: int


class Worker:
    """The engine's thread, and the queue before it."""

    def __init__(self, engine: Engine, max_queue: int) -> None:
        """Sequences beyond the engine's batch wait, at most `max_queue` of them."""
        self.engine = engine
        self.limit = engine.max_batch + max_queue
        self.open = 0
        """Sequences that were submitted and neither ended nor were cancelled."""
        self.failed = False
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="cwm-engine")
        self._failures = 0  # in a row
        self._wake = threading.Condition()
        # Shared with the thread, under `_wake`:
        self._submitted: list[_Place] = []
        self._cancelled: list[_Place] = []
        self._outbox: list[tuple[_Place, Event | ApiError]] = []
        self._stopping = False

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def check_room(self, sequences: int = 1) -> None:
        """Raise `ApiError` where `submit` would refuse so many."""
        if self.failed or self._stopping:
            raise ApiError(503, "the engine has failed" if self.failed else "the server is stopping")
        if self.open + sequences > self.limit:
            raise ApiError(429, f"{self.open} sequences are generated or wait, try again later", code="queue_full")

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Queue all of the requests, or raise `ApiError` and queue none."""
        ticket = Ticket(requests)
        with self._wake:
            self.check_room(len(requests))  # under the lock: what is queued after the thread's end is never looked at
            self.open += len(requests)
            self._submitted += [_Place(ticket, choice) for choice in ticket.open]
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket, choice: int | None = None) -> None:
        """End a choice, or all that are open; their cache is free before the engine's next step."""
        gone = ticket.open & {choice} if choice is not None else set(ticket.open)
        if not gone:
            return
        ticket.open -= gone
        self.open -= len(gone)
        with self._wake:
            self._cancelled += [_Place(ticket, choice) for choice in gone]
            self._wake.notify()

    async def stop(self) -> None:
        """End the thread after its current step; what is open fails."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        self._deliver()

    def _deliver(self) -> None:
        """On the loop: hand out what the thread left."""
        with self._wake:
            outbox, self._outbox = self._outbox, []
        for place, news in outbox:
            ticket, choice = place.ticket, place.choice
            if isinstance(news, ApiError):
                self.cancel(ticket)
                ticket.fail(news)
                continue
            ticket.put(choice, news)
            if ticket.unread > MAX_UNREAD:
                self.cancel(ticket)
                ticket.fail(ApiError(503, "the client reads too slowly"))
                continue
            if news.finish_reason and choice in ticket.open:
                ticket.open.discard(choice)
                self.open -= 1

    def _run(self) -> None:
        """The thread."""
        places: dict[Handle, _Place] = {}
        handles: dict[_Place, Handle] = {}
        error = ApiError(503, "the server is stopping")
        try:
            while not self.failed and self._take_orders(places, handles):
                if handles:  # a step with nothing to do says nothing about the engine
                    self._step(places, handles)
        except Exception:
            logger.exception("the engine cannot go on")
            self.failed, error = True, ApiError(500, "generation failed", code="engine_error")
        finally:
            self._drop(places, handles, error)
            with self._wake:
                submitted, self._submitted = self._submitted, []
            self._post([(place, error) for place in submitted])

    def _step(self, places: dict[Handle, _Place], handles: dict[_Place, Handle]) -> None:
        """Hand out what a step of the engine gives; where it fails, everything does."""
        try:
            events = self.engine.step()
        except Exception:
            logger.exception("a step of the engine failed")
            self._failures += 1
            self.failed = self._failures >= MAX_FAILURES
            self._drop(places, handles, ApiError(500, "generation failed", code="engine_error"))
            return
        self._failures = 0
        # What a cancelled sequence still gave has no place any more.
        self._post([(places[event.handle], event) for event in events if event.handle in places])
        for event in events:
            if event.finish_reason and event.handle in places:
                del handles[places.pop(event.handle)]

    def _take_orders(self, places: dict[Handle, _Place], handles: dict[_Place, Handle]) -> bool:
        """Wait for something to do, submit and cancel; False at the end."""
        with self._wake:
            while not (self._stopping or self._submitted or self._cancelled or handles):
                self._wake.wait()
            if self._stopping:
                return False
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
        dropped = set(cancelled)
        for place in dropped:
            if place in handles:
                handle = handles.pop(place)
                del places[handle]
                self._forget(handle)
        for place in submitted:
            if place in dropped:
                continue
            try:
                handle = self.engine.submit(place.ticket.requests[place.choice])
            except ValueError as error:
                self._post([(place, invalid(str(error)))])
            except Exception:
                logger.exception("a request could not be queued")
                self._post([(place, ApiError(500, "generation failed", code="engine_error"))])
            else:
                places[handle], handles[place] = place, handle
        return True

    def _drop(self, places: dict[Handle, _Place], handles: dict[_Place, Handle], error: ApiError) -> None:
        """Let everything in the engine fail."""
        for handle in places:
            self._forget(handle)
        self._post([(place, error) for place in handles])
        places.clear()
        handles.clear()

    def _forget(self, handle: Handle) -> None:
        try:
            self.engine.cancel(handle)
        except Exception:
            logger.exception("a sequence could not be cancelled")

    def _post(self, news: Sequence[tuple[_Place, Event | ApiError]]) -> None:
        if not news:
            return
        with self._wake:
            is_first = not self._outbox
            self._outbox += news
        if is_first:
            self._loop.call_soon_threadsafe(self._deliver)
