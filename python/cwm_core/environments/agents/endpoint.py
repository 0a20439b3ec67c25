"""A model behind an HTTP endpoint of the OpenAI protocol, such as `cwm serve`."""

import http.client
import json
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from ..tasks import Task
from .protocol import Budget, Generate, Message, OutOfBudget, Reply

MAX_ANSWER_BYTES = 64 << 20
LONGEST_WAIT = 60.0  # seconds between two tries
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that a later try may not get


class EndpointError(RuntimeError):
    """The endpoint refused or broke down; says how, and never the key."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        """Do not follow."""
        return None


class EndpointAgent:
    """Asks ``URL/chat/completions`` for each reply; the conversation is sent as it is, tool calls being text.

    What fails in passing (no connection, a time limit, status 408, 429 or 5xx) is tried again after 1, 2, 4, ...
    seconds, or as long as the server asks for, at most `LONGEST_WAIT`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = "CWM_API_KEY",
        fields: Mapping[str, Any] | None = None,
        tool_role: str = "user",
        request_seconds: float = 600.0,
        retries: int = 5,
    ) -> None:
        """Ask for `model` at `url`, which ends with ``/v1`` at most servers.

        `key_variable`: of the environment, holds the key, if the endpoint wants one; read when a request is sent, and
        kept nowhere. `fields`: more of the request, as ``{"temperature": 0.7, "return_token_ids": True}``; what is None
        is left out, as ``{"seed": None}``. `tool_role`: the role of a tool's answer, "tool" for `cwm serve`, whose
        models know it; other servers take that only after calls of their own form. `request_seconds`: of a try.

        Raises ValueError for a URL that is not HTTP, or another `tool_role`.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"an endpoint's URL begins with http:// or https://, not {url!r}")
        if tool_role not in ("user", "tool"):
            raise ValueError(f'tool_role must be "user" or "tool", not {tool_role!r}')
        self._url, self._model, self._key_variable = url.rstrip("/") + "/chat/completions", model, key_variable
        self._fields, self._tool_role = dict(fields or {}), tool_role
        self._request_seconds, self._retries = request_seconds, retries
        self._opener = urllib.request.build_opener(_NoRedirects)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Agent.settings`."""
        place = {"url": self._url, "model": self._model}
        return {"agent": "endpoint", **place, "tool_role": self._tool_role, "fields": self._fields}

    def start(self, task: Task, seed: int, budget: Budget) -> Generate:
        """See `Agent.start`."""
        return _Conversation(self, seed, budget)

    def interrupt(self) -> None:
        """See `Agent.interrupt`: a request on its way is not taken back."""

    def _ask(self, body: dict[str, Any], deadline: float, seed: int) -> dict[str, Any]:
        """The answer to a request, tried again as long as that may help. Raises `EndpointError` and `OutOfBudget`."""
        jitter = random.Random(seed)
        for attempt in range(self._retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise OutOfBudget("seconds")
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
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        deadline = time.monotonic() + seconds
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return _answer(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                said, code = _refusal(error)
            said = said.replace(key, "[key]") if key else said
            if code == "context_length_exceeded" or "maximum context length" in said:
                raise _ContextExceeded from None
            text = f"{self._url} answered with status {error.code}: {said}"
            if error.code in _PASSING:
                raise _Passing(text, _seconds(error.headers.get("Retry-After"))) from None
            raise EndpointError(text) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, of connections, is an OSError
            reason = getattr(error, "reason", error)
            raise _Passing(f"{self._url} gave no answer: {reason or type(error).__name__}") from None

    def _key(self) -> str | None:
        key = os.environ.get(self._key_variable, "").strip() if self._key_variable else ""
        if not key.isascii() or not key.isprintable():  # the error of http.client would show it
            raise EndpointError(f"{self._key_variable} holds no key: it has characters that no header may have")
        return key or None


class _Passing(Exception):
    """A failure that another try may not meet; `wait`: the seconds that the server asks for."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class _ContextExceeded(Exception):
    """The request was refused because prompt and answer would be too long."""


class _Conversation:
    """One rollout's requests."""

    def __init__(self, agent: EndpointAgent, seed: int, budget: Budget) -> None:
        self._agent, self._seed, self._budget = agent, seed, budget
        self._deadline = time.monotonic() + budget.seconds
        self._replies = 0
        self._used = 0
        """Tokens of the conversation when it was last counted."""

    def __call__(self, messages: Sequence[Message]) -> Reply:
        agent, budget = self._agent, self._budget
        room = budget.context_tokens - self._used
        if room < 1:
            raise OutOfBudget("context tokens")
        body = {
            "model": agent._model,
            "messages": [self._sent(message) for message in messages],
            # 53 bits are what every JSON reader keeps.
            "seed": (self._seed + self._replies) % 2**53,
            "max_tokens": min(budget.action_tokens, room),
            **agent._fields,
        }
        body = {name: value for name, value in body.items() if value is not None}
        seed = self._seed + self._replies
        try:
            answer = agent._ask(body, self._deadline, seed)
        except _ContextExceeded:
            # Nobody but the server knows how much is left beside the prompt, which it gives where no number is asked.
            body.pop("max_tokens", None)
            try:
                answer = agent._ask(body, self._deadline, seed)
            except _ContextExceeded:
                raise OutOfBudget("context tokens") from None
        reply = _reply(answer)
        if self._replies == 0 and (reply.prompt_tokens or 0) > budget.prompt_tokens:
            raise OutOfBudget("prompt tokens")
        self._used = (reply.prompt_tokens or 0) + (reply.tokens or 0)
        self._replies += 1
        return reply

    def _sent(self, message: Message) -> dict[str, str]:
        role, content = message["role"], message["content"].encode(errors="replace").decode()
        if not role.startswith("tool: "):
            return {"role": role, "content": content}
        if self._agent._tool_role == "user":
            return {"role": "user", "content": content}
        return {"role": "tool", "name": role.removeprefix("tool: "), "content": content}


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


def _reply(answer: dict[str, Any]) -> Reply:
    choice = answer["choices"][0]
    message, usage = choice["message"], _object(answer.get("usage"))
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        text = f"<think>\n{reasoning.strip()}\n</think>\n{text.lstrip()}"
    tokens = _object(choice.get("logprobs")).get("content")
    logprobs = [_number(_object(token).get("logprob")) for token in tokens] if isinstance(tokens, list) else None
    ids = choice.get("token_ids")
    ids = tuple(ids) if isinstance(ids, list) and all(type(token) is int for token in ids) else None
    return Reply(
        text,
        "length" if choice.get("finish_reason") == "length" else "stop",
        ids,
        None if logprobs is None else tuple(logprobs),
        _count(usage.get("completion_tokens")),
        _count(usage.get("prompt_tokens")),
        _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )


def _refusal(error: urllib.error.HTTPError) -> tuple[str, str | None]:
    """What an error's answer says, shortened, and its code."""
    try:
        data = error.read(1 << 16)
        refusal = _object(_object(json.loads(data)).get("error"))
        said = str(refusal.get("message") or data.decode(errors="replace"))
        code = refusal.get("code")
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        said, code = error.reason or "", None
    return " ".join(str(said)[:1000].split()), code if isinstance(code, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header; None for a date, which nobody's clock agrees on."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
