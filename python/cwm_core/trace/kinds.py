"""Closed sets of values that traces carry: events, truncation reasons, and outcomes."""

from enum import StrEnum
from typing import Literal

Event = Literal["call", "line", "return", "exception"]
"""Event of a frame, as `sys.settrace` names it."""


class Truncation(StrEnum):
    """Reasons for which the recorder itself ends a recording early; values of `Trace.truncated`.

    `Trace.truncated` may also be any other string: the reason given to `Recorder.snapshot`, such as `"SIGTERM"`.
    """

    MAX_FRAMES = "max_frames"
    """The trace reached the frame limit."""
    MAX_BYTES = "max_bytes"
    """The frames reached the memory limit."""
    MAX_SECONDS = "max_seconds"
    """The recording reached the time limit."""
    SETTRACE = "settrace"
    """The program replaced the recorder's trace function and did not restore it."""


class TraceOutcome(StrEnum):
    """How a recorded program ended."""

    RETURNED = "returned"
    """The recorded call returned a value."""
    RAISED = "raised"
    """The recorded call raised an exception."""
    TRUNCATED = "truncated"
    """The recording ended before the program did."""
    UNKNOWN = "unknown"
    """The frames do not show the outcome, as in a partially parsed trace."""
