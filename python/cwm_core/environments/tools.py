"""Tools of an agent, and the tool calls in its messages.

Every refusal says what is wrong and shows the right form.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from .._native import CwmError
from ..machines import Machine

FORMS = {
    "bash": "<tool: bash>\nCOMMANDS\n</tool>",
    "edit": "<tool: edit>\nPATH\n<<<<<<< SEARCH\nLINES TO FIND\n=======\nLINES TO PUT THERE\n>>>>>>> REPLACE\n</tool>",
    "create": "<tool: create>\nPATH\nCONTENT\n</tool>",
    "submit": "<tool: submit>\nPATH OF A DIFF\n</tool>",
}
_OPENING = re.compile(r"^<tool: ([^>\n]*)>[ \t\r]*\n", re.MULTILINE)
_CLOSING = re.compile(r"^</tool>[ \t\r]*$", re.MULTILINE)
_TAGS_IN_CONTENT = (
    "Were tags part of the content? A line of a call cannot be a tag; write such a line with bash instead, its tag in "
    "two parts: printf '%s%s\\n' '</to' 'ol>' >> FILE"
)


class Tool(Protocol):
    """A tool to give to an agent in addition to the built-in ones: a function of a machine and a text.

    The function's name is the tool's name, and its docstring describes the tool in the system message. An agent calls
    it with `<tool: NAME>`, the text, and `</tool>`. The agent reads what the function returns, or the text of a
    ValueError that it raises. Any other exception fails the rollout.
    """

    @property
    def __name__(self) -> str:
        """Name of the tool."""
        ...

    def __call__(self, machine: Machine, content: str, /) -> str:
        """Use the tool on the agent's machine; `content` is the text between the tags."""
        ...


def tools_by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Return tools by their names.

    Raises:
        ValueError: A name is used twice or by a built-in tool, is not an identifier, or its tool has no docstring.
    """
    named: dict[str, Tool] = {}
    for tool in tools:
        name = tool.__name__
        if name in FORMS or name in named:
            raise ValueError(f"there are two tools named {name!r}; rename the function")
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot be the name of a tool; expected a function with a name of its own")
        if not (tool.__doc__ or "").strip():
            raise ValueError(f"the tool {name!r} needs a docstring, which describes it to the agent")
        named[name] = tool
    return named


def form_of(tool: str) -> str:
    """Return the form of a call of a tool."""
    return FORMS.get(tool, f"<tool: {tool}>\nTEXT\n</tool>")


class ActionError(CwmError, ValueError):
    """A message without a single well-formed tool call; the text is addressed to the model that wrote the message."""

    def __init__(self, problem: str, tool: str | None = None, more: Collection[str] = ()) -> None:
        """State the problem and the form of `tool`, or of every tool, `more` included."""
        names = (*FORMS, *more)
        forms = [form_of(name) for name in ([tool] if tool in names else names)]
        super().__init__("\n".join([problem, "The right form, with each tag on its own line:", *forms]))


@dataclass(frozen=True)
class Call:
    """A tool call: the name of the tool, and the text between the tags without its last newline."""

    tool: str
    content: str


@dataclass(frozen=True)
class Edit:
    """An edit: replace the only occurrence of the lines `search` in the file `path`; None removes them."""

    path: str
    search: str
    replace: str | None


def parse_action(text: str, more: Collection[str] = ()) -> Call | None:
    """Return the tool call of a message, or None for a message without a call, which ends the episode.

    Reasoning is skipped: a message that begins with `<think>` is read after its `</think>`. If the opening tag's
    line ends in CRLF, every CRLF of the call is read as a line feed.

    Args:
        text: The message.
        more: Names of tools in addition to the built-in ones.

    Raises:
        ActionError: The message has more than one call, unpaired or misplaced tags, an unknown tool, an empty call, or
            a blank path.
    """

    def refused(problem: str, tool: str | None = None) -> ActionError:
        return ActionError(problem, tool, more)

    if text.lstrip().startswith("<think>"):
        _, closed, text = text.partition("</think>")
        if not closed:
            raise refused("The reasoning was not closed: no </think> came before the end of the message.")
    openings, closings = list(_OPENING.finditer(text)), list(_CLOSING.finditer(text))
    if not openings and not closings:
        if "<tool" in text or "</tool>" in text:
            raise refused("The tool call could not be read: a tag was incomplete or not on a line of its own.")
        return None
    if len(openings) > 1 or len(closings) > 1:
        counts = f"{len(openings)} opening and {len(closings)} closing tags"
        raise refused(f"Exactly one tool call is allowed per message; this one had {counts}. {_TAGS_IN_CONTENT}")
    tool = openings[0][1].strip() if openings else None
    if not closings or not openings or closings[0].start() < openings[0].end():
        missing = "</tool>" if openings else "<tool: NAME>"
        raise refused(f"The tool call could not be read: {missing} was missing or misplaced.", tool)
    names = (*FORMS, *more)
    if tool not in names:
        raise refused(f"There is no tool {tool!r}; the tools are {', '.join(names)}.")
    if text[closings[0].end() :].strip():
        raise refused(f"Text followed the {tool} call; </tool> must end the message.", tool)
    content = text[openings[0].end() : closings[0].start()]
    if openings[0][0].endswith("\r\n"):
        content = content.replace("\r\n", "\n")
    content = content.removesuffix("\n")
    if not content.strip():
        raise refused(f"The {tool} call was empty.", tool)
    if tool in ("edit", "create", "submit") and not content.partition("\n")[0].strip():
        raise refused(f"The first line of the {tool} call was blank; it must be a path.", tool)
    if tool == "submit" and "\n" in content.strip():
        raise refused("The submit call had more than one line; it takes the path of a diff and no more.", tool)
    return Call(tool, content)


def parse_edit(content: str) -> Edit:
    """Return the parts of an edit call. Raise `ActionError` unless it is a path and exactly one block."""
    path, *lines = content.split("\n")
    marks = []
    for marker in ("<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"):
        at = [index for index, line in enumerate(lines) if line.rstrip() == marker]
        if len(at) != 1:
            only = f"An edit takes one block with exactly one line {marker!r}; found {len(at)}."
            more = " Make several changes in several messages, and change lines like these with bash." if at else ""
            raise ActionError(only + more, "edit")
        marks += at
    begin, middle, end = marks
    if begin != 0 or not begin < middle < end or end != len(lines) - 1:
        raise ActionError("The lines of the edit call were out of order, or others stood around its block.", "edit")
    if middle == begin + 1:
        raise ActionError("The SEARCH part was empty; it must hold the lines to replace.", "edit")
    replacement = lines[middle + 1 : end]
    return Edit(path.strip(), "\n".join(lines[1:middle]), "\n".join(replacement) if replacement else None)


def parse_create(content: str) -> tuple[str, str]:
    """Return the path and the content of a create call; a content that is not empty ends with a newline."""
    path, _, body = content.partition("\n")
    return path.strip(), body + "\n" if body else ""
