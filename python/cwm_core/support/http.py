"""Send requests to servers of the OpenAI protocol.

Requests run on one event loop in a separate thread, so that a deadline ends them at any stage: a name, a
connection, or headers or a body that arrive a byte at a time. For the same reason they can be canceled from any
thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

from .._native import CwmError
from . import secrets

MAX_ANSWER_BYTES = 64 << 20
LONGEST_WAIT = 60.0  # seconds between two tries
_ERROR_BYTES = 1 << 16  # to read of an error's body
_ERROR_SECONDS = 5.0  # for an error's body to arrive; the status matters more
_SHOWN = 1000  # characters of an error's body in a message
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that a later try may not get
_WORKS_AS_KEY = "printable ASCII characters without spaces"

_pause = asyncio.sleep  # tests replace it


class EndpointError(CwmError, RuntimeError):
    """An endpoint refused, failed, or did not answer in time. The message never contains the key."""

    status: int | None = None
    """HTTP status of the answer; None if there was no answer."""


class ContextExceeded(EndpointError):
    """The endpoint refused a request because prompt and answer would be longer than the context."""


class Cancelled(EndpointError):
    """`Client.cancel` ended the request."""


class Client:
    """Sends requests for JSON to one URL, and retries temporary failures.

    A failure is temporary if the connection failed, the attempt timed out, the answer was truncated, or its status
    is 408, 409, 425, 429, 500, 502, 503, 504, or 529. The next attempt follows after 1, 2, 4, ... seconds, or after the
    time that the server asks for, at most `LONGEST_WAIT`. Redirects are errors, because they would send the key to
    another server.
    """

    def __init__(
        self, url: str, *, key: Callable[[], str] = lambda: "", request_seconds: float = 600.0, retries: int = 5
    ) -> None:
        """Prepare requests without sending any.

        Args:
            url: The whole URL.
            key: Function that returns the key, or an empty text for none. It is called for each request.
            request_seconds: Time limit of one attempt.
            retries: Maximum number of attempts after the first one.

        Raises:
            ValueError: The URL is not an HTTP URL, or has a user name, password, query, or fragment.
            ModuleNotFoundError: httpx is not installed.
        """
        self.url, self._key, self._seconds, self._retries = _checked(url), key, request_seconds, retries
        self._httpx = _httpx()
        self._tls = self._httpx.create_ssl_context()
        self._pending: set[concurrent.futures.Future[dict[str, Any]]] = set()

    def post(
        self, body: Any, *, deadline: float = math.inf, seed: int = 0, max_bytes: int | None = None
    ) -> dict[str, Any]:
        """Send `body` and return the JSON object that answers it.

        Args:
            body: JSON value to send.
            deadline: End of all tries together, on the clock of `time.monotonic`.
            seed: Seed of the random part of waiting times, which spreads the retries of many clients.
            max_bytes: Maximum length of the answer; None for `MAX_ANSWER_BYTES`.

        Raises:
            TimeoutError: The deadline is over.
            ContextExceeded: Prompt and answer would be longer than the context.
            Cancelled: `cancel` was called.
            EndpointError: Anything else failed.
        """
        return self._request("POST", json.dumps(body).encode(), deadline, seed, max_bytes)

    def get(self, *, deadline: float = math.inf, seed: int = 0, max_bytes: int | None = None) -> dict[str, Any]:
        """Return the JSON object at the URL. Arguments and exceptions are those of `post`."""
        return self._request("GET", b"", deadline, seed, max_bytes)

    def _request(
        self, method: str, content: bytes, deadline: float, seed: int, max_bytes: int | None
    ) -> dict[str, Any]:
        limit = MAX_ANSWER_BYTES if max_bytes is None else max_bytes
        asked = asyncio.run_coroutine_threadsafe(self._ask(method, content, deadline, seed, limit), _loop())
        self._pending.add(asked)
        try:
            return asked.result()
        except concurrent.futures.CancelledError:
            raise Cancelled(f"{self.url}: the request was cancelled") from None
        finally:
            asked.cancel()  # it still runs if this thread was interrupted
            self._pending.discard(asked)

    def cancel(self) -> None:
        """End all running requests with `Cancelled`, from any thread."""
        for asked in tuple(self._pending):
            asked.cancel()

    async def _ask(self, method: str, content: bytes, deadline: float, seed: int, limit: int) -> dict[str, Any]:
        jitter = random.Random(seed)
        failure = ""
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                for attempt in range(self._retries + 1):
                    try:
                        return await self._try(method, content, limit, min(deadline, time.monotonic() + self._seconds))
                    except _Passing as error:
                        passing = error
                    failure = f"; the last of {attempt + 1} tries: {passing}"
                    if attempt == self._retries:
                        break
                    wait = 2**attempt * jitter.uniform(0.5, 1.0) if passing.wait is None else passing.wait
                    wait = min(wait, LONGEST_WAIT)
                    if time.monotonic() + wait >= deadline:
                        raise TimeoutError
                    await _pause(wait)
        except TimeoutError:
            raise TimeoutError(f"{self.url}: the deadline is over{failure}") from None
        raise _with_status(EndpointError(f"{passing} (the last of {attempt + 1} tries)"), passing.status)

    async def _try(self, method: str, content: bytes, limit: int, until: float) -> dict[str, Any]:
        httpx, key = self._httpx, self._checked_key()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpx.AsyncClient(timeout=None, verify=self._tls) as client,
                client.stream(method, self.url, content=content, headers=headers) as response,
            ):
                if not response.is_success:
                    raise await self._refusal(response, key, (until - time.monotonic()) / 2)
                data = await self._read(response, limit)
        except TimeoutError:
            raise _Passing(f"{self.url} did not answer within {self._seconds:g} seconds: timed out") from None
        except httpx.TransportError as error:
            said = secrets.redact(_reason(error), key)
            if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
                raise EndpointError(f"{self.url}: cannot send a request: {said}") from None
            raise _Passing(f"{self.url} did not answer: {said}") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            said = secrets.redact(_reason(error), key)
            raise EndpointError(f"{self.url}: cannot send a request: {said}") from None
        return self._object(data, key)

    async def _read(self, response: Any, limit: int) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > limit:
                raise EndpointError(f"{self.url}: the answer is longer than {limit:,} bytes")
        return bytes(data)

    def _object(self, data: bytes, key: str) -> dict[str, Any]:
        """Return the answer without the key, which a server that repeats the headers of its request would put there."""
        try:
            answer = json.loads(data)
            if isinstance(answer, dict):
                return cast(dict[str, Any], secrets.redact_value(answer, key))
        except (ValueError, RecursionError) as error:
            if data.lstrip()[:1] == b"{" and not isinstance(error, RecursionError):
                raise _Passing(f"{self.url}: the answer was cut: incomplete JSON ({error})") from None
        shown = secrets.redact(data.decode(errors="replace"), key)[:200]
        raise EndpointError(f"{self.url}: the answer is not a JSON object: {shown!r}")

    async def _refusal(self, response: Any, key: str, seconds: float) -> Exception:
        """Return the exception for an error response. Reading its body may take `seconds`."""
        data, whole = await _start(response, min(seconds, _ERROR_SECONDS))
        text = data.decode(errors="replace")
        said, code = secrets.redact(text, key, whole=whole), None
        if response.is_redirect:
            place = secrets.redact(response.headers.get("Location", ""), key)
            said = f"a redirect to {place}, which is not followed; use that address if you trust it. {said}"
        try:
            refusal = json.loads(data)["error"]
            code = refusal["code"] if isinstance(refusal, dict) and isinstance(refusal.get("code"), str) else None
            message = refusal.get("message") if isinstance(refusal, dict) else refusal
            said = secrets.redact(message, key) if message and isinstance(message, str) else said
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        said = " ".join(said.split())[:_SHOWN] or secrets.redact(response.reason_phrase, key)
        status = response.status_code
        text = f"{self.url} answered with status {status}: {said}"
        if code == "context_length_exceeded" or "maximum context length" in said:
            return _with_status(ContextExceeded(text), status)
        if status in _PASSING:
            return _Passing(text, status, _seconds(response.headers.get("Retry-After")))
        return _with_status(EndpointError(text), status)

    def _checked_key(self) -> str:
        key = self._key()
        if not key.isascii() or not key.isprintable() or " " in key:  # the error of a library would show the key
            raise EndpointError(f"{self.url}: the key cannot be sent: expected {_WORKS_AS_KEY}")
        return key


class _Passing(CwmError):
    """A failure that another try may not have.

    Attributes:
        status: HTTP status of the answer, if there was one.
        wait: Seconds that the server asks to wait.
    """

    def __init__(self, text: str, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(text)
        self.status, self.wait = status, wait


def _with_status(error: EndpointError, status: int | None) -> EndpointError:
    error.status = status
    return error


def _checked(url: str) -> str:
    """Return the URL.

    Raises:
        ValueError: No request can be sent to it, or messages would show a secret in it.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"expected a URL that begins with http:// or https://, got {url[:30]!r}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # reading `port` checks it
    except ValueError as error:
        raise ValueError(f"the URL of the endpoint is invalid: {error}") from None
    if not host:
        raise ValueError(f"expected a URL with a host, such as http://localhost:8000/v1, got {url[:30]!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"the URL of the endpoint at {host} has a user name, a query, or a fragment, which messages and files "
            f"would show: give only the address, and put the key into a variable such as {secrets.KEY_VARIABLE}"
        )
    return url


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        said = "requests to a server need the package httpx: run pip install '.[http]' in a checkout of cwm-core"
        raise ModuleNotFoundError(said, name="httpx") from None
    return httpx


