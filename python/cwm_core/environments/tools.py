"""The tool calls in a model's message. Every refusal says what was wrong and what form is right."""

import re
from dataclasses import dataclass

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


class ActionError(ValueError):
    """A message that holds no single well-formed tool call; its text is meant for the model that wrote it."""

    def __init__(self, problem: str, tool: str | None = None) -> None:
        """State the problem and the form of `tool`, or of every tool."""
        forms = [FORMS[tool]] if tool in FORMS else list(FORMS.values())
        super().__init__("\n".join([problem, "The right form, with each tag on its own line:", *forms]))


@dataclass(frozen=True)
class Call:
    """One tool call: the tool's name and what stands between its tags, without the last newline."""

    tool: str
    content: str


@dataclass(frozen=True)
class Edit:
    """Replace the only occurrence of the `search` lines in the file at `path`; None removes them."""

    path: str
    search: str
    replace: str | None


def parse_action(text: str) -> Call | None:
    """The tool call of a message; None for a message without one, which ends the episode.

    A message that begins with ``<think>`` is read from its ``</think>`` on. Where the opening tag's line ends in CRLF,
    every CRLF of the call is read as a line feed. Raises `ActionError` for more than one call, unpaired or misplaced
    tags, an unknown tool, an empty call, and a blank path.
    """
    if text.lstrip().startswith("<think>"):
        _, closed, text = text.partition("</think>")
        if not closed:
            raise ActionError("The reasoning was not closed: no </think> came before the end of the message.")
    openings, closings = list(_OPENING.finditer(text)), list(_CLOSING.finditer(text))
    if not openings and not closings:
        if "<tool" in text or "</tool>" in text:
            raise ActionError("The tool call could not be read: a tag was incomplete or not on a line of its own.")
        return None
    if len(openings) > 1 or len(closings) > 1:
        counts = f"{len(openings)} opening and {len(closings)} closing tags"
        raise ActionError(f"Exactly one tool call is allowed per message; this one had {counts}. {_TAGS_IN_CONTENT}")
    tool = openings[0][1].strip() if openings else None
    if not closings or not openings or closings[0].start() < openings[0].end():
        missing = "</tool>" if openings else "<tool: NAME>"
        raise ActionError(f"The tool call could not be read: {missing} was missing or misplaced.", tool)
    if tool not in FORMS:
        raise ActionError(f"There is no tool {tool!r}; the tools are {', '.join(FORMS)}.")
    if text[closings[0].end() :].strip():
        raise ActionError(f"Text followed the {tool} call; </tool> must end the message.", tool)
    content = text[openings[0].end() : closings[0].start()]
    if openings[0][0].endswith("\r\n"):
        content = content.replace("\r\n", "\n")
    content = content.removesuffix("\n")
    if not content.strip():
        raise ActionError(f"The {tool} call was empty.", tool)
    if tool != "bash" and not content.partition("\n")[0].strip():
        raise ActionError(f"The first line of the {tool} call was blank; it must be a path.", tool)
    if tool == "submit" and "\n" in content.strip():
        raise ActionError("The submit call had more than one line; it takes the path of a diff and no more.", tool)
    return Call(tool, content)


def parse_edit(content: str) -> Edit:
    """The parts of an edit call. Raises `ActionError` unless it is a path and exactly one block."""
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
    """Path and content of a create call; a content that is not empty ends with a newline."""
    path, _, body = content.partition("\n")
    return path.strip(), body + "\n" if body else ""
