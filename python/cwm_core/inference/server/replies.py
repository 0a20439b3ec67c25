"""Build answers of the OpenAI protocol, whole or as chunks of a stream."""

from __future__ import annotations

import secrets
from typing import Any

from ...tokenizer import Tokenizer
from ...tokenizer.special_tokens import REASONING_THINKING_END, REASONING_THINKING_START
from ..requests import Event
from .chat import Parts, Splitter
from .output import Delta, Output, token_text
from .protocol import Chat, Completion, Options


class _Choice:
    """The common part of both kinds of choices."""

    _options: Options
    _output: Output

    @property
    def is_streamed(self) -> bool:
        """Return whether the answer is a stream of chunks."""
        return self._options.stream

    @property
    def tokens(self) -> int:
        """Return the number of generated tokens."""
        return self._output.tokens


class CompletionChoice(_Choice):
    """One choice of an answer from `/v1/completions`, for `Envelope`."""

    kind, chunk_kind, id_prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, index: int, tokenizer: Tokenizer, request: Completion, prompt: list[int]) -> None:
        """Start the choice with this index, the continuation of `prompt`."""
        options = request.options
        self._index, self._tokenizer, self._options, self._prompt = index, tokenizer, options, prompt
        self._output = Output(tokenizer, options.stop, skip_special=options.skip_special_tokens)
        self._whole = Delta()
        self._is_first = True

    def feed(self, events: list[Event]) -> Delta:
        """Add tokens, and return the text that they complete."""
        delta = self._output.feed(events)
        _add(self._whole, delta)
        return delta

    def first_chunk(self) -> dict[str, Any] | None:
        """Return None: a stream of a completion has no first chunk of its own."""
        return None

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        """Return the choice in a chunk of a stream; None if there is nothing to send."""
        if not (delta.text or delta.finish_reason or (delta.events and _wants_tokens(self._options))):
            return None
        return self._choice(delta)

    def whole(self) -> dict[str, Any]:
        """Return the choice in an answer that is not streamed."""
        return self._choice(self._whole)

    def _choice(self, delta: Delta) -> dict[str, Any]:
        choice = {
            "index": self._index,
            "text": delta.text,
            "logprobs": self._logprobs(delta) if self._options.logprobs is not None else None,
            "finish_reason": delta.finish_reason,
        }
        if self._options.return_token_ids:
            choice["token_ids"] = delta.ids
            choice["prompt_token_ids"] = self._prompt if self._is_first else None
        self._is_first = False
        return choice

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        def text(token: int | None) -> str:
            return token_text(self._tokenizer, -1 if token is None else token).decode("utf-8", "replace")

        def top(event: Event) -> dict[str, float]:
            # Several tokens may have the same text, such as parts of characters: keep the most likely.
            most_likely: dict[str, float] = {}
            for token, logprob in event.top:
                most_likely.setdefault(text(token), _finite(logprob))
            return most_likely

        return {
            "tokens": [text(event.token) for event in delta.events],
            "token_logprobs": [_finite(event.logprob) for event in delta.events],
            "top_logprobs": [top(event) for event in delta.events] if self._options.logprobs else None,
            "text_offset": list(delta.offsets),
        }


