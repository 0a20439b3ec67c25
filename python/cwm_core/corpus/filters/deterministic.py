"""Compare two recordings of a call to find programs that do not repeat themselves."""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

from ...trace import Trace, Truncation
from ..reasons import DropReason
from ..sample import Drop, Sample


class RunDifference(NamedTuple):
    """The first difference between two recordings."""

    where: str
    """`context`, `frame N` (from 0), `result`, `exception`, `truncated`, or `output`."""
    first: str
    """Text of the first recording there."""
    second: str
    """Text of the second recording there."""


def first_difference(first: Trace, second: Trace) -> RunDifference | None:
    """Return the first difference between two recordings, or None if they are equal.

    If a time limit cut one of them, they are compared up to the end of the shorter one, because chance decides where a
    clock cuts.
    """
    if first == second:
        return None
    if first.context != second.context:
        return RunDifference("context", *_apart(first.context, second.context))
    by_time = Truncation.MAX_SECONDS in (first.truncated, second.truncated)
    for number, (one, other) in enumerate(zip_longest(first.frames, second.frames)):
        if one != other and not (by_time and (one is None or other is None)):
            return RunDifference(f"frame {number}", *map(_shown, (one, other)))
    for name in () if by_time else ("truncated", "result", "exception", "output"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            return RunDifference(name, *_apart(repr(one), repr(other)))
    return None


def is_deterministic(sample: Sample) -> Drop | None:
    """Drop a sample whose two recordings differ; the reason is `NOT_DETERMINISTIC`.

    Raises:
        ValueError: The sample has no second recording.
    """
    if sample.again is None:
        raise ValueError(f"{sample.id}: no second recording to compare with; set Sample.again")
    difference = first_difference(sample.trace, sample.again)
    if difference is None:
        return None
    return Drop(DropReason.NOT_DETERMINISTIC, f"{difference.where}: {difference.first} | {difference.second}")


def _shown(frame: object) -> str:
    if frame is None:
        return "no frame"
    parts = [getattr(frame, name) for name in ("event", "locals", "line", "arg")]
    return _cut(" ".join(str(part).strip() for part in parts if part is not None))


def _apart(first: str, second: str) -> tuple[str, str]:
    """Return both texts from shortly before the place where they differ."""
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return _cut(first[max(at - 20, 0) :]), _cut(second[max(at - 20, 0) :])


def _cut(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."
