"""Score predicted traces as in Table 9 of the CWM technical report; `docs/concepts/trace-format.md` has definitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from cwm_core.machines.literals import literals_equal
from cwm_core.trace import ParsedTrace, ParseErrorKind, Trace, last_return


class FrameLike(Protocol):
    """The attributes of a frame that scoring reads. The frames of traces have them."""

    @property
    def event(self) -> str:
        """Return "call", "line", "return" or "exception"."""

    @property
    def locals(self) -> dict[str, str] | None:
        """Return the variables as written, including `..`."""

    @property
    def line(self) -> str:
        """Return the source line."""

    @property
    def arg(self) -> str | None:
        """Return the value of a RETURN or EXCEPTION frame."""


@dataclass(frozen=True)
class TraceScores:
    """Scores of one prediction, or their means over several, from 0 to 1.

    A score is None if the prediction has nothing to score, for example no LOCALS.
    """

    output: float | None
    """1 if the last return value equals the real one, as a Python value or else as text; 0 for a prediction that stops
    before the entry returns, even if an inner call returned."""
    valid_format: float | None
    """1 if the whole generation parses and ends with the end token."""
    state: float | None
    """Share of real CALL and LINE frames with equal predicted LOCALS, with `..` as written."""
    action: float | None
    """Share of real frames with an equal predicted LINE."""
    valid_json: float | None
    """Share of predicted LOCALS that parse, up to the end of the well-formed part of the generation."""
    key: float | None
    """Mean Jaccard index of the variable names over real CALL and LINE frames."""
    key_value: float | None
    """Mean Jaccard index of the pairs of name and value over real CALL and LINE frames."""


def score_trace(real: Trace, predicted: ParsedTrace, *, given: int = 1) -> TraceScores:
    """Score a prediction against the real execution; frames are aligned by position.

    Args:
        real: The recorded trace.
        predicted: The prediction of the frames after the first `given` ones.
        given: Number of frames in the prompt, which are not scored.
    """
    frames, given_frames = list(predicted.frames), list(real.frames)[:given]
    scores = _score_frames(list(real.frames)[given:], frames)
    depth = sum({"call": 1, "return": -1}.get(frame.event, 0) for frame in given_frames)
    has_returned = last_return(frames, complete=predicted.complete, depth=depth) is not None
    if last_return(list(real.frames), complete=False) is not None and not has_returned:
        scores["output"] = 0.0
    malformed_state = int(predicted.error_kind == ParseErrorKind.INVALID_LOCALS)
    parsed = sum(frame.locals is not None for frame in predicted.frames)
    return TraceScores(
        **scores,
        valid_format=float(predicted.complete),
        valid_json=_share(parsed, parsed + malformed_state),
    )


def score_frames(real: Sequence[FrameLike], predicted: Sequence[FrameLike]) -> TraceScores:
    """Score predicted frames that were never text, such as those of a baseline, whose format is always valid."""
    has_locals = any(frame.locals is not None for frame in predicted)
    return TraceScores(**_score_frames(real, predicted), valid_format=1.0, valid_json=1.0 if has_locals else None)


def mean_scores(scores: Iterable[TraceScores]) -> TraceScores:
    """Return the mean of each score over the traces that have it, or None if no trace does."""
    scores = list(scores)

    def mean(name: str) -> float | None:
        values = [value for one in scores if (value := getattr(one, name)) is not None]
        return _share(sum(values), len(values))

    return TraceScores(**{field.name: mean(field.name) for field in fields(TraceScores)})


def next_line_baseline(real: Trace, *, given: int = 1) -> TraceScores:
    """Score a baseline that repeats the previous state and goes to the next line of the source.

    The baseline sees the true previous frame at every step; without it, it would score lower. It predicts all variables
    of the last CALL or LINE frame as unchanged, and never predicts a return.
    """
    frames = list(real.frames)
    source = real.context.splitlines(keepends=True)
    predicted = [_next_line(frames[: i + 1], source) for i in range(given - 1, len(frames) - 1)]
    return score_frames(frames[given:], predicted)


@dataclass(frozen=True)
class _Frame:
    event: str
    locals: dict[str, str] | None
    line: str
    arg: str | None = None


def _next_line(past: Sequence[FrameLike], source: Sequence[str]) -> _Frame:
    state = next((frame.locals for frame in reversed(past) if frame.locals is not None), {})
    number = getattr(past[-1], "lineno", None) or 0
    line = source[number] if number < len(source) else ""
    names = [".."] if ".." in state else state  # that pair stands for every variable
    return _Frame("line", {name: ".." for name in names}, line)


def _score_frames(real: Sequence[FrameLike], predicted: Sequence[FrameLike]) -> dict[str, float | None]:
    padded: list[FrameLike | None] = [*predicted[: len(real)], *[None] * (len(real) - len(predicted))]
    pairs = list(zip(real, padded, strict=True))
    states = [(a.locals, b.locals if b else None) for a, b in pairs if a.locals is not None]
    return {
        "output": float(_outputs_equal(_output(real), _output(predicted))),
        "state": _share(sum(a == b for a, b in states), len(states)),
        "action": _share(sum(b is not None and a.line == b.line for a, b in pairs), len(pairs)),
        "key": _share(sum(_jaccard(a, b) for a, b in states), len(states)),
        "key_value": _share(sum(_jaccard(a.items(), b and b.items()) for a, b in states), len(states)),
    }


def _output(frames: Sequence[FrameLike]) -> str | None:
    return next((frame.arg for frame in reversed(frames) if frame.event == "return"), None)


def _outputs_equal(real: str | None, predicted: str | None) -> bool:
    if real is None or predicted is None:
        return False
    return literals_equal(real, predicted)


def _jaccard(real: Iterable[object], predicted: Iterable[object] | None) -> float:
    if predicted is None:
        return 0.0
    a, b = set(real), set(predicted)
    return len(a & b) / len(a | b) if a | b else 1.0


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
