r"""Convert chats with reasoning and tools: messages to prompts, and the model's text to fields of the protocol.

The model writes a call as `<tool: NAME>`, CONTENT and `</tool>`, each on its own lines; the protocol has a name and a
JSON object of arguments. If the only parameter of a tool is a string, CONTENT is its value, else the JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...tokenizer.chat import REASONING_SYSTEM_PROMPT
from .output import overlap

# The name of the only argument if a call's content is not a JSON object and the schema names no parameter.
CONTENT = "content"

# A schema in which all of these are missing or empty allows only the empty object.
_KEYS_OF_PARAMETERS = (
    "properties", "patternProperties", "additionalProperties", "$ref", "allOf", "anyOf", "oneOf", "required",
)  # fmt: skip

TOOLS_PROMPT = (
    "You can use tools. To call one, write its name and what it is given in exactly this form, each tag on a line of "
    "its own:\n\n<tool: NAME>\nCONTENT\n</tool>\n\n"
    "Make one call in a message and end the message with it. The tools are:"
)
"""Text before the descriptions of the tools in the system message."""

# The length of names is bounded, so that an endless tag is not scanned repeatedly.
_OPENING = re.compile(r"^<tool: (?=[^>\n]*[^>\s])([^>\n]{1,128})>[ \t]{0,8}\n", re.MULTILINE)
_CLOSING = re.compile(r"^</tool>[ \t]*(?:\n|\Z)", re.MULTILINE)
_WHOLE_CLOSING = re.compile(r"^</tool>[ \t]*\n", re.MULTILINE)
# The end of a text that may be the beginning of an opening tag.
_OPENING_BEGUN = re.compile(r"^<(?:t(?:o(?:o(?:l(?::(?: (?:[^>\n]{1,128}(?:>[ \t]{0,8})?)?)?)?)?)?)?)?\Z", re.MULTILINE)


@dataclass(frozen=True)
class FunctionTool:
    """A function that the client offers."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments; empty if it is unknown, for a tool that only the model names."""

    @property
    def takes_nothing(self) -> bool:
        """Return whether the tool has no parameters."""
        return bool(self.parameters) and not any(self.parameters.get(key) for key in _KEYS_OF_PARAMETERS)

    @property
    def parameter(self) -> str | None:
        """Return the parameter whose value CONTENT is; None if CONTENT is a JSON object."""
        properties = self.parameters.get("properties", {})
        if len(properties) != 1:
            return None
        [(name, schema)] = properties.items()
        return name if isinstance(schema, dict) and schema.get("type") == "string" else None

    def prompt(self) -> str:
        """Return the description of the tool in the system message."""
        if self.takes_nothing:
            content = "It takes no parameters: leave CONTENT empty."
        elif self.parameter is None:
            content = f"CONTENT is a JSON object of this schema: {json.dumps(self.parameters)}"
        else:
            described = self.parameters["properties"][self.parameter].get("description")
            content = f"CONTENT is the {self.parameter}" + (f": {described}" if described else ".")
        return "\n".join(part for part in (f"## {self.name}", self.description.strip(), content) if part)

    def arguments(self, content: str) -> str:
        """Return the arguments of a call with this content, as JSON."""
        if self.parameter is not None:
            return json.dumps({self.parameter: content})
        if self.takes_nothing and not _is_object(content):
            return "{}"
        return content if _is_object(content) else json.dumps({CONTENT: content})

    def content(self, arguments: str) -> str:
        """Return the content of a call with these arguments; the inverse of `arguments`."""
        key = self.parameter or CONTENT
        try:
            values = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        if values == {} and self.takes_nothing:
            return ""
        if isinstance(values, dict) and values.keys() == {key}:
            value = values[key]
            return value if isinstance(value, str) else arguments
        return arguments


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def system_prompt(own: str | None, tools: Sequence[FunctionTool], reasoning: bool) -> str | None:
    """Return the system message: the client's, or the one that switches reasoning on, then the tools; None if empty."""
    parts = [own if own is not None else REASONING_SYSTEM_PROMPT if reasoning else None]
    if tools:
        parts.append("\n\n".join([TOOLS_PROMPT, *(tool.prompt() for tool in tools)]))
    return "\n\n".join(part for part in parts if part is not None) if any(part is not None for part in parts) else None


def to_messages(
    messages: Iterable[Mapping[str, Any]], tools: Sequence[FunctionTool], reasoning: bool
) -> list[dict[str, str]]:
    """Convert messages of the protocol to those of `Tokenizer.encode_chat`.

    Raises:
        ValueError: A message is invalid; the error names it.
    """
    by_name = {tool.name: tool for tool in tools}
    callers: dict[str, str] = {}  # names of tools by the ids of earlier calls
    chat = [_message(f"messages[{i}]", message, by_name, callers) for i, message in enumerate(messages)]
    own = chat.pop(0)["content"] if chat and chat[0]["role"] == "system" else None
    prompt = system_prompt(own, tools, reasoning)
    return chat if prompt is None else [{"role": "system", "content": prompt}, *chat]


def _message(
    where: str, message: Mapping[str, Any], tools: Mapping[str, FunctionTool], callers: dict[str, str]
) -> dict[str, str]:
    role = message.get("role")
    content = _text(f"{where}.content", message.get("content"))
    if role in ("system", "developer"):
        return {"role": "system", "content": _needed(where, content)}
    if role == "user":
        return {"role": "user", "content": _needed(where, content)}
    if role == "tool":
        name = message.get("name") or callers.get(str(message.get("tool_call_id")))
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where} answers no call: no earlier message has a call with its tool_call_id")
        return {"role": "tool", "name": name, "content": _needed(where, content)}
    if role != "assistant":
        raise ValueError(f"{where} has an unknown role: expected system, developer, user, assistant or tool")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError(f"{where}.tool_calls: expected a list")
    written = [_written_call(f"{where}.tool_calls[{i}]", call, tools, callers) for i, call in enumerate(calls)]
    if content is None and not calls:
        raise ValueError(f"{where} has neither content nor tool_calls")
    result = {"role": "assistant", "content": "\n".join(([content] if content else []) + written)}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning is not None:
        result["reasoning_content"] = _needed(f"{where}.reasoning_content", _text(where, reasoning))
    return result


