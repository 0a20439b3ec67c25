"""Ask a model on a server of the OpenAI chat protocol, such as `cwm serve`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from . import secrets
from .http import Cancelled, Client, ContextExceeded, EndpointError

__all__ = [
    "AnswerError",
    "AnswerProblem",
    "Cancelled",
    "ChatModel",
    "ContextExceeded",
    "Endpoint",
    "EndpointError",
    "chat_model",
]

_THINKING = re.compile(
    r"\s*(?:<(?P<tag>(?:\w+:)?(?:think|thinking|thought|reasoning))>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>)"
)
_THINKING_ENDS = (
    r"(?<!`)</{tag}>(?!`)",
    r"\[/THINK\]",
    r"◁/think▷",
    r"<\|channel\|>final<\|message\|>",
)


class AnswerProblem(StrEnum):
    """Reason that an answer is unusable."""

    CUT = "cut answer"
    """A limit on tokens or a filter cut it."""
    NO_TEXT = "no text"
    """It has no text besides its thinking."""


class AnswerError(EndpointError):
    """An endpoint returned an unusable answer. The endpoint works, so a retry may succeed.

    Attributes:
        reason: Reason that the answer is unusable.
        text: The part of the answer that arrived.
    """

    def __init__(self, reason: AnswerProblem, message: str, text: str = "") -> None:
        """Keep the reason, for counts, and the text."""
        super().__init__(reason, message, text)
        self.reason, self.text = reason, text

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])


class Endpoint:
    """A server that answers `URL/chat/completions`; see `support.http.Client` for retries."""

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
            url: Address of the server. It ends with `/v1` for most servers.
            key_variable: Environment variable with the key, or None if the server needs none. It is read for each
                request and never stored.
            request_seconds: Time limit of one attempt.
            retries: Maximum number of attempts after the first one.

        Raises:
            ValueError: The URL is not an HTTP URL, or may hold a secret.
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
            deadline: End of all tries together, on the clock of `time.monotonic`.
            seed: Seed of the random part of waiting times, which spreads the retries of many clients.

        Raises:
            TimeoutError: The deadline is over.
            ContextExceeded: Prompt and answer would be longer than the context.
            Cancelled: `cancel` was called.
            EndpointError: Anything else failed.
        """
        answer = self._client.post(body, deadline=deadline, seed=seed)
        try:
            if isinstance(answer["choices"][0]["message"], dict):
                return answer
        except (LookupError, TypeError):
            pass
        raise EndpointError(f"{self.url}: expected a chat completion, got {str(answer)[:200]}")

    def cancel(self) -> None:
        """End all running requests with `Cancelled`, from any thread."""
        self._client.cancel()

    def _key(self) -> str:
        key = secrets.get(self._key_variable) if self._key_variable else ""
        if not key.isascii() or not key.isprintable():
            raise EndpointError(
                f"{self._key_variable} does not hold a key: it has characters that a header cannot have"
            )
        return key


class ChatModel:
    """Answers a chat, a list of messages with `role` and `content`, with a text."""

    def __init__(self, endpoint: Endpoint, model: str, **fields: Any) -> None:
        """Ask `endpoint` for `model`; `fields` are added to each request."""
        self._endpoint, self._model, self._fields = endpoint, model, fields

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text of the answer without the model's thinking before it.

        Raises:
            AnswerError: The answer has no text, was cut at a limit or by a filter, or is only thinking.
            EndpointError: The request failed, as in `Endpoint.ask`.
        """
        answer = self._endpoint.ask({"model": self._model, "messages": list(messages), **self._fields})
        choice, where = answer["choices"][0], self._endpoint.url
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        said = without_thinking(text) if isinstance(text, str) else None
        if finish in ("length", "content_filter"):
            cause = "the limit on tokens" if finish == "length" else "a content filter"
            raise AnswerError(AnswerProblem.CUT, f"{where}: {cause} cut the answer", said or "")
        if not isinstance(text, str):
            raise AnswerError(AnswerProblem.NO_TEXT, f"{where}: the answer has no text")
        if said is None:
            raise AnswerError(AnswerProblem.NO_TEXT, f"{where}: the answer is thinking that does not end")
        return said

    def cancel(self) -> None:
        """End all running requests of the endpoint, from any thread."""
        self._endpoint.cancel()


def chat_model(endpoint: Endpoint, model: str, **fields: Any) -> ChatModel:
    """Return a `ChatModel`; `fields` are added to each request."""
    return ChatModel(endpoint, model, **fields)


def without_thinking(text: str) -> str | None:
    """Return what follows the thinking that a model wrote before its answer, or None if the thinking does not end.

    Some servers leave both in one text, and some of these without the mark that begins the thinking, which is in the
    prompt.
    """
    begin = _THINKING.match(text)
    tag = re.escape(begin["tag"]) if begin and begin["tag"] else "think"
    end = re.compile("|".join(_THINKING_ENDS).replace("{tag}", tag)).search(text, begin.end() if begin else 0)
    if end:
        return text[end.end() :].lstrip()
    return None if begin else text
