"""What an evaluation found."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .statistics import bootstrap_interval, wilson_interval

Result = dict[str, Any]
"""Of one problem, as JSON has it: its `id`, and what was found or the reason why it is `left_out`."""


@dataclass(frozen=True)
class Measure:
    """A figure over all problems that have it, with its 95 % confidence interval."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    """Number of problems that it is taken over."""
    interval: str
    """"wilson" (shares of problems) or "bootstrap" (means of anything else, by resampling problems)."""
    published: float | None = None
    """What was published for CWM 32B on CruxEval, where that is what was evaluated on."""


@dataclass(frozen=True)
class Report:
    """The figures of an evaluation and the result of every problem."""

    task: str
    settings: dict[str, Any]
    measures: list[Measure]
    problems: int
    left_out: dict[str, int]
    """Number of problems that could not be scored, by reason."""
    results: list[Result] = field(repr=False)
    confusion: dict[str, dict[str, int]] | None = None
    """Number of problems by truth and prediction, where something was to be told from something else."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as JSON, whole or not at all."""
        write_whole(Path(path), json.dumps(asdict(self), indent=1) + "\n")


def measure(
    name: str, values: Sequence[float | None], *, share: bool, seed: int, published: float | None = None
) -> Measure:
    """The mean of the values that are not None; with Wilson's interval if each is 0 or 1 and their mean a `share`."""
    there = [float(value) for value in values if value is not None]
    kind = "wilson" if share else "bootstrap"
    if not there:
        return Measure(name, None, None, None, 0, kind, published)
    low, high = wilson_interval(round(sum(there)), len(there)) if share else bootstrap_interval([there], seed)
    return Measure(name, sum(there) / len(there), low, high, len(there), kind, published)


def count_left_out(results: Sequence[Result]) -> dict[str, int]:
    """Number of results by the reason why they are left out, the most frequent first."""
    reasons = [result["left_out"] for result in results if "left_out" in result]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons), key=lambda r: (-reasons.count(r), r))}


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    beside = path.with_name(path.name + ".unfinished")
    beside.write_text(text, "utf-8")
    beside.replace(path)
