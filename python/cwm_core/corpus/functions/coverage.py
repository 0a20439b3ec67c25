"""Measure which lines of a function a recorded call reached."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...trace import Trace
from .discovery import Function

ENTERED, RETURNED, RAISED = 0, -1, -2
"""Stand for a line number: before the first line, after a return, and after an exception that left the function."""

# Exceptions that a value of the wrong type causes anywhere in a function.
_WRONG_TYPE = re.compile(r"(TypeError|AttributeError)\b")


@dataclass(frozen=True)
class CallCoverage:
    """Control-flow steps of a function that a call reached, by the line numbers of its file."""

    steps: frozenset[tuple[int, int]]
    """Pairs (line, next line) within an activation of the function's code or of code inside it. `ENTERED` stands for
    the line before the first one, `RETURNED` and `RAISED` for the line after the last one.
    """
    frames: int
    """Number of frames of the trace."""
    raised: bool
    """True if an exception ended the call."""

    @property
    def lines(self) -> frozenset[int]:
        """Lines that began to run."""
        return frozenset(line for step in self.steps for line in step if line > 0)


def call_coverage(function: Function, trace: Trace) -> CallCoverage | None:
    """Return what a recorded call reached of a function, or None if it did not enter the function.

    A `TypeError` or `AttributeError` that no `raise` statement of the function raised only shows that an argument had
    the wrong type, so leaving the function by it is not a step.
    """
    shift = 0 if function.module is not None else 1  # a snippet is recorded after an empty line
    first, last = function.first_line + shift, function.end_lineno + shift
    steps: set[tuple[int, int]] = set()
    open_calls: list[int | None] = []  # the current line of each activation; None outside the function
    entered = False
    raising: tuple[bool, str] | None = None  # whether by a statement, and the exception
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
                elif raising[0] or not _WRONG_TYPE.match(raising[1]):
                    steps.add((at - shift, RAISED))
    if not entered:
        return None
    return CallCoverage(frozenset(steps), len(trace), trace.exception is not None)
