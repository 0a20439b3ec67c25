"""Read an answer that must have an exact format: one end of the reasoning, and one answer after it.

The rule is that of the Code World Model (arXiv 2510.02387, section 5.2). It refuses a text that leaves the answer open,
unlike `evaluation.reading`, which finds an answer in any text.
"""

from __future__ import annotations

import re

from ..._native import CwmError
from ...evaluation.answers import Style
from ...tokenizer.special_tokens import REASONING_THINKING_END

_THOUGHT_END = re.compile(f"</think>|{re.escape(REASONING_THINKING_END)}")
_MARK = re.compile(r"\[(/?)ANSWER\]")
_FENCE = re.compile(r"^[ \t]*```(.*)$", re.MULTILINE)


class FormatError(CwmError, ValueError):
    """The text breaks the format; the message says how."""


def without_reasoning(text: str, style: Style) -> str:
    """Return the text after the reasoning, or the whole text if the style has no reasoning.

    Raises:
        FormatError: The reasoning has no end or several, or there is one in a style without reasoning.
    """
    ends = list(_THOUGHT_END.finditer(text))
    expected = 1 if style == "reasoning" else 0
    if len(ends) != expected:
        raise FormatError(f"expected {expected} ends of reasoning, got {len(ends)}")
    return text[ends[0].end() :] if ends else text


def marked_answer(text: str) -> str:
    """Return the text between the only `[ANSWER]` and the only `[/ANSWER]`. Raise FormatError for other marks."""
    marks = list(_MARK.finditer(text))
    if [mark[1] for mark in marks] != ["", "/"]:
        raise FormatError("expected one [ANSWER] and one [/ANSWER] after it")
    return text[marks[0].end() : marks[1].start()].strip()


def code_block(text: str) -> str:
    """Return the content of the only code block. Raise FormatError for none, several, or an open one."""
    fences = list(_FENCE.finditer(text))
    if len(fences) != 2 or fences[1][1].strip():
        raise FormatError(f"expected one code block between two lines of ```, got {len(fences)} such lines")
    return text[fences[0].end() + 1 : fences[1].start()]


def boxed_answer(text: str) -> str:
    r"""Return the content of the only `\boxed{...}`. Raise FormatError for none, several, or unbalanced braces."""
    begins = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    if len(begins) != 1:
        raise FormatError(f"expected one \\boxed{{...}}, got {len(begins)}")
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[begins[0] :], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[begins[0] : begins[0] + match.start()].strip()
    raise FormatError("expected a closing brace of \\boxed{")
