"""Asking a model behind an HTTP endpoint of the OpenAI protocol, such as `cwm serve`."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_ANSWER_BYTES = 64 << 20
LONGEST_WAIT = 60.0  # seconds between two tries
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that a later try may not get


class EndpointError(RuntimeError):
    """The endpoint refused, broke down, or gave no answer in time; says how, and never the key."""


class ContextExceeded(EndpointError):
    """The request was refused because prompt and answer would be too long."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        """Do not follow."""
        return None


class Endpoint:
    """``URL/chat/completions``.

    What fails in passing (no connection, a time limit, status 408, 429 or 5xx) is tried again after 1, 2, 4, ...
    seconds, or as long as the server asks for, at most `LONGEST_WAIT`.
    """

    def __init__(
        self,
        url: str,
        *,
        key_variable: str | None = "CWM_API_KEY",
        request_seconds: float = 600.0,
        retries: int = 5,
    ) -> None:
        """`url` ends with ``/v1`` at most servers. `request_seconds`: of a try.

        `key_variable`: of the environment, holds the key, if the endpoint wants one; read when a request is sent, and
        kept nowhere. Raises ValueError for a URL that is not HTTP.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"an endpoint's URL begins with http:// or https://, not {url!r}")
        self.url = url.rstrip("/") + "/chat/completions"
        self._key_variable, self._request_seconds, self._retries = key_variable, request_seconds, retries
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, body: dict[str, Any], *, deadline: float = math.inf, seed: int = 0) -> dict[str, Any]:
        """The answer to a request, a chat completion, tried again as long as that may help.

        `deadline` is of `time.monotonic`; `seed` spreads the waits of many that ask at once. Raises TimeoutError at the
        deadline, `ContextExceeded`, and `EndpointError` for any other failure.
        """
        jitter = random.Random(seed)
        for attempt in range(self._retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{self.url}: no time is left")
            try:
                return self._try(body, min(self._request_seconds, left))
            except _Passing as error:
                if attempt == self._retries:
                    raise EndpointError(f"{error} (the last of {attempt + 1} tries)") from None
                wait = 2**attempt * jitter.uniform(0.5, 1.0) if error.wait is None else error.wait
                time.sleep(max(0.0, min(wait, LONGEST_WAIT, deadline - time.monotonic())))
        raise AssertionError("unreachable")

    def _try(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        key = self._key()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        deadline = time.monotonic() + seconds
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return _answer(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                said, code = _refusal(error)
            said = said.replace(key, "[key]") if key else said
            if code == "context_length_exceeded" or "maximum context length" in said:
                raise ContextExceeded(said) from None
            text = f"{self.url} answered with status {error.code}: {said}"
            if error.code in _PASSING:
                raise _Passing(text, _seconds(error.headers.get("Retry-After"))) from None
            raise EndpointError(text) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, of connections, is an OSError
            reason = getattr(error, "reason", error)
            raise _Passing(f"{self.url} gave no answer: {reason or type(error).__name__}") from None

    def _key(self) -> str | None:
        key = os.environ.get(self._key_variable, "").strip() if self._key_variable else ""
        if not key.isascii() or not key.isprintable():  # the error of http.client would show it
            raise EndpointError(f"{self._key_variable} holds no key: it has characters that no header may have")
        return key or None


def chat_model(endpoint: Endpoint, model: str, **fields: Any) -> Callable[[Sequence[Mapping[str, str]]], str]:
    """What answers a chat, messages of ``role`` and ``content``, with a text; `fields` are more of each request.

    It raises `EndpointError`, also where the answer has no text.
    """

    def answer(messages: Sequence[Mapping[str, str]]) -> str:
        said = endpoint.ask({"model": model, "messages": list(messages), **fields})
        text = said["choices"][0]["message"].get("content")
        if not isinstance(text, str):
            raise EndpointError(f"{endpoint.url}: the answer has no text")
        return text

    return answer


class _Passing(Exception):
    """A failure that another try may not meet; `wait`: the seconds that the server asks for."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole answer; its parts together may take no longer than one could."""
    data = bytearray()
    while chunk := response.read1(1 << 16):
        data += chunk
        if len(data) > MAX_ANSWER_BYTES:
            raise EndpointError(f"the endpoint's answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer took too long")
    return bytes(data)


def _answer(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
        choice = answer["choices"][0]
        if isinstance(choice["message"], dict):
            return answer
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise EndpointError(f"the endpoint's answer is no chat completion: {data[:200]!r}")


def _refusal(error: urllib.error.HTTPError) -> tuple[str, str | None]:
    """What an error's answer says, shortened, and its code."""
    try:
        data = error.read(1 << 16)
    except (OSError, http.client.HTTPException):
        data = b""
    said, code = data.decode(errors="replace") or error.reason or "", None
    try:
        refusal = _object(_object(json.loads(data)).get("error"))
        said, code = refusal.get("message") or said, refusal.get("code")
    except (ValueError, RecursionError):
        pass
    return " ".join(str(said)[:1000].split()), code if isinstance(code, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header; None for a date, which nobody's clock agrees on."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
