"""Compare predicted frames with recorded ones, and summarize both in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING

from cwm_core.trace import ParsedTrace, Trace

if TYPE_CHECKING:
    from cwm_core._native import Frame


class UnmatchedFrame(StrEnum):
    """Kind of a frame that only one of two traces has."""

    MISSING = "missing"
    """Only the recorded trace has the frame."""
    EXTRA = "extra"
    """Only the predicted trace has the frame."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences between the predicted and the recorded frame at one position.

    Frames are compared as written: `..`, the mark of an unchanged variable, is a value like any other.
    """

    index: int
    """Position of the frame in both traces."""
    frame: UnmatchedFrame | None = None
    """Set if only one of the traces has this frame. The other fields are then unset."""
    event: bool = False
    """True if the events differ."""
    line: bool = False
    """True if the texts of the source lines differ."""
    value: bool = False
    """True if the returned values or raised exceptions differ, or only one frame has one."""
    missing: tuple[str, ...] = ()
    """Variables that only the recorded frame has, in its order."""
    extra: tuple[str, ...] = ()
    """Variables that only the predicted frame has, in its order."""
    changed: tuple[str, ...] = ()
    """Variables that have different values, in the recorded frame's order."""

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.frame or self.event or self.line or self.value or self.missing or self.extra or self.changed)

    def __str__(self) -> str:
        """Return the differences in words, such as `line; value; a; missing b; extra c`."""
        if self.frame:
            return f"{self.frame} frame"
        parts = [part for part in ("event", "line", "value") if getattr(self, part)]
        for word, names in (("", self.changed), ("missing ", self.missing), ("extra ", self.extra)):
            if names:
                parts.append(word + ", ".join(names))
        return "; ".join(parts)


def differences(real: Iterable[Frame], predicted: Iterable[Frame]) -> list[Difference]:
    """Return the differences between two sequences of frames, in order of their positions.

    Frames are aligned by position. They are compared by event, text of the line, variables in any order, and value.
    Line numbers are not compared, because predictions have none.
    """
    pairs = zip_longest(real, predicted)
    return [found for index, (one, other) in enumerate(pairs) if (found := _compare(index, one, other))]


def _compare(index: int, real: Frame | None, predicted: Frame | None) -> Difference:
    if predicted is None:
        return Difference(index, frame=UnmatchedFrame.MISSING)
    if real is None:
        return Difference(index, frame=UnmatchedFrame.EXTRA)
    ours, theirs = real.locals or {}, predicted.locals or {}
    same_locals = ours == theirs
    return Difference(
        index,
        event=real.event != predicted.event,
        line=real.line != predicted.line,
        value=real.arg != predicted.arg,
        missing=() if same_locals else tuple(name for name in ours if name not in theirs),
        extra=() if same_locals else tuple(name for name in theirs if name not in ours),
        changed=() if same_locals else tuple(name for name in ours if theirs.get(name, ours[name]) != ours[name]),
    )


def outcome(trace: Trace) -> str:
    """Return a sentence on a trace: its length and how it ended."""
    text = _count(len(trace), "frame")
    if trace.truncated is not None:
        text += f", recording ended by {trace.truncated}"
    if trace.exception is not None:
        text += f", raised {trace.exception}"
    elif trace.result is not None:
        text += f", returned {trace.result}"
    return text


def verdict(trace: Trace, predicted: Trace | ParsedTrace, found: list[Difference]) -> str:
    """Return a sentence on a prediction: its length, where it differs, and why parsing stopped early, if it did."""
    text = f"{_count(len(predicted.frames), 'frame')} predicted, "
    steps = max(len(trace), len(predicted.frames))
    text += f"{len(found):,} of {steps:,} differ, first at {found[0].index}" if found else "no difference"
    if isinstance(predicted, ParsedTrace):
        if predicted.error is not None:
            text += f"; parsing stopped at offset {predicted.error_offset}: {predicted.error}"
        elif not predicted.complete:
            text += "; it stopped between two frames, before the end of the trace"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
