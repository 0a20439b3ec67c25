"""Where predicted frames differ from real ones, and the sentences that head both views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from cwm_core.trace import ParsedTrace, Trace

if TYPE_CHECKING:
    from cwm_core._native import Frame


@dataclass(frozen=True, slots=True)
class Difference:
    """How the predicted frame at one position differs from the real one, both as written (``..`` is a value)."""

    index: int
    """The position of the frame in both traces."""
    frame: Literal["missing", "extra"] | None = None
    """``"missing"``: only the real trace has this frame; ``"extra"``: only the predicted one. The rest is unset."""
    event: bool = False
    """Whether the events differ."""
    line: bool = False
    """Whether the source lines differ, as text."""
    value: bool = False
    """Whether the returned values or raised exceptions differ, or only one frame has one."""
    missing: tuple[str, ...] = ()
    """Variables that only the real frame has, in its order."""
    extra: tuple[str, ...] = ()
    """Variables that only the predicted frame has, in its order."""
    changed: tuple[str, ...] = ()
    """Variables that both have with different texts, in the real frame's order."""

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.frame or self.event or self.line or self.value or self.missing or self.extra or self.changed)

    def __str__(self) -> str:
        """What differs, in words: ``line; value; a; missing b; extra c``."""
        if self.frame:
            return f"{self.frame} frame"
        parts = [part for part in ("event", "line", "value") if getattr(self, part)]
        for word, names in (("", self.changed), ("missing ", self.missing), ("extra ", self.extra)):
            if names:
                parts.append(word + ", ".join(names))
        return "; ".join(parts)


def differences(real: Iterable[Frame], predicted: Iterable[Frame]) -> list[Difference]:
    """The positions at which two sequences of frames differ, in order, one ``Difference`` each.

    Frames are aligned by position and compared by parsed content: event, line text, variables without regard to order,
    value. Line numbers are not compared: predictions have none.
    """
    pairs = zip_longest(real, predicted)
    return [found for index, (one, other) in enumerate(pairs) if (found := _compare(index, one, other))]


def _compare(index: int, real: Frame | None, predicted: Frame | None) -> Difference:
    if predicted is None:
        return Difference(index, frame="missing")
    if real is None:
        return Difference(index, frame="extra")
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
    """One sentence on a trace: its length and how it ended."""
    text = _count(len(trace), "frame")
    if trace.truncated is not None:
        text += f", recording ended by {trace.truncated}"
    if trace.exception is not None:
        text += f", raised {trace.exception}"
    elif trace.result is not None:
        text += f", returned {trace.result}"
    return text


def verdict(trace: Trace, predicted: Trace | ParsedTrace, found: list[Difference]) -> str:
    """One sentence on a prediction: its length, where it differs, and why its parsing stopped, if it did."""
    text = f"{_count(len(predicted.frames), 'frame')} predicted, "
    steps = max(len(trace), len(predicted.frames))
    text += f"{len(found):,} of {steps:,} differ, first at {found[0].index}" if found else "no difference"
    if isinstance(predicted, ParsedTrace):
        if predicted.error is not None:
            text += f"; parsing stopped at offset {predicted.error_offset}: {predicted.error}"
        elif not predicted.complete:
            text += "; it stopped between two frames, without an end"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
