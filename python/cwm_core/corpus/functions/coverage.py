"""What of a function a recorded call went through."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...trace import Trace
from .discovery import Function

ENTERED, RETURNED, RAISED = 0, -1, -2
"""In place of a line: before the first, after the last."""

# What a value of the wrong kind comes to, wherever in a function.
_WRONG_KIND = re.compile(r"(TypeError|AttributeError)\b")


@dataclass(frozen=True)
class CallCoverage:
    """The part of a function that a call reached, by the line numbers of its file."""

    steps: frozenset[tuple[int, int]]
    """(line, next line) within an activation of its code, or of code within it; see `ENTERED`."""
    frames: int
    raised: bool
    """Whether the call ended by an exception."""

    @property
    def lines(self) -> frozenset[int]:
        """Lines that began to run."""
        return frozenset(line for step in self.steps for line in step if line > 0)


def call_coverage(function: Function, trace: Trace) -> CallCoverage | None:
    """What a trace of a call reached of the function; None where the function was not entered.

    A `TypeError` or `AttributeError` that no `raise` statement of the function raised tells only of an argument of the
    wrong kind: that it left the function is no step.
    """
    shift = 0 if function.module is not None else 1  # a snippet is recorded after an empty line
    first, last = function.first_line + shift, function.end_lineno + shift
    steps: set[tuple[int, int]] = set()
    open_calls: list[int | None] = []  # the line that each activation is at; None outside of the function
    entered = False
    raising: tuple[bool, str] | None = None  # by a statement?, what
    for frame in trace.frames:
        line = frame.lineno or 0
        event = frame.event
        if event == "call":
            inside = first <= line <= last
            entered |= first <= line <= function.lineno + shift
            open_calls.append(ENTERED if inside else None)
            raising = None
        elif event == "line":
            at = open_calls[-1]
            if at is not None:
                steps.add((max(at - shift, 0), line - shift))
                open_calls[-1] = line
            raising = None
        elif event == "exception":
            raising = (frame.line.lstrip().startswith(("raise", "assert")), frame.arg or "")
        else:
            at = open_calls.pop() if open_calls else None
            if at is not None and at != ENTERED:
                if raising is None:
                    steps.add((at - shift, RETURNED))
                elif raising[0] or not _WRONG_KIND.match(raising[1]):
                    steps.add((at - shift, RAISED))
    if not entered:
        return None
    return CallCoverage(frozenset(steps), len(trace), trace.exception is not None)
