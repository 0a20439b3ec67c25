"""Ask a model behind an HTTP endpoint of the OpenAI chat protocol, such as `cwm serve`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .support import secrets
from .support.http import Cancelled, Client, ContextExceeded, EndpointError

__all__ = ["Cancelled", "ChatModel", "ContextExceeded", "Endpoint", "EndpointError", "chat_model"]


class Endpoint:
    """``URL/chat/completions``; see `support.http.Client` for what is tried again."""

    def __init__(
        self,
        url: str,
        *,
        key_variable: str | None = secrets.KEY_VARIABLE,
        request_seconds: float = 600.0,
        retries: int = 5,
    ) -> None:
        """Prepare requests.

        Args:
            url: Ends with ``/v1`` at most servers.
            key_variable: Variable of the environment with the key, if the endpoint wants one. It is read when a
                request is sent, and kept nowhere.
            request_seconds: Longest time of a try.
            retries: Most tries after the first.

        Raises:
            ValueError: The URL is not one of HTTP, or may hold a secret.
            ModuleNotFoundError: httpx is not installed.
        """
        if key_variable:
            secrets.protect(key_variable)
        self._key_variable = key_variable
        place = url.rstrip("/") + "/chat/completions"
        self._client = Client(place, key=self._key, request_seconds=request_seconds, retries=retries)
        self.url = self._client.url

    def ask(self, body: dict[str, Any], *, deadline: float = math.inf, seed: int = 0) -> dict[str, Any]:
        """Return the chat completion that answers a request.

        Args:
            body: The request.
            deadline: Of `time.monotonic`, for all tries together.
            seed: Spreads the waits of many that ask at once.

        Raises:
            TimeoutError: The deadline has come.
            ContextExceeded: Prompt and answer would be too long.
            Cancelled: `cancel` was called meanwhile.
            EndpointError: Anything else failed.
        """
        answer = self._client.post(body, deadline=deadline, seed=seed)
        try:
            if isinstance(answer["choices"][0]["message"], dict):
                return answer
        except (LookupError, TypeError):
            pass
        raise EndpointError(f"{self.url}: the answer is no chat completion: {str(answer)[:200]}")

    def cancel(self) -> None:
        """End all requests that are being made, each with `Cancelled`; from any thread."""
        self._client.cancel()

    def _key(self) -> str:
        key = secrets.get(self._key_variable) if self._key_variable else ""
        if not key.isascii() or not key.isprintable():
            raise EndpointError(f"{self._key_variable} holds no key: it has characters that no header may have")
        return key


class ChatModel:
    """Answers a chat, messages of ``role`` and ``content``, with a text."""

    def __init__(self, endpoint: Endpoint, model: str, **fields: Any) -> None:
        """Ask `endpoint` for `model`; `fields` are more of each request."""
        self._endpoint, self._model, self._fields = endpoint, model, fields

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the answer's text.

        Raises:
            EndpointError: As `Endpoint.ask`, or the answer has no text.
        """
        answer = self._endpoint.ask({"model": self._model, "messages": list(messages), **self._fields})
        text = answer["choices"][0]["message"].get("content")
        if not isinstance(text, str):
            raise EndpointError(f"{self._endpoint.url}: the answer has no text")
        return text

    def cancel(self) -> None:
        """End all requests of the endpoint that are being made; from any thread."""
        self._endpoint.cancel()


def chat_model(endpoint: Endpoint, model: str, **fields: Any) -> ChatModel:
    """Return what answers chats through `endpoint`; `fields` are more of each request."""
    return ChatModel(endpoint, model, **fields)
