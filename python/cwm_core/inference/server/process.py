"""Run the server process: uvicorn with limits on connections, stopped by signals."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 16_384
"""Maximum size of a request's headers."""


class BoundedProtocol(H11Protocol):
    """A connection that is closed when the client neither completes a request nor reads its response.

    Plain uvicorn waits forever for the rest of a request's headers, and for a client to read the end of its response.
    """

    stall_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer."""
        super().connection_made(transport)
        self._idle_since: Any = self
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(self.stall_seconds, self._look)

    def _look(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        if is_idle and self._idle_since is self.cycle:
            self.transport.abort()
            return
        self._idle_since = self.cycle if is_idle else self
        self._look_again()


def make_server(
    app: Starlette,
    *,
    stall_seconds: float = 30.0,
    drain_seconds: float = 30.0,
    max_connections: int = 1024,
    log_level: str = "warning",
) -> uvicorn.Server:
    """Create a uvicorn server for an application; run it with `serve([listener])`.

    Args:
        app: The application.
        stall_seconds: Seconds after which a stalled connection is closed.
        drain_seconds: Seconds that running requests have to finish when the server stops.
        max_connections: Maximum number of open connections; further ones get status 503.
        log_level: uvicorn's log level.
    """
    protocol = type("Protocol", (BoundedProtocol,), {"stall_seconds": stall_seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_level=log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free port. Raise OSError if the address is in use or invalid."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=1024)


def serve(app: Starlette, listener: socket.socket, *, stall_seconds: float, drain_seconds: float) -> None:
    """Serve until SIGTERM or Ctrl-C, and let running requests finish for `drain_seconds`.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped the server.
    """
    server = make_server(app, stall_seconds=stall_seconds, drain_seconds=drain_seconds)
    # When uvicorn is done, it raises the caught signals again; SIGTERM must not end the process then.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        asyncio.run(server.serve([listener]))
    finally:
        signal.signal(signal.SIGTERM, before)