class ChatChoice(_Choice):
    """One choice of an answer from `/v1/chat/completions`, for `Envelope`."""

    kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, index: int, tokenizer: Tokenizer, request: Chat, prompt: list[int], prefix: str) -> None:
        """Start the choice with this index, after `prompt`, which ends with `prefix` of the assistant's message."""
        options = request.options
        self._index, self._tokenizer, self._options, self._prompt = index, tokenizer, options, prompt
        special = tokenizer.special_tokens
        marks = {REASONING_THINKING_START: "<think>", REASONING_THINKING_END: "</think>"}
        names = {special[name]: text for name, text in marks.items() if name in special}
        self._output = Output(tokenizer, options.stop, skip_special=options.skip_special_tokens, names=names)
        self._splitter = Splitter(request.tools, prefix)
        self._one_call = not request.parallel_tool_calls
        self._whole, self._parts, self._calls = Delta(), Parts(), 0
        self._new = Parts()
        self._is_first = True

    def feed(self, events: list[Event]) -> Delta:
        """Add tokens, and return the text that they complete."""
        total, self._new = Delta(), Parts()
        for event in events:
            if self._output.finish_reason is None:
                delta = self._feed(event)
                _add(total, delta)
        _add(self._whole, total)
        self._parts += self._new
        return total

    def _feed(self, event: Event) -> Delta:
        delta = self._output.feed([event])
        parts = self._splitter.feed(delta.text)
        if delta.finish_reason:
            parts += self._splitter.finish()
        if self._one_call and parts.calls:
            parts.calls = parts.calls[:1]
            self._output.finish_reason = delta.finish_reason = "stop"
        self._calls += len(parts.calls)
        if delta.finish_reason == "stop" and self._calls:
            delta.finish_reason = "tool_calls"
        self._new += parts
        return delta

    def first_chunk(self) -> dict[str, Any]:
        """Return the first chunk of a stream, with the role."""
        choice = self._choice({"role": "assistant", "content": ""}, Delta(), "delta")
        if self._options.return_token_ids:
            choice["prompt_token_ids"] = self._prompt
        return choice

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        """Return the choice in a chunk of a stream; None if there is nothing to send."""
        new = self._new
        message: dict[str, Any] = {}
        if new.reasoning:
            message["reasoning_content"] = new.reasoning
        if new.content:
            message["content"] = new.content
        if new.calls:
            first = self._calls - len(new.calls)
            message["tool_calls"] = [
                {"index": first + i, **_call(call.name, call.arguments)} for i, call in enumerate(new.calls)
            ]
        if not (message or delta.finish_reason or (delta.events and _wants_tokens(self._options))):
            return None
        return self._choice(message, delta, "delta")

    def whole(self) -> dict[str, Any]:
        """Return the choice in an answer that is not streamed."""
        parts = self._parts
        message: dict[str, Any] = {"role": "assistant", "content": parts.content or (None if parts.calls else "")}
        if parts.reasoning:
            message["reasoning_content"] = parts.reasoning
        if parts.calls:
            message["tool_calls"] = [_call(call.name, call.arguments) for call in parts.calls]
        return self._choice(message, self._whole, "message")

    def _choice(self, message: dict[str, Any], delta: Delta, key: str) -> dict[str, Any]:
        wants = self._options.logprobs is not None and delta.events
        choice = {
            "index": self._index,
            key: message,
            "logprobs": {"content": [self._logprob(event) for event in delta.events]} if wants else None,
            "finish_reason": delta.finish_reason,
        }
        if self._options.return_token_ids:
            choice["token_ids"] = delta.ids
        return choice

    def _logprob(self, event: Event) -> dict[str, Any]:
        def entry(token: int | None, logprob: float) -> dict[str, Any]:
            data = token_text(self._tokenizer, -1 if token is None else token)
            return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}

        return {**entry(event.token, event.logprob), "top_logprobs": [entry(t, p) for t, p in event.top]}


Choice = CompletionChoice | ChatChoice


class Envelope:
    """The fields of an answer around its choices."""

    def __init__(self, kind: type[Choice], model: str, created: int, options: Options, prompt_tokens: int) -> None:
        """Start an answer.

        Args:
            kind: The class of the choices.
            model: The name of the model.
            created: Seconds since 1970.
            options: The arguments of the request.
            prompt_tokens: Number of tokens of all prompts, each counted once.
        """
        self._head = {"id": f"{kind.id_prefix}-{secrets.token_hex(12)}", "created": created, "model": model}
        self._kind, self._options, self._prompt_tokens = kind, options, prompt_tokens

    def whole(self, choices: list[Choice], prompts: list[list[int]]) -> dict[str, Any]:
        """Return the answer of a request that does not stream."""
        answer = {**self._head, "object": self._kind.kind, "choices": [choice.whole() for choice in choices]}
        if self._options.return_token_ids and self._kind is ChatChoice:
            answer["prompt_token_ids"] = prompts[0]
        return answer | {"usage": self._usage(choices)}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk of a stream."""
        chunk = {**self._head, "object": self._kind.chunk_kind, "choices": [choice]}
        return chunk | {"usage": None} if self._options.include_usage else chunk

    def usage_chunk(self, choices: list[Choice]) -> dict[str, Any]:
        """Return the last chunk, for `stream_options.include_usage`."""
        return {**self._head, "object": self._kind.chunk_kind, "choices": [], "usage": self._usage(choices)}

    def _usage(self, choices: list[Choice]) -> dict[str, int]:
        generated = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._prompt_tokens + generated,
        }


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _wants_tokens(options: Options) -> bool:
    return options.logprobs is not None or options.return_token_ids


def _add(whole: Delta, delta: Delta) -> None:
    whole.text += delta.text
    whole.events += delta.events
    whole.offsets += delta.offsets
    whole.finish_reason = delta.finish_reason


def _finite(logprob: float) -> float:
    """Return the log probability, or the protocol's minimum, since JSON has no infinity."""
    return logprob if logprob > -9999.0 else -9999.0
