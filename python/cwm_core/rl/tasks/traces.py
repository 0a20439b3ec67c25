"""Predict the trace of a call. The true trace is recorded once, in a sandbox, before training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...corpus.filters.deterministic import first_difference
from ...corpus.sandbox import LIMITS, RecordingSandbox, Run
from ...corpus.unit import HASH_SEEDS
from ...evaluation import Problem
from ...evaluation.traces import FrameLike
from ...machines import Limits, Sandbox, literals_equal
from ...tokenizer import Tokenizer
from ...tokenizer.special_tokens import CALL_SEP, END_OF_TEXT, FRAME_SEP, RETURN_SEP, TRACE_TOKENS
from ...trace import ParsedTrace, Trace, last_return
from .protocol import Reward, is_value

_GIVEN = 1  # frames in the prompt


@dataclass(frozen=True)
class Execution:
    """A call and its recorded trace."""

    problem: Problem
    """Program and call, with the output of the recording."""
    trace: Trace
    """Recording of the call."""


def record_executions(
    problems: Iterable[Problem],
    *,
    max_frames: int = 2000,
    limits: Limits = LIMITS,
    sandbox: Sandbox = "bubblewrap",
) -> tuple[list[Execution], dict[str, str]]:
    """Record the calls of problems in a sandbox, twice with different hash seeds.

    Args:
        problems: The problems. Their `output` is optional.
        max_frames: Maximum number of frames; longer executions are left out.
        limits: Limits of each run.
        sandbox: The kind of sandbox.

    Returns:
        The executions, and the reason of each problem that is left out, by its id: it has no complete trace, it raises,
        its recordings differ, or it does not return the stated `output`.

    Raises:
        SandboxError: The sandbox does not work on this machine.
    """
    problems = list(problems)
    runs = [Run(problem.code, problem.call, options={"max_frames": max_frames}) for problem in problems]
    recorded = []
    for seed in HASH_SEEDS:
        with RecordingSandbox(limits=limits, sandbox=sandbox, hash_seed=seed) as machine:
            recorded.append([(result.trace, result.reason) for result in machine.run(runs)])
    executions: list[Execution] = []
    left_out: dict[str, str] = {}
    for problem, (trace, reason), (again, _) in zip(problems, *recorded, strict=True):
        if trace is None or again is None:
            left_out[problem.id] = reason or "no second recording"
        elif (fault := _fault(problem, trace, again)) is not None:
            left_out[problem.id] = fault
        else:
            executions.append(Execution(replace(problem, output=trace.result), trace))
    return executions, left_out


def _fault(problem: Problem, trace: Trace, again: Trace) -> str | None:
    """Return why a recording cannot be a truth, or None."""
    if trace.truncated is not None:
        return f"limit: {trace.truncated}"
    if last_return(list(trace.frames), complete=True) is None or trace.result is None:
        return "raised"
    if first_difference(trace, again) is not None:
        return "not deterministic"
    if problem.output is not None and not literals_equal(problem.output, trace.result):
        return "the recording returns another value than the stated output"
    return None


@dataclass(frozen=True)
class Shares:
    """Shares of the reward of a predicted trace. Each is at least 0, and they add up to 1.

    Each part is worth its share times 2 * accuracy - 1, so that the reward is from -1 to 1.
    """

    output: float = 0.5
    """Share of the return value of the call."""
    line: float = 0.2
    """Share of the event and the source line of each frame."""
    variables: float = 0.2
    """Share of the variables of each CALL and LINE frame, compared as written, including `..`."""
    value: float = 0.1
    """Share of the value of each RETURN and EXCEPTION frame."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the shares are at least 0 and add up to 1."""
        shares = vars(self)
        if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1.0):
            raise ValueError(f"shares must be at least 0 and add up to 1, got {shares}")


OUTPUT_ONLY = Shares(1.0, 0.0, 0.0, 0.0)
"""The reward is 1 if the trace ends with the right return value, else -1."""


_DEPTHS = {"call": 1, "return": -1}
_PARTS = ("variables", "line", "value")  # the parts of a frame, in the order of `Tokenizer.trace_tokens`


