"""The server process: uvicorn with bounds on connections, ended by signals."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

# Headers of a request, in bytes.
MAX_HEADER_BYTES = 16_384


class BoundedProtocol(H11Protocol):
    """A connection that is ended when it neither asks for anything nor takes what it was sent.

    uvicorn itself waits without end for the headers of a request once they began, and for a client to read the end of
    its response.
    """

    stall_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look on."""
        super().connection_made(transport)
        self._idle_since: Any = self
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """End it."""
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
    """A uvicorn server for the app, to be run on a socket of its own.

    Asked to end, it takes no new connections and lets requests finish for `drain_seconds`.
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
    """A listening socket; 0 takes a free port. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=1024)


def serve(app: Starlette, listener: socket.socket, *, stall_seconds: float, drain_seconds: float) -> None:
    """Serve until SIGTERM, then return; or until Ctrl-C, then raise KeyboardInterrupt; requests are drained first."""
    server = make_server(app, stall_seconds=stall_seconds, drain_seconds=drain_seconds)
    # uvicorn raises the signals that it caught again when it is done; SIGTERM must not end the process then.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        asyncio.run(server.serve([listener]))
    finally:
        signal.signal(signal.SIGTERM, before)
