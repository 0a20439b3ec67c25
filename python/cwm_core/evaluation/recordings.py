"""Evaluate predictions of executions that trace stores hold: nothing runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.traces import STORE
from ..support.files import files_in
from ..trace import Trace, TraceReader
from .report import Measure, Report, Result, count_left_out, measure
from .results import leaving_out, run_batches, too_long
from .traces import score_trace

if TYPE_CHECKING:
    from ..inference import Engine

SCORES = {"valid_format": True, "action": False, "state": False, "output": True}
"""Scores of `TraceScores` in the report, and whether they are 0 or 1 for each trace."""
LENGTHS = ((1, 10), (11, 20), (21, 30), (31, 60), (61, None))
"""Smallest and largest number of frames of each group by length; the frame in the prompt does not count."""


@dataclass(frozen=True)
class Recording:
    """A recorded execution to predict."""

    id: str
    """Unique name: the group and the number in it."""
    group: str
    """Name of the store, relative to the folder that was read."""
    trace: Trace
    """The recorded trace."""


def read_recordings(path: str | os.PathLike[str], *, limit: int | None = None) -> list[Recording]:
    """Read the traces of a store, or of all stores in a folder and its subfolders.

    Args:
        path: The store or folder.
        limit: Number of traces to read from each store; None reads all.

    Raises:
        FileNotFoundError: The folder contains no stores.
        OSError: A file cannot be read.
        DamagedFileError: A file is not a trace store, or is damaged.
    """
    path = Path(path)
    files = files_in(path, (STORE,)) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(2, f"no *{STORE} file in this folder", str(path))
    recordings = []
    for file in files:
        group = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("").as_posix()
        with TraceReader(file) as reader:
            recordings += [
                Recording(f"{group}/{number}", group, trace) for number, trace in enumerate(islice(reader, limit))
            ]
    return recordings


def evaluate_recordings(
    engine: Engine,
    recordings: Sequence[Recording],
    *,
    max_new_tokens: int = 4096,
    lines_given: bool = False,
    **options: Any,
) -> Report:
    """Predict recorded executions greedily and without constraints, and score them by group and by length.

    The measures are `SCORES` of each group, then of each group by length, under the names `GROUP: SCORE`. Truncated
    traces, and those whose prompt exceeds the model's context, are left out with the reason. Each result has the
    generated tokens as `ids`.

    Args:
        engine: An engine with a tokenizer.
        recordings: The executions, such as those of `read_recordings`.
        max_new_tokens: Maximum number of tokens in a prediction.
        lines_given: Give the model the true events and lines, so that it predicts only states and values.
        options: Arguments of `run_batches`: `folder`, `batch`, `seed`, `progress` and `settings`.

    Raises:
        ValueError: `folder` holds results of other settings.
    """
    from ..inference import predict_states, predict_traces
    from ..inference.prompts import recorded_prompt

    def solve(batch: Sequence[Recording], seed: int) -> list[Result]:
        prompts = [recorded_prompt(engine.tokenizer, recording.trace) for recording in batch]
        reasons = [
            f"limit: {recording.trace.truncated}" if recording.trace.truncated else reason
            for recording, reason in zip(batch, too_long(engine, prompts, max_new_tokens), strict=True)
        ]
        return leaving_out(batch, reasons, predict)

    def predict(batch: Sequence[Recording]) -> list[Result]:
        traces = [recording.trace for recording in batch]
        if lines_given:
            predictions = predict_states(engine, traces, max_new_tokens=max_new_tokens, constrained=False)
        else:
            predictions = predict_traces(engine, traces, max_new_tokens=max_new_tokens)
        return [
            Result(
                recording.id,
                {
                    "group": recording.group,
                    "frames": len(recording.trace) - 1,
                    "scores": asdict(score_trace(recording.trace, prediction.parsed)),
                    "ids": prediction.ids.tolist(),
                },
            )
            for recording, prediction in zip(batch, predictions, strict=True)
        ]

    results, settings = run_batches(
        "recordings",
        recordings,
        solve,
        {"max_new_tokens": max_new_tokens, "lines_given": lines_given},
        dataset=_digest(recordings),
        **options,
    )
    measures = [found for name, group in _groups(results).items() for found in _measures(name, group, settings["seed"])]
    return Report("recordings", settings, measures, len(recordings), count_left_out(results), results)


def _digest(recordings: Sequence[Recording]) -> str:
    """Return a digest of the traces and their names."""
    digest = hashlib.sha256()
    for recording in recordings:
        text = f"{recording.id}\0{recording.trace.to_text()}\0"
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _groups(results: Sequence[Result]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the values of the scored results by group, and then by length."""
    scored = [result.values for result in results if result.left_out is None]
    groups: dict[str, list[Mapping[str, Any]]] = {values["group"]: [] for values in scored}
    for values in scored:
        groups[values["group"]].append(values)
    for low, high in LENGTHS:
        name = f"{low} to {high} frames" if high else f"{low} frames and more"
        groups[name] = [values for values in scored if low <= values["frames"] <= (high or values["frames"])]
    return {name: group for name, group in groups.items() if group}


def _measures(name: str, group: Sequence[Mapping[str, Any]], seed: int) -> list[Measure]:
    return [
        measure(f"{name}: {score}", [values["scores"][score] for values in group], share=share, seed=seed)
        for score, share in SCORES.items()
    ]
