"""Analyze where predictions diverge from executions, after arXiv 2602.07672."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tokenizer.special_tokens import END_OF_TEXT
from ..trace import ParsedTrace, Trace
from ..view import differences
from .divergence import Cause, Divergence, first_divergence, written_kinds
from .probes import DEPTHS, SWAPS, expected_if_independent, string_recordings, swap_recordings
from .recordings import Recording, evaluate_recordings
from .report import Measure, Report, measure

if TYPE_CHECKING:
    from ..inference import Engine
    from ..tokenizer import Tokenizer

CASES_PER_CAUSE = 4
PROBES = 50
"""Default number of programs for each number of swaps and nested functions."""


@dataclass(frozen=True)
class DistanceRow:
    """Accuracy of one frame over all recordings that are that long."""

    frame: int
    """Number of the frame after the one in the prompt, from 1."""
    traces: int
    """Recordings with this frame."""
    right: Measure
    """Share in which this frame is right."""
    still_right: Measure
    """Share in which this frame and all before it are right."""


@dataclass(frozen=True)
class KindRow:
    """Wrong values of one kind among those written up to the first divergence."""

    kind: str
    """Kind of the recorded value."""
    wrong: Measure
    """Share of wrong values: those at which a prediction diverges first."""


@dataclass(frozen=True)
class Case:
    """A prediction that diverges."""

    id: str
    """Id of the recording."""
    divergence: Divergence
    """First difference from the recording."""
    frames: int
    """Frames of the recording, with the one in the prompt."""
    trace: Trace = field(repr=False)
    """The recording."""
    predicted: ParsedTrace = field(repr=False)
    """The prediction, with the frame in the prompt."""


@dataclass(frozen=True)
class FailureReport:
    """Result of `analyze_failures`: causes and places of first differences, probes, and the worst cases."""

    settings: dict[str, Any]
    """Settings that the results depend on."""
    traces: int
    """Number of predicted recordings."""
    causes: dict[Cause, int]
    """Number of first divergences by cause, most frequent first."""
    kinds: list[KindRow]
    """Wrong values by kind of value."""
    distance: list[DistanceRow]
    """Accuracy by distance from the start."""
    swaps: dict[int, tuple[Measure, Measure]]
    """Share of right outputs by number of swaps: predicted freely, and with the true lines given."""
    strings: dict[int, tuple[Measure, float | None]]
    """Share of right outputs by number of nested functions, and the share expected from single functions."""
    cases: list[Case]
    """Worst cases: of each cause, those that diverge after the smallest part of the trace."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that stands for the report in `failures.json`."""
        return {
            "settings": self.settings,
            "traces": self.traces,
            "causes": {str(cause): number for cause, number in self.causes.items()},
            "kinds": [asdict(row) for row in self.kinds],
            "distance": [asdict(row) for row in self.distance],
            "swaps": {
                n: {"free": asdict(free), "lines_given": asdict(given)} for n, (free, given) in self.swaps.items()
            },
            "strings": {
                n: {"observed": asdict(seen), "expected": wanted} for n, (seen, wanted) in self.strings.items()
            },
            "cases": [{"id": case.id, "frames": case.frames, **asdict(case.divergence)} for case in self.cases],
        }


def analyze_failures(
    engine: Engine,
    recordings: Sequence[Recording],
    *,
    folder: str | os.PathLike[str],
    max_new_tokens: int = 4096,
    probes: int = PROBES,
    **options: Any,
) -> FailureReport:
    """Predict recordings and probes, and analyze the first divergence of each prediction.

    Args:
        engine: An engine with a tokenizer.
        recordings: The executions, such as those of `read_recordings`.
        folder: Folder for the results, from which an interrupted analysis resumes. Its subfolder `recordings` equals a
            folder of `evaluate_recordings`.
        max_new_tokens: Maximum number of tokens in a prediction.
        probes: Number of programs for each number of swaps and nested functions.
        options: Arguments of `run_batches`: `batch`, `seed`, `progress` and `settings`.

    Raises:
        ValueError: `folder` holds results of other settings.
    """

    def evaluate(name: str, recorded: Sequence[Recording], *, lines_given: bool = False) -> Report:
        return evaluate_recordings(
            engine,
            recorded,
            folder=Path(folder) / name,
            max_new_tokens=max_new_tokens,
            lines_given=lines_given,
            **options,
        )

    report = evaluate("recordings", recordings)
    swaps = swap_recordings(probes)
    strings, nested = string_recordings(probes)
    free, given = evaluate("swaps", swaps), evaluate("swaps-lines-given", swaps, lines_given=True)
    composed = evaluate("strings", strings)
    expected = expected_if_independent(nested, {id: bool(output) for id, output in _outputs(composed).items()})
    predictions = list(_predictions(engine.tokenizer, recordings, report))
    seed = report.settings["seed"]
    return FailureReport(
        report.settings,
        len(predictions),
        dict(Counter(one.divergence.cause for one in predictions if one.divergence).most_common()),
        _by_kind(predictions, seed),
        _by_distance(predictions, seed),
        {n: (_group(free, f"swaps {n}"), _group(given, f"swaps {n}")) for n in SWAPS},
        {n: (_group(composed, f"strings {n}"), expected[n]) for n in DEPTHS},
        _worst(predictions),
    )


