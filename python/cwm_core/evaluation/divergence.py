"""Find where a prediction first leaves the recorded execution, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..machines.literals import evaluate_literal
from ..trace import ParsedTrace, ParseErrorKind, Trace
from ..view import Difference, UnmatchedFrame, differences

if TYPE_CHECKING:
    from .._native import Frame

UNCHANGED = "unchanged"
"""Kind of a variable that keeps its value, which a trace writes as `..`."""


class Cause(StrEnum):
    """The cause of a first divergence."""

    EVENT = "wrong event"
    """Another kind of frame, or an end that comes too early or too late."""
    MISSING = "missing variable"
    """The recorded frame has a variable that the predicted one lacks."""
    INVENTED = "invented variable"
    """The predicted frame has a variable that the recorded one lacks."""
    LINE = "wrong line"
    """The same kind of frame at another line."""
    VALUE = "wrong value"
    """A variable, a return value, or an exception with another value."""
    FORMAT = "broken format"
    """The generation is not a trace from there on."""
    BUDGET = "token budget"
    """The limit of tokens or the model's context ended the generation."""


@dataclass(frozen=True)
class Divergence:
    """The first difference between a predicted and a recorded execution."""

    cause: Cause
    """Cause of the difference. In a frame with several, the one that the model wrote first."""
    frame: int
    """Index of the frame in the recorded trace."""
    kind: str | None = None
    """For a wrong value: the recorded value's kind, see `value_kind`."""
    name: str | None = None
    """For variables: the variable."""


def first_divergence(real: Trace, predicted: ParsedTrace, *, is_cut: bool, given: int = 1) -> Divergence | None:
    """Return where a prediction first differs from the recorded trace; None if it is right to the end.

    Args:
        real: The recorded trace.
        predicted: The prediction of the frames after the first `given` ones.
        is_cut: True if the generation has no end token.
        given: Number of frames in the prompt.
    """
    frames = list(real.frames)[given:]
    first = next(iter(differences(frames, predicted.frames)), None)
    ends = len(frames) if first is None else first.index
    if ends < len(predicted.frames) and first is not None and first.frame is None:
        return _in_frame(frames[ends], first, ends + given)
    if first is not None and first.frame is UnmatchedFrame.EXTRA:
        return Divergence(Cause.EVENT, ends + given)
    if predicted.complete:
        return None if first is None else Divergence(Cause.EVENT, ends + given)
    was_writing = predicted.error_kind in (None, ParseErrorKind.UNCLOSED_FRAME)
    return Divergence(Cause.BUDGET if is_cut and was_writing else Cause.FORMAT, ends + given)


def _in_frame(real: Frame, found: Difference, index: int) -> Divergence:
    """Return the divergence in a frame that both traces have, in the order in which its parts are written."""
    if found.event:
        return Divergence(Cause.EVENT, index)
    if found.missing:
        return Divergence(Cause.MISSING, index, name=found.missing[0])
    if found.extra:
        return Divergence(Cause.INVENTED, index, name=found.extra[0])
    if found.changed:
        name = found.changed[0]
        return Divergence(Cause.VALUE, index, value_kind((real.locals or {})[name]), name)
    if found.line:
        return Divergence(Cause.LINE, index)
    kind = "exception" if real.event == "exception" else value_kind(real.arg or "")
    return Divergence(Cause.VALUE, index, kind)


def value_kind(text: str) -> str:
    """Return the type of a rendered value, such as "int" or "list", `UNCHANGED`, or "object" for other types."""
    if text == "..":
        return UNCHANGED
    if text == "set()":
        return "set"
    try:
        return type(evaluate_literal(text)).__name__
    except ValueError:
        return "object"


def written_kinds(frame: Frame) -> Iterator[str]:
    """Yield the kind of each value in a frame."""
    for text in (frame.locals or {}).values():
        yield value_kind(text)
    if frame.arg is not None:
        yield "exception" if frame.event == "exception" else value_kind(frame.arg)
