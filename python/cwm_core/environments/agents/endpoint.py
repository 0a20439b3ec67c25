"""Agent with a model behind an OpenAI-compatible HTTP endpoint, such as `cwm serve`."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...support.endpoint import ContextExceeded, Endpoint
from ...support.jsonl import loads
from ..tasks import Task
from .protocol import Budget, EndReason, Generate, Message, OutOfBudget, Reply, ReplyEnd

logger = logging.getLogger(__name__)

BYTES_A_TOKEN = 3
"""Estimated bytes per token of program text, for servers that do not count tokens."""


class EndpointAgent:
    """Requests each reply from an `Endpoint`. Tool calls are sent as text of the conversation."""

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
        """Set the endpoint and the requests.

        Args:
            url: See `Endpoint`.
            model: Name of the model at the endpoint.
            key_variable: See `Endpoint`.
            fields: Further fields of requests, such as `{"temperature": 0.7, "return_token_ids": True}`. None removes a
                field, as in `{"seed": None}`.
            tool_role: Role of observations. Use "tool" for `cwm serve`; other servers accept this role only after tool
                calls in the format of the protocol.
            request_seconds: See `Endpoint`.
            retries: See `Endpoint`.

        Raises:
            ValueError: The URL is not HTTP, or there is no such role.
        """
        if tool_role not in ("user", "tool"):
            raise ValueError(f'tool_role must be "user" or "tool", got {tool_role!r}')
        self._endpoint = Endpoint(url, key_variable=key_variable, request_seconds=request_seconds, retries=retries)
        self._model, self._fields, self._tool_role = model, dict(fields or {}), tool_role
        self._warned = False

    @property
    def settings(self) -> dict[str, Any]:
        """See `Agent.settings`."""
        place = {"url": self._endpoint.url, "model": self._model}
        return {"agent": "endpoint", **place, "tool_role": self._tool_role, "fields": self._fields}

    def start(self, task: Task, seed: int, budget: Budget) -> Generate:
        """See `Agent.start`."""
        return _Conversation(self, seed, budget)

    def interrupt(self) -> None:
        """See `Agent.interrupt`. Running requests are canceled."""
        self._endpoint.cancel()

    def _counted(self, reply: Reply, messages: Sequence[Mapping[str, str]]) -> tuple[int, int]:
        """Return the number of tokens of prompt and reply, estimated if the server does not count them."""
        tokens = reply.tokens if reply.ids is None else len(reply.ids)
        if (tokens is None or reply.prompt_tokens is None) and not self._warned:
            self._warned = True
            text = "%s does not count tokens; token budgets use an estimate of %d bytes per token"
            logger.warning(text, self._endpoint.url, BYTES_A_TOKEN)
        prompt_tokens = reply.prompt_tokens
        if prompt_tokens is None:
            prompt_tokens = sum(_estimated(message["content"]) for message in messages)
        return prompt_tokens, _estimated(reply.text) if tokens is None else tokens


class _Conversation:
    """Requests of a rollout."""

    def __init__(self, agent: EndpointAgent, seed: int, budget: Budget) -> None:
        self._agent, self._seed, self._budget = agent, seed, budget
        self._deadline = time.monotonic() + budget.seconds
        self._replies = 0
        self._used = 0
        """Number of tokens of the conversation at the last count."""

    def __call__(self, messages: Sequence[Message]) -> Reply:
        agent, budget = self._agent, self._budget
        room = budget.context_tokens - self._used
        if room < 1:
            raise OutOfBudget(EndReason.CONTEXT_TOKENS)
        body = {
            "model": agent._model,
            "messages": [self._sent(message) for message in messages],
            # JSON readers keep at least 53 bits.
            "seed": (self._seed + self._replies) % 2**53,
            "max_tokens": min(budget.action_tokens, room),
            **agent._fields,
        }
        body = {name: value for name, value in body.items() if value is not None}
        seed = self._seed + self._replies
        try:
            answer = self._ask(body, seed)
        except ContextExceeded:
            # Without `max_tokens`, the server uses the room that the prompt leaves, which only the server knows.
            body.pop("max_tokens", None)
            try:
                answer = self._ask(body, seed)
            except ContextExceeded:
                raise OutOfBudget(EndReason.CONTEXT_TOKENS) from None
        reply = _reply(answer)
        prompt_tokens, tokens = agent._counted(reply, body["messages"])
        if self._replies == 0 and prompt_tokens > budget.prompt_tokens:
            raise OutOfBudget(EndReason.PROMPT_TOKENS)
        self._used = prompt_tokens + tokens
        self._replies += 1
        return reply

    def _ask(self, body: dict[str, Any], seed: int) -> dict[str, Any]:
        try:
            return self._agent._endpoint.ask(body, deadline=self._deadline, seed=seed)
        except TimeoutError:
            raise OutOfBudget(EndReason.SECONDS) from None

    def _sent(self, message: Message) -> dict[str, str]:
        role, content = message["role"], message["content"].encode(errors="replace").decode()
        if not role.startswith("tool: "):
            return {"role": role, "content": content}
        if self._agent._tool_role == "user":
            return {"role": "user", "content": content}
        return {"role": "tool", "name": role.removeprefix("tool: "), "content": content}


def _reply(answer: dict[str, Any]) -> Reply:
    choice = answer["choices"][0]
    message, usage = choice["message"], _object(answer.get("usage"))
    text = "\n".join(part for part in (_text(message.get("content")), *_calls(message.get("tool_calls"))) if part)
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        text = f"<think>\n{reasoning.strip()}\n</think>\n{text.lstrip()}"
    tokens = _object(choice.get("logprobs")).get("content")
    logprobs = [_number(_object(token).get("logprob")) for token in tokens] if isinstance(tokens, list) else None
    ids = choice.get("token_ids")
    ids = tuple(ids) if isinstance(ids, list) and all(type(token) is int for token in ids) else None
    return Reply(
        text,
        ReplyEnd.LENGTH if choice.get("finish_reason") == ReplyEnd.LENGTH else ReplyEnd.STOP,
        ids,
        None if logprobs is None else tuple(logprobs),
        _count(usage.get("completion_tokens")),
        _count(usage.get("prompt_tokens")),
        _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )


def _text(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of parts, some of them with text."""
    if isinstance(content, list):
        texts = (part if isinstance(part, str) else _object(part).get("text") for part in content)
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _calls(calls: Any) -> list[str]:
    """Return tool calls in the format of the protocol as text for the environment.

    Mistakes in a call remain in the text, so that the environment explains them.
    """
    functions = [_object(_object(call).get("function")) for call in calls] if isinstance(calls, list) else []
    named = [(call.get("name"), call.get("arguments")) for call in functions]
    return [f"<tool: {name}>\n{_arguments(name, arguments)}\n</tool>" for name, arguments in named]


def _arguments(tool: Any, arguments: Any) -> str:
    """Return the text between the tags of a call."""
    try:
        values = loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return str(arguments)
    values = values if isinstance(values, dict) else {"content": values}
    if not all(isinstance(value, str) for value in values.values()):
        return json.dumps(values)
    if tool == "edit" and values.keys() == {"path", "search", "replace"}:
        replace = [values["replace"]] if values["replace"] else []
        return "\n".join([values["path"], "<<<<<<< SEARCH", values["search"], "=======", *replace, ">>>>>>> REPLACE"])
    if tool == "create" and values.keys() == {"path", "content"}:
        return f"{values['path']}\n{values['content']}"
    return next(iter(values.values())) if len(values) == 1 else json.dumps(values)


def _estimated(text: str) -> int:
    return -(-len(text.encode(errors="replace")) // BYTES_A_TOKEN)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