@dataclass(frozen=True)
class _Predicted:
    """A prediction beside the recording."""

    recording: Recording
    parsed: ParsedTrace
    divergence: Divergence | None


def _predictions(tokenizer: Tokenizer, recordings: Sequence[Recording], report: Report) -> Iterator[_Predicted]:
    """Yield the prediction of each recording that was scored, read from its generated tokens."""
    from ..inference.prompts import recorded_prompt

    end = tokenizer.special_tokens[END_OF_TEXT]
    for recording, result in zip(recordings, report.results, strict=True):
        if result.left_out is not None:
            continue
        ids = np.array(result.values["ids"], np.int32)
        generated = tokenizer.parse_trace(ids)
        is_cut = not len(ids) or int(ids[-1]) != end
        whole = tokenizer.parse_trace(np.concatenate([recorded_prompt(tokenizer, recording.trace), ids]))
        yield _Predicted(recording, whole, first_divergence(recording.trace, generated, is_cut=is_cut))


def _by_kind(predictions: Sequence[_Predicted], seed: int) -> list[KindRow]:
    written: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for one in predictions:
        frames = list(one.recording.trace.frames)
        last = len(frames) if one.divergence is None else one.divergence.frame + 1
        for frame in frames[1:last]:
            written.update(written_kinds(frame))
        if one.divergence is not None and one.divergence.kind is not None:
            wrong[one.divergence.kind] += 1
    rows = []
    for kind, number in written.most_common():
        values = [1.0] * wrong[kind] + [0.0] * (number - wrong[kind])
        rows.append(KindRow(kind, measure(kind, values, share=True, seed=seed)))
    return rows


def _by_distance(predictions: Sequence[_Predicted], seed: int) -> list[DistanceRow]:
    right: dict[int, list[float]] = {}
    still_right: dict[int, list[float]] = {}
    for one in predictions:
        length = len(one.recording.trace)
        wrong = {found.index for found in differences(one.recording.trace.frames, one.parsed.frames)}
        first = length if one.divergence is None else one.divergence.frame
        for frame in range(1, length):
            right.setdefault(frame, []).append(float(frame not in wrong))
            still_right.setdefault(frame, []).append(float(frame < first))
    return [
        DistanceRow(
            frame,
            len(right[frame]),
            measure("right", right[frame], share=True, seed=seed),
            measure("still right", still_right[frame], share=True, seed=seed),
        )
        for frame in sorted(right)
    ]


def _outputs(report: Report) -> dict[str, float]:
    return {result.id: result.values["scores"]["output"] for result in report.results if result.left_out is None}


def _group(report: Report, group: str) -> Measure:
    """Return the share of right outputs of a group; of no value if all its recordings were left out."""
    values = [output for id, output in _outputs(report).items() if id.startswith(f"{group}/")]
    return measure(group, values, share=True, seed=report.settings["seed"])


def _worst(predictions: Sequence[_Predicted]) -> list[Case]:
    cases = [
        Case(one.recording.id, one.divergence, len(one.recording.trace), one.recording.trace, one.parsed)
        for one in predictions
        if one.divergence is not None
    ]
    cases.sort(key=lambda case: (case.divergence.frame / case.frames, case.id))
    return [
        case for cause in Cause for case in [one for one in cases if one.divergence.cause is cause][:CASES_PER_CAUSE]
    ]
