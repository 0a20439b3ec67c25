"""Parse requests of the OpenAI protocol, check each field, and report the protocol's errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..._native import CwmError
from .chat import FunctionTool

# Arguments of the OpenAI protocol that do not affect generation here.
IGNORED = frozenset({
    "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
    "verbosity",
})  # fmt: skip

# Unsupported arguments, with the values that have no effect and are therefore accepted.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "priority": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}

MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20


class ApiError(CwmError):
    """An error that the client receives as `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        """Create an error.

        Args:
            status: The HTTP status.
            message: The message for people.
            param: The argument at fault.
            code: The kind of error, for programs.
        """
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Return the error as the body of a response."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of an invalid request."""
    return ApiError(400, message, param, code)


@dataclass(frozen=True)
class Options:
    """Arguments that both kinds of request share."""

    model: str | None
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    """Number of most likely tokens to sample from; 0 means all."""
    seed: int | None
    n: int
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    ignore_eos: bool
    logprobs: int | None
    """Number of alternatives to report with each token; None reports no log probabilities."""
    stream: bool
    include_usage: bool
    return_token_ids: bool
    skip_special_tokens: bool


@dataclass(frozen=True)
class Completion:
    """A request to `/v1/completions`."""

    options: Options
    prompts: tuple[str | tuple[int, ...], ...]


@dataclass(frozen=True)
class Chat:
    """A request to `/v1/chat/completions`."""

    options: Options
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[FunctionTool, ...]
    parallel_tool_calls: bool
    reasoning: bool


def read_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; raise `ApiError` if there is none."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise invalid(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid("the body is not a JSON object")
    return value


def read_completion(body: bytes) -> Completion:
    """Parse a request to `/v1/completions`; raise `ApiError` if it is invalid."""
    fields = Fields(read_json(body))
    prompts = _prompts(fields.get("prompt"))
    options = _options(fields, max_tokens=fields.integer("max_tokens", 16, least=1), logprobs=fields.logprobs(None))
    if fields.integer("best_of", options.n) != options.n:
        raise invalid("best_of is not supported", "best_of", "unsupported_parameter")
    fields.finish()
    return Completion(options, prompts)


def read_chat(body: bytes) -> Chat:
    """Parse a request to `/v1/chat/completions`; raise `ApiError` if it is invalid.

    The contents of messages are checked later, when they are encoded.
    """
    fields = Fields(read_json(body))
    messages = fields.objects("messages")
    if not messages:
        raise invalid("messages must be a list of at least one message", "messages")
    max_tokens = fields.integer("max_tokens", None, least=1)
    max_tokens = fields.integer("max_completion_tokens", max_tokens, least=1)
    wants_logprobs = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", None, least=0, most=MAX_TOP_LOGPROBS)
    if top and not wants_logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    options = _options(fields, max_tokens=max_tokens, logprobs=(top or 0) if wants_logprobs else None)
    tools = tuple(_tool(i, tool) for i, tool in enumerate(fields.objects("tools")))
    choice = fields.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise invalid("tool_choice may be auto or none", "tool_choice", "unsupported_parameter")
    parallel = fields.boolean("parallel_tool_calls", True)
    reasoning = _reasoning(fields)
    fields.finish()
    return Chat(options, tuple(messages), () if choice == "none" else tools, parallel, reasoning)


class Fields:
    """Read the fields of an object one by one; null counts as absent.

    All methods raise `ApiError` that names the field.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        """Read fields of the JSON object `values`."""
        self._values = values
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """Return the unchecked value."""
        self._read.add(name)
        return self._values.get(name)

    def boolean(self, name: str, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong_type(name, "a boolean", value)
        return value

    def integer(self, name: str, default: Any, least: int | None = None, most: int | None = None) -> Any:
        """Return an integer within bounds; `default` is not checked."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(name, "an integer", value)
        _check_bounds(name, value, least, most)
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """Return a number within bounds."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _wrong_type(name, "a number", value)
        _check_bounds(name, value, least, most)
        return float(value)

    def string(self, name: str) -> str | None:
        """Return a string, or None if it is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise _wrong_type(name, "a string", value)
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        """Return a list of objects, empty if it is absent."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise _wrong_type(name, "a list of objects", value)
        return value

    def object(self, name: str) -> dict[str, Any]:
        """Return an object, empty if it is absent."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _wrong_type(name, "an object", value)
        return value

    def logprobs(self, default: int | None) -> int | None:
        """Return the `logprobs` of `/v1/completions`."""
        count: int | None = self.integer("logprobs", default, least=0, most=MAX_TOP_LOGPROBS)
        return count

    def finish(self) -> None:
        """Raise `ApiError` if a field was not read and has an effect."""
        for name in self._values.keys() - self._read - IGNORED:
            value = self._values[name]
            if name not in NEUTRAL:
                raise invalid(f"unrecognized request argument: {name[:100]}", name[:100], "unknown_parameter")
            if value is not None and value not in NEUTRAL[name]:
                raise invalid(f"{name} is not supported", name, "unsupported_parameter")


def _options(fields: Fields, *, max_tokens: int | None, logprobs: int | None) -> Options:
    stream = fields.boolean("stream")
    stream_options = fields.object("stream_options")
    more = Fields(stream_options)
    include_usage = more.boolean("include_usage")
    if include_usage and not stream:
        raise invalid("stream_options needs stream to be true", "stream_options")
    more.get("include_obfuscation")  # hides sizes from eavesdroppers; safe to ignore
    more.finish()
    return Options(
        model=fields.string("model"),
        max_tokens=max_tokens,
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_p=_top_p(fields),
        top_k=max(0, fields.integer("top_k", 0, least=-1)),
        seed=fields.integer("seed", None, least=-(2**63), most=2**63 - 1),
        n=fields.integer("n", 1, least=1),
        stop=_stops(fields.get("stop")),
        stop_ids=tuple(_ids("stop_token_ids", fields.get("stop_token_ids") or [])),
        ignore_eos=fields.boolean("ignore_eos"),
        logprobs=logprobs,
        stream=stream,
        include_usage=include_usage,
        return_token_ids=fields.boolean("return_token_ids"),
        skip_special_tokens=fields.boolean("skip_special_tokens", True),
    )


def _top_p(fields: Fields) -> float:
    top_p = fields.number("top_p", 1.0, 0, 1)
    if top_p == 0:
        raise invalid("top_p must be more than 0", "top_p")
    return top_p


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """Parse a text, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise invalid("prompt must be text, token ids, or a list of texts or of lists of token ids", "prompt")
    if isinstance(value[0], int):
        return (_ids("prompt", value),)
    return tuple(one if isinstance(one, str) else _ids("prompt", one) for one in value)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise _wrong_type(name, "a list of token ids", value)
    return tuple(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong_type("stop", "a string or a list of strings", value)
    if len(stops) > MAX_STOPS:
        raise invalid(f"stop has {len(stops)} strings; at most {MAX_STOPS} are allowed", "stop")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise invalid(f"each string of stop must have 1 to {MAX_STOP_CHARS} characters", "stop")
    return tuple(stops)


def _reasoning(fields: Fields) -> bool:
    """Return whether to reason, by vLLM's argument of the chat template or OpenAI's `reasoning_effort`."""
    effort = fields.string("reasoning_effort")
    template = Fields(fields.object("chat_template_kwargs"))
    reasoning = template.boolean("enable_thinking", effort is not None and effort != "none")
    template.finish()
    return reasoning


def _tool(number: int, tool: Mapping[str, Any]) -> FunctionTool:
    where = f"tools[{number}]"
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise invalid(f"{where}: expected a tool of type function", where)
    name, description = function.get("name"), function.get("description") or ""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not name.strip() or set(name) & set("<>\n"):
        raise invalid(f"{where}: the name must not be empty or contain <, > or line breaks", f"{where}.function.name")
    if not isinstance(description, str):
        raise _wrong_type(f"{where}.function.description", "a string", description)
    if not isinstance(parameters, dict) or not isinstance(parameters.get("properties", {}), dict):
        raise invalid(f"{where}: parameters must be the schema of an object", f"{where}.function.parameters")
    return FunctionTool(name.strip(), description, parameters)


def _check_bounds(name: str, value: float, least: float | None, most: float | None) -> None:
    if least is not None and value < least:
        raise invalid(f"{name} must be at least {least}", name)
    if most is not None and value > most:
        raise invalid(f"{name} must be at most {most}", name)


def _wrong_type(name: str, expected: str, value: Any) -> ApiError:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    got = "null" if value is None else kinds[type(value)]
    if isinstance(value, list):
        got = "list of other things"
    return invalid(f"{name} must be {expected}, not a {got}", name, "invalid_type")


def check_ids(ids: Sequence[int] | Iterable[int], vocab_size: int, param: str) -> None:
    """Raise `ApiError` if an id is outside the model's vocabulary."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise invalid(f"{param}: token {str(token)[:20]} is outside the vocabulary of {vocab_size}", param)
