"""Read a request and send its response over ASGI, bounded in bytes and time, and cancel when the client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from ..._native import CwmError
from .protocol import ApiError

T = TypeVar("T")


class Disconnected(CwmError):
    """The client disconnected, or does not read its response."""


class Exchange:
    """One HTTP request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, stall_seconds: float) -> None:
        """Give up on a client that neither sends nor reads for `stall_seconds`."""
        self._receive, self._send, self._stall_seconds = receive, send, stall_seconds
        self._headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.status: int | None = None
        """Status of the response; None before it begins."""

    def header(self, name: str) -> str:
        """Return the value of a header, given its name in lower case, or an empty string."""
        return self._headers.get(name, "")

    async def body(self, limit: int) -> bytes:
        """Return the body.

        Raises:
            ApiError: The content type is not JSON, the body is longer than `limit` bytes, or it arrives too slowly.
            Disconnected: The client disconnected.
        """
        if self.header("content-type").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the content-type must be application/json")
        too_large = ApiError(413, f"the body is larger than {limit} bytes")
        length = self.header("content-length")
        if length.isdecimal() and int(length[:20]) > limit:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._stall_seconds):
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._stall_seconds:g} seconds") from None
        return bytes(body)

    async def json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response as JSON."""
        data = json.dumps(value).encode()
        await self._start(status, "application/json", {"content-length": str(len(data)), **(headers or {})})
        await self._write(data)
        # The write of an empty last part waits until the data is sent.
        await self._write(b"", more=False)

    async def begin_events(self) -> None:
        """Start a stream of server-sent events."""
        await self._start(200, "text/event-stream; charset=utf-8", {"cache-control": "no-cache"})

    async def event(self, value: Any) -> None:
        """Send one event: a string verbatim, any other value as JSON."""
        data = value if isinstance(value, str) else json.dumps(value)
        await self._write(f"data: {data}\n\n".encode())

    async def end_events(self) -> None:
        """End the stream."""
        await self._write(b"", more=False)

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`; if the client disconnects, cancel `work` and raise `Disconnected`."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._disconnect())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Disconnected
            return task.result()
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _start(self, status: int, media_type: str, headers: Mapping[str, str]) -> None:
        self.status = status
        fields = {"content-type": media_type, **headers}
        encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
        await self._timely({"type": "http.response.start", "status": status, "headers": encoded})

    async def _write(self, data: bytes, more: bool = True) -> None:
        await self._timely({"type": "http.response.body", "body": data, "more_body": more})

    async def _timely(self, message: dict[str, Any]) -> None:
        # The server blocks this call while the client does not read earlier data.
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._send(message)
        except (TimeoutError, OSError):
            raise Disconnected from None
