"""Ask a model behind an HTTP endpoint of the OpenAI chat protocol, such as `cwm serve`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import secrets
from .http import Cancelled, Client, ContextExceeded, EndpointError

__all__ = ["AnswerError", "Cancelled", "ChatModel", "ContextExceeded", "Endpoint", "EndpointError", "chat_model"]

_THINKING = re.compile(
    r"\s*(?:<(?P<tag>(?:\w+:)?(?:think|thinking|thought|reasoning))>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>)"
)
_THINKING_ENDS = (
    r"(?<!`)</{tag}>(?!`)",
    r"\[/THINK\]",
    r"◁/think▷",
    r"<\|channel\|>final<\|message\|>",
)


class AnswerError(EndpointError):
    """An endpoint answered, but another answer to the same question may be better; the endpoint works."""

    def __init__(self, reason: str, message: str, text: str = "") -> None:
        """Keep a short `reason` for counts, and the `text` as far as it came."""
        super().__init__(reason, message, text)
        self.reason, self.text = reason, text

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])


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
        """Return the answer's text without what the model thought before it.

        Raises:
            AnswerError: The answer has no text, was cut at a limit or by a filter, or is all thinking.
            EndpointError: As `Endpoint.ask`.
        """
        answer = self._endpoint.ask({"model": self._model, "messages": list(messages), **self._fields})
        choice, where = answer["choices"][0], self._endpoint.url
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        said = without_thinking(text) if isinstance(text, str) else None
        if finish in ("length", "content_filter"):
            cut = "at the limit of tokens" if finish == "length" else "by a filter of its content"
            raise AnswerError("cut answer", f"{where}: the answer was cut {cut}", said or "")
        if not isinstance(text, str):
            raise AnswerError("no text", f"{where}: the answer has no text")
        if said is None:
            raise AnswerError("no text", f"{where}: the answer has no text beside its thinking, which does not end")
        return said

    def cancel(self) -> None:
        """End all requests of the endpoint that are being made; from any thread."""
        self._endpoint.cancel()


def chat_model(endpoint: Endpoint, model: str, **fields: Any) -> ChatModel:
    """Return what answers chats through `endpoint`; `fields` are more of each request."""
    return ChatModel(endpoint, model, **fields)


def without_thinking(text: str) -> str | None:
    """Return what follows the thinking that a model wrote before its answer; None where the thinking does not end.

    Servers that do not part them leave both in one text, some without the mark that begins the thinking, which stood
    in the prompt.
    """
    begin = _THINKING.match(text)
    tag = re.escape(begin["tag"]) if begin and begin["tag"] else "think"
    end = re.compile("|".join(_THINKING_ENDS).replace("{tag}", tag)).search(text, begin.end() if begin else 0)
    if end:
        return text[end.end() :].lstrip()
    return None if begin else text
