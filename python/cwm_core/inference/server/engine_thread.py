"""Run the engine in a thread of its own: the event loop submits requests and receives tokens.

Call all methods of `EngineThread` and `Ticket` from the event loop; none of them blocks it. The thread puts tokens
into an outbox and wakes the loop, at most once until the loop has emptied the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ..engine import Engine
from ..requests import Event, Handle, Request
from .protocol import ApiError, invalid

logger = logging.getLogger(__name__)

# Consecutive failed steps after which the engine counts as broken, as CUDA is after a failed kernel.
MAX_FAILURES = 3

# Tokens of a request that may wait for a slow client; each takes about 500 bytes.
MAX_UNREAD = 65_536


class Ticket:
    """The sequences of one HTTP request."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Track `requests`, in the order of the answer's choices."""
        self.requests = tuple(requests)
        self.open = set(range(len(requests)))
        """Choices that are neither finished nor canceled."""
        self._events: list[tuple[int, Event]] = []
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    @property
    def unread(self) -> int:
        """Return the number of events that wait for `read`."""
        return len(self._events)

    async def read(self) -> list[tuple[int, Event]]:
        """Wait for an event, then return all events since the last call, each with the index of its choice.

        Raises:
            ApiError: The request failed.
        """
        await self._news.wait()
        self._news.clear()
        if self._error:
            raise self._error
        events, self._events = self._events, []
        return events

    def put(self, choice: int, event: Event) -> None:
        """Queue an event for `read`; drop it if the choice is canceled."""
        if choice in self.open:
            self._events.append((choice, event))
            self._news.set()

    def fail(self, error: ApiError) -> None:
        """Make `read` raise `error`."""
        self.open.clear()
        self._events.clear()
        self._error = error
        self._news.set()


@dataclass(frozen=True)
class _Place:
    """A choice of a ticket: the owner of a sequence."""

    ticket: Ticket
    choice: int


class EngineThread:
    """The thread that runs the engine, and the queue in front of it."""

    def __init__(self, engine: Engine, max_queue: int) -> None:
        """Accept at most `max_queue` sequences beyond the engine's batch."""
        self.engine = engine
        self.limit = engine.max_batch + max_queue
        self.open = 0
        """Submitted sequences that are neither finished nor canceled."""
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
        """Start the thread; deliver its events on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def check_room(self, sequences: int = 1) -> None:
        """Raise `ApiError` if `submit` would refuse this number of sequences."""
        if self.failed or self._stopping:
            raise ApiError(503, "the engine has failed" if self.failed else "the server is stopping")
        if self.open + sequences > self.limit:
            raise ApiError(429, f"{self.open} sequences are running or waiting; try again later", code="queue_full")

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Queue all requests, or raise `ApiError` and queue none."""
        ticket = Ticket(requests)
        with self._wake:
            self.check_room(len(requests))  # under the lock: nothing reads the queue after the thread ends
            self.open += len(requests)
            self._submitted += [_Place(ticket, choice) for choice in ticket.open]
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket, choice: int | None = None) -> None:
        """Cancel a choice, or all open ones if `choice` is None; their cache is free before the engine's next step."""
        gone = ticket.open & {choice} if choice is not None else set(ticket.open)
        if not gone:
            return
        ticket.open -= gone
        self.open -= len(gone)
        with self._wake:
            self._cancelled += [_Place(ticket, choice) for choice in gone]
            self._wake.notify()

    async def stop(self) -> None:
        """Stop the thread after its current step; open requests fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        self._deliver()

    def _deliver(self) -> None:
        """Pass the contents of the outbox to their tickets; runs on the event loop."""
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
        """Run steps until the thread is stopped or the engine fails."""
        places: dict[Handle, _Place] = {}
        handles: dict[_Place, Handle] = {}
        error = ApiError(503, "the server is stopping")
        try:
            while not self.failed and self._take_orders(places, handles):
                if handles:  # an empty step would count as a success
                    self._step(places, handles)
        except Exception:
            logger.exception("the engine failed and stops")
            self.failed, error = True, ApiError(500, "generation failed", code="engine_error")
        finally:
            self._drop(places, handles, error)
            with self._wake:
                submitted, self._submitted = self._submitted, []
            self._post([(place, error) for place in submitted])

    def _step(self, places: dict[Handle, _Place], handles: dict[_Place, Handle]) -> None:
        """Run a step and post its events; if it fails, fail all sequences."""
        try:
            events = self.engine.step()
        except Exception:
            logger.exception("a step of the engine failed")
            self._failures += 1
            self.failed = self._failures >= MAX_FAILURES
            self._drop(places, handles, ApiError(500, "generation failed", code="engine_error"))
            return
        self._failures = 0
        # A sequence canceled during the step has no place any more.
        self._post([(places[event.handle], event) for event in events if event.handle in places])
        for event in events:
            if event.finish_reason and event.handle in places:
                del handles[places.pop(event.handle)]

    def _take_orders(self, places: dict[Handle, _Place], handles: dict[_Place, Handle]) -> bool:
        """Wait for work, then submit and cancel sequences. Return False when the thread must stop."""
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
        """Fail all sequences in the engine with `error`."""
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