class TraceTask:
    """Predict the trace of an `Execution` after its context and first frame, with a reward for each step.

    Frames are compared by position up to the first wrong event or line, after which the executions differ. Frames that
    the prediction does not reach count as wrong. Nothing that the model writes is run. Values are compared as literals.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        shares: Shares = OUTPUT_ONLY,
        max_tokens: int = 4096,
        name: str = "trace",
    ) -> None:
        """Set the vocabulary and the shares.

        Args:
            tokenizer: The model's vocabulary.
            shares: Shares of the reward.
            max_tokens: Maximum number of tokens of a prediction.
            name: Name in metrics.

        Raises:
            ValueError: The vocabulary lacks a special token of the trace format.
        """
        for mark in TRACE_TOKENS:
            if mark not in tokenizer.special_tokens:
                raise ValueError(f"the vocabulary lacks {mark!r}, a special token of the trace format")
        self.name, self.max_tokens = name, max_tokens
        self.stop_tokens = frozenset({tokenizer.special_tokens[END_OF_TEXT]})
        self._tokenizer, self._shares = tokenizer, shares
        self._specials = np.array(sorted(tokenizer.special_tokens.values()), np.int64)
        self._latest: tuple[Execution, _Truth] | None = None

    def prompt(self, item: Execution) -> list[int]:
        """Return the context and the first frame."""
        prompt: list[int] = self._truth(item).prompt.tolist()
        return prompt

    def score(self, item: Execution, tokens: Sequence[int] | NDArray[np.int32]) -> Reward:
        """Compare the predicted frames with the recording."""
        truth, ids = self._truth(item), np.asarray(tokens, np.int64)
        weights = truth.weights(self._shares)
        worth = truth.parts @ weights  # of each frame
        # Most frames of a good model have exactly the tokens of the recording, which need no parsing.
        whole = truth.frames_in(ids)
        begin = at = int(truth.ends[whole - 1]) if whole else 0
        rest = self._tokenizer.parse_trace(ids[begin:])
        steps = truth.steps(whole, worth) if weights.any() else []
        reached, reasons = whole, list[str]()
        for frame, regions in zip(rest.frames, self._regions(ids, at), strict=False):
            if reached == truth.count:
                reasons.append("more frames than the execution has")
                break
            right = _compare(item.trace.frames[_GIVEN + reached], frame)
            steps += _credit(right, regions, weights)
            reasons += [f"frame {_GIVEN + reached}: wrong {part}" for part in _PARTS if right[part] is False]
            reached, at = reached + 1, max(end for _, end in regions.values())
            if not right["line"]:
                break
        else:
            if reached < truth.count:
                reasons.append(f"frame {_GIVEN + reached}: {rest.error or 'missing'}")
                if at < len(ids) and worth[reached]:  # the malformed frame is charged as a whole
                    steps.append((at, self._end_of_frame(ids, at), -float(worth[reached])))
                    reached += 1
        solved = self._has_right_output(item, ids[:begin], whole, rest)
        value = self._shares.output * (1 if solved else -1)
        value += math.fsum(value for _, _, value in steps) - float(worth[reached:].sum())
        reasons.insert(0, "right output" if solved else "wrong output")
        return Reward(value, tuple(reasons), solved, tuple(steps))

    def _truth(self, item: Execution) -> _Truth:
        """Return the tokens of the recording, kept for the next trajectory of a group."""
        latest = self._latest
        if latest is None or latest[0] is not item:
            latest = self._latest = item, _Truth.of(self._tokenizer, item.trace)
        return latest[1]

    def _regions(self, ids: NDArray[np.int64], begin: int) -> Iterator[dict[str, tuple[int, int]]]:
        """Yield the tokens of the parts of each frame from a position on; the separator after a part belongs to it."""
        places: list[int] = []
        for place in (begin + np.flatnonzero(np.isin(ids[begin:], self._specials))).tolist():
            places.append(place)
            if ids[place] != self._tokenizer.special_tokens[FRAME_SEP]:
                continue
            event, action, *value = places
            has_state = action > event + 1
            regions = {"line": (action + 1 if has_state else event, (value[0] if value else event) + 1)}
            if has_state:
                regions["variables"] = (event, action + 1)
            if len(value) == 2:
                regions["value"] = (value[0] + 1, value[1] + 1)
            yield regions
            places = []

    def _end_of_frame(self, ids: NDArray[np.int64], begin: int) -> int:
        """Return the end of a malformed frame: after its separator, or else the end of the tokens."""
        separators = np.flatnonzero(ids[begin:] == self._tokenizer.special_tokens[FRAME_SEP])
        return begin + int(separators[0]) + 1 if len(separators) else len(ids)

    def _has_right_output(self, item: Execution, ids: NDArray[np.int64], whole: int, rest: ParsedTrace) -> bool:
        """Return whether the predicted trace ends with the return value of the recording.

        Args:
            item: The recording.
            ids: Tokens of the first frames.
            whole: Number of frames in `ids`, which equal those of the recording.
            rest: The frames after them.
        """
        # The end of a trace depends on the two frames before it and the number of open calls.
        first = max(whole - 2, 0)
        frames: list[FrameLike] = [*item.trace.frames[_GIVEN + first : _GIVEN + whole], *rest.frames]
        opened, closed = (
            np.count_nonzero(ids == self._tokenizer.special_tokens[mark]) for mark in (CALL_SEP, RETURN_SEP)
        )
        depth = 1 + opened - closed - sum(_DEPTHS.get(frame.event, 0) for frame in frames[: whole - first])
        returned = last_return(frames, complete=rest.complete, depth=int(depth))
        return returned is not None and is_value(frames[returned].arg or "", item.trace.frames[-1].arg or "")


@dataclass(frozen=True)
class _Truth:
    """The tokens of a recording. Positions count from the end of the prompt."""

    prompt: NDArray[np.int32]
    ids: NDArray[np.int32]
    """The tokens after the prompt."""
    parts: NDArray[np.bool_]
    """True where a frame after the prompt has one of `_PARTS` right, [frames, 3]."""
    ends: NDArray[np.int32]
    """End of each frame, after its separator, [frames]."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, trace: Trace) -> _Truth:
        ids, spans, _ = tokenizer.trace_tokens(trace)
        ends = np.maximum(spans[:, 1, 1], spans[:, 2, 1]) + 1  # a frame ends after the separator of its last part
        start = int(ends[_GIVEN - 1])
        return cls(ids[:start], ids[start:], spans[_GIVEN:, :, 0] >= 0, ends[_GIVEN:] - start)

    @property
    def count(self) -> int:
        """Return the number of frames."""
        return len(self.ends)

    def frames_in(self, ids: NDArray[np.int64]) -> int:
        """Return the number of frames that tokens begin with."""
        length = min(len(ids), len(self.ids))
        different = np.flatnonzero(ids[:length] != self.ids[:length])
        same = int(different[0]) if len(different) else length
        return int(np.searchsorted(self.ends, same, side="right"))

    def weights(self, shares: Shares) -> NDArray[np.float64]:
        """Return the worth of one part of a frame, in the order of `_PARTS`; 0 if no frame has it."""
        counts = self.parts.sum(axis=0).tolist()
        worth = [getattr(shares, part) / count if count else 0.0 for part, count in zip(_PARTS, counts, strict=True)]
        return np.array(worth)

    def steps(self, frames: int, worth: NDArray[np.float64]) -> list[tuple[int, int, float]]:
        """Return the rewards of the first frames if they are right."""
        ends = self.ends[:frames].tolist()
        return list(zip([0, *ends[:-1]], ends, worth[:frames].tolist(), strict=False))


def _compare(real: FrameLike, predicted: FrameLike) -> dict[str, bool | None]:
    """Return whether each part of a predicted frame is right; None for a part that the real frame lacks."""
    same_event = real.event == predicted.event
    value = None if real.arg is None else predicted.arg is not None and is_value(predicted.arg, real.arg)
    return {
        "variables": None if real.locals is None else same_event and real.locals == predicted.locals,
        "line": same_event and real.line == predicted.line,
        "value": None if value is None else same_event and value,
    }


def _credit(
    right: Mapping[str, bool | None], regions: Mapping[str, tuple[int, int]], weights: NDArray[np.float64]
) -> Iterator[tuple[int, int, float]]:
    """Yield the rewards of the parts of a frame. A part that was not predicted is charged to the line."""
    for part, weight in zip(_PARTS, weights.tolist(), strict=True):
        if right[part] is not None and weight:
            yield *regions.get(part, regions["line"]), weight if right[part] else -weight
