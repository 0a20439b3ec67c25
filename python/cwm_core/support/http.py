"""Ask servers of the OpenAI protocol.

Requests run on one event loop in a thread of its own, where a deadline ends them whatever they wait for: a name, a
connection, headers or a body that come a byte at a time. For the same reason they can be cancelled from any thread.
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
from typing import Any
from urllib.parse import urlsplit

from . import secrets

MAX_ANSWER_BYTES = 64 << 20
LONGEST_WAIT = 60.0  # seconds between two tries
_ERROR_BYTES = 1 << 16  # of an error's body that are read
_ERROR_SECONDS = 5.0  # that an error's body has to arrive: its status says the most
_SHOWN = 1000  # characters of an error's body that are shown
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that a later try may not get
_WORKS_AS_KEY = "letters, digits and signs of ASCII, without spaces or line ends"

_pause = asyncio.sleep  # tests replace it


class EndpointError(RuntimeError):
    """An endpoint refused, broke down, or gave no answer in time; the message never holds the key."""

    status: int | None = None
    """The answer's HTTP status; None where none came."""


class ContextExceeded(EndpointError):
    """The endpoint refused a request because prompt and answer would be too long."""


class Cancelled(EndpointError):
    """`Client.cancel` ended the request."""


class Client:
    """Asks one URL for JSON, and tries again what fails in passing.

    A failure is in passing when there was no connection, the time of a try ran out, the answer was cut, or its status
    is 408, 409, 425, 429, 500, 502, 503, 504, or 529. The next try comes after 1, 2, 4, ... seconds, or as long as the
    server asks for, at most `LONGEST_WAIT`. Redirects are errors: they would take the key to another server.
    """

    def __init__(
        self, url: str, *, key: Callable[[], str] = lambda: "", request_seconds: float = 600.0, retries: int = 5
    ) -> None:
        """Prepare requests to `url`; nothing is sent yet.

        Args:
            url: What is asked, whole.
            key: Called for each request: the key, or "" for none.
            request_seconds: Longest time of a try.
            retries: Most tries after the first.

        Raises:
            ValueError: The URL is not one of HTTP, or has a user name, password, query or fragment.
            ModuleNotFoundError: httpx is not installed.
        """
        self.url, self._key, self._seconds, self._retries = _checked(url), key, request_seconds, retries
        self._httpx = _httpx()
        self._tls = self._httpx.create_ssl_context()
        self._pending: set[concurrent.futures.Future[dict[str, Any]]] = set()

    def post(
        self, body: Any, *, deadline: float = math.inf, seed: int = 0, max_bytes: int | None = None
    ) -> dict[str, Any]:
        """Return the JSON object that answers `body`.

        Args:
            body: Sent as JSON.
            deadline: Of `time.monotonic`, for all tries together.
            seed: Spreads the waits of many that ask at once.
            max_bytes: Longest answer that is read; None is `MAX_ANSWER_BYTES`.

        Raises:
            TimeoutError: The deadline has come.
            ContextExceeded: Prompt and answer would be too long.
            Cancelled: `cancel` was called meanwhile.
            EndpointError: Anything else failed.
        """
        return self._request("POST", json.dumps(body).encode(), deadline, seed, max_bytes)

    def get(self, *, deadline: float = math.inf, seed: int = 0, max_bytes: int | None = None) -> dict[str, Any]:
        """Return the JSON object at the URL; arguments and errors are those of `post`."""
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
            asked.cancel()  # after an interrupt of this thread it still runs
            self._pending.discard(asked)

    def cancel(self) -> None:
        """End all requests that are being made, each with `Cancelled`; from any thread."""
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
            raise TimeoutError(f"{self.url}: no time is left{failure}") from None
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
            raise _Passing(f"{self.url} gave no answer within {self._seconds:g} seconds: timed out") from None
        except httpx.TransportError as error:
            said = secrets.redact(_reason(error), key)
            if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
                raise EndpointError(f"{self.url} cannot be asked: {said}") from None
            raise _Passing(f"{self.url} gave no answer: {said}") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise EndpointError(f"{self.url} cannot be asked: {secrets.redact(_reason(error), key)}") from None
        return self._object(data, key)

    async def _read(self, response: Any, limit: int) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > limit:
                raise EndpointError(f"{self.url}: the answer is longer than {limit:,} bytes")
        return bytes(data)

    def _object(self, data: bytes, key: str) -> dict[str, Any]:
        """The answer without the key, which a server that repeats its request's headers would have put there."""
        try:
            answer = json.loads(data)
            if isinstance(answer, dict):
                return secrets.redact_value(answer, key)
        except (ValueError, RecursionError) as error:
            if data.lstrip()[:1] == b"{" and not isinstance(error, RecursionError):
                raise _Passing(f"{self.url}: the answer was cut: it is not whole JSON ({error})") from None
        shown = secrets.redact(data.decode(errors="replace"), key)[:200]
        raise EndpointError(f"{self.url}: the answer is not a JSON object: {shown!r}")

    async def _refusal(self, response: Any, key: str, seconds: float) -> Exception:
        """The exception for an answer that is an error, whose body may take so many seconds."""
        data, whole = await _start(response, min(seconds, _ERROR_SECONDS))
        text = data.decode(errors="replace")
        said, code = secrets.redact(text, key, whole=whole), None
        if response.is_redirect:
            place = secrets.redact(response.headers.get("Location", ""), key)
            said = f"a redirect to {place}, which is not followed; give that address, if you trust it, {said}"
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
        if not key.isascii() or not key.isprintable() or " " in key:  # a library's error would show it
            raise EndpointError(f"{self.url}: the key cannot be sent: expected {_WORKS_AS_KEY}")
        return key


class _Passing(Exception):
    """A failure that another try may not meet; `wait`: the seconds that the server asks for."""

    def __init__(self, text: str, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(text)
        self.status, self.wait = status, wait


def _with_status(error: EndpointError, status: int | None) -> EndpointError:
    error.status = status
    return error


def _checked(url: str) -> str:
    """Return the URL. Raise ValueError for one that cannot be asked, or that would show a secret in messages."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"an endpoint's URL begins with http:// or https://, not {url[:30]!r}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # the latter raises for a port that is none
    except ValueError as error:
        raise ValueError(f"an endpoint's URL cannot be read: {error}") from None
    if not host:
        raise ValueError(f"an endpoint's URL names a host, as http://localhost:8000/v1, unlike {url[:30]!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"the URL of the endpoint at {host} has a user name, a query or a fragment, which messages and files would "
            f"show: give the address alone, and the key in a variable such as {secrets.KEY_VARIABLE}"
        )
    return url


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        said = "asking a server needs the package httpx: run pip install '.[http]' in a checkout of cwm-core"
        raise ModuleNotFoundError(said, name="httpx") from None
    return httpx


class _Running:
    """The event loop of this process and its thread; a fork has neither."""

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
    """The beginning of an error's body, and whether that is all of it: a failure to read it is not one to report."""
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
    """The system's words for why there was no connection, else what the library says."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.strerror if cause.errno < 0 else os.strerror(cause.errno)
    return str(error) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The innermost first."""
    if error is None:
        return
    yield from _causes(error.__cause__ or error.__context__)
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _causes(inner)
    yield error


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header; None for a date, which nobody's clock agrees on."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