class _Running:
    """The event loop of this process and its thread. A forked process has neither."""

    loop: asyncio.AbstractEventLoop | None = None
    starting = threading.Lock()

    @classmethod
    def forget(cls) -> None:
        cls.loop, cls.starting = None, threading.Lock()


os.register_at_fork(after_in_child=_Running.forget)


def _loop() -> asyncio.AbstractEventLoop:
    with _Running.starting:
        if _Running.loop is None:
            _Running.loop = asyncio.new_event_loop()
            threading.Thread(target=_Running.loop.run_forever, name="cwm-http", daemon=True).start()
        return _Running.loop


async def _start(response: Any, seconds: float) -> tuple[bytes, bool]:
    """Return the beginning of an error's body and whether it is complete. A failure to read it is not reported."""
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > _ERROR_BYTES:
                    return bytes(data[:_ERROR_BYTES]), False
    except (TimeoutError, OSError, RuntimeError, _httpx().HTTPError):
        return bytes(data), False
    return bytes(data), True


def _reason(error: BaseException) -> str:
    """Return the system's reason for the lack of a connection, or else what the library says."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            own = cause.strerror if cause.errno < 0 else None  # numbers of name resolution are negative
            return own or os.strerror(cause.errno)
    return str(error) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the causes of an exception, the innermost one first."""
    if error is None:
        return
    yield from _causes(error.__cause__ or error.__context__)
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _causes(inner)
    yield error


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header, or None for a date, because clocks differ."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