def _text(where: str, content: Any) -> str | None:
    """Return a string, or the joined texts of a list of parts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{where}: expected a string or a list of parts")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{where} has a part that is not text; this model reads only text")
        texts.append(part["text"])
    return "".join(texts)


def _needed(where: str, content: str | None) -> str:
    if content is None:
        raise ValueError(f"{where} has no content")
    return content


def _written_call(where: str, call: Any, tools: Mapping[str, FunctionTool], callers: dict[str, str]) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise ValueError(f"{where}: expected a function whose name and arguments are strings")
    if isinstance(call.get("id"), str):
        callers[call["id"]] = name
    return f"<tool: {name}>\n{_tool(tools, name).content(arguments)}\n</tool>"


def _tool(tools: Mapping[str, FunctionTool], name: str) -> FunctionTool:
    return tools.get(name) or FunctionTool(name, "", {})


@dataclass(frozen=True)
class ToolCall:
    """A tool call that the model wrote."""

    name: str
    arguments: str
    """Arguments as a JSON object."""


@dataclass
class Parts:
    """Parts of an assistant's message."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: Parts) -> Parts:
        """Concatenate the parts."""
        return Parts(self.reasoning + other.reasoning, self.content + other.content, (*self.calls, *other.calls))


class Splitter:
    r"""Split the text of a model into reasoning, content and calls as it arrives.

    Reasoning is the stripped text between `<think>` and `</think>` at the beginning. If there are tools, complete calls
    are removed from the rest, as is white space directly after reasoning or a call. An incomplete call is content. The
    sum of the parts does not depend on how the text is cut into pieces.
    """

    def __init__(self, tools: Iterable[FunctionTool] = (), prefix: str = "") -> None:
        """Expect a continuation of `prefix`, the beginning of the message, which is not part of the result."""
        self._tools = {tool.name: tool for tool in tools}
        self._held = ""
        self._fresh = False  # drop white space that comes next
        self._searched = 0  # characters of an open call that contain no beginning of its closing tag
        self._line_begun = False  # text precedes `_held` on its line, so that no tag can begin there
        before = prefix.lstrip()
        self._phase = "begin"
        if before.startswith("<think>") and "</think>" not in before:
            self._phase, self._fresh = "reasoning", not before.removeprefix("<think>").strip()
        elif before:
            self._phase, self._line_begun = "content", not prefix.endswith("\n")

    def feed(self, text: str) -> Parts:
        """Return the parts that `text` completes."""
        self._held += text
        return self._split(is_end=False)

    def finish(self) -> Parts:
        """Return the rest at the end of the text."""
        return self._split(is_end=True)

    def _split(self, is_end: bool) -> Parts:
        parts = Parts()
        if self._phase == "begin":
            self._begin(is_end)
        if self._phase == "reasoning":
            parts.reasoning = self._reasoning(is_end)
        if self._phase == "content":
            parts += self._content(is_end)
        return parts

    def _begin(self, is_end: bool) -> None:
        start = self._held.lstrip()
        if start.startswith("<think>"):
            self._held, self._phase, self._fresh = start.removeprefix("<think>"), "reasoning", True
        elif is_end or not "<think>".startswith(start):
            self._phase = "content"

    def _reasoning(self, is_end: bool) -> str:
        text, tag, rest = self._held.partition("</think>")
        if self._fresh:
            text = text.lstrip()
        if tag:
            self._held, self._phase, self._fresh = rest, "content", True
            return text.rstrip()
        # Hold back trailing white space and a possible beginning of the tag.
        kept = text if is_end else text[: len(text) - overlap(text, "</think>")]
        kept = kept.rstrip()
        self._fresh = self._fresh and not kept
        self._held = text[len(kept) :] if not is_end else ""
        return kept

    def _content(self, is_end: bool) -> Parts:
        parts = Parts()
        while True:
            if self._fresh:
                self._held = self._held.lstrip()
                self._fresh = not self._held
            opening = self._find(_OPENING) if self._tools else None
            if not opening:
                break
            start = max(opening.end(), opening.start() + self._searched)
            closing = (_CLOSING if is_end else _WHOLE_CLOSING).search(self._held, start)
            if not closing:
                self._searched = max(0, self._held.rfind("\n") + 1 - opening.start())
                break
            self._searched = 0
            parts.content += self._held[: opening.start()]
            name = opening[1].strip()
            content = self._held[opening.end() : closing.start()].removesuffix("\n")
            parts.calls += (ToolCall(name, _tool(self._tools, name).arguments(content)),)
            self._held, self._fresh, self._line_begun = self._held[closing.end() :], True, False
        begun = opening or (self._find(_OPENING_BEGUN) if self._tools else None)
        ready = self._held if is_end or not begun else self._held[: begun.start()]
        parts.content += ready
        if ready:
            self._line_begun = not ready.endswith("\n")
        self._held = self._held[len(ready) :]
        return parts

    def _find(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Return the first match at the beginning of a line."""
        found = pattern.search(self._held)
        if found and found.start() == 0 and self._line_begun:
            found = pattern.search(self._held, 1)
        return found
