"""Report the results of an evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from .statistics import bootstrap_interval, wilson_interval


class IntervalKind(StrEnum):
    """The method of a confidence interval."""

    WILSON = "wilson"
    """Wilson's score interval, for shares of problems."""
    BOOTSTRAP = "bootstrap"
    """The percentile bootstrap over problems, for other means."""


@dataclass(frozen=True)
class Result:
    """The result of one problem."""

    id: str
    """Id of the problem."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Values that the task found, as JSON represents them."""
    left_out: str | None = None
    """Reason that the problem is not scored; None if it is."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that stands for the result in files."""
        return {"id": self.id} | ({} if self.left_out is None else {"left_out": self.left_out}) | dict(self.values)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Result:
        """Return the result for which an object stands; raise KeyError if it has no `id`."""
        values = {name: value for name, value in row.items() if name not in ("id", "left_out")}
        return cls(row["id"], values, row.get("left_out"))


@dataclass(frozen=True)
class Measure:
    """A mean over all problems that have a value, with its 95 % confidence interval."""

    name: str
    """Name of the measure."""
    value: float | None
    """Mean; None if no problem has a value."""
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end of the interval."""
    n: int
    """Number of problems with a value."""
    interval: IntervalKind
    """Method of the interval."""
    published: float | None = None
    """Published value of CWM 32B on CruxEval, if that is the data set."""


@dataclass(frozen=True)
class Report:
    """The measures of an evaluation, and the result of every problem."""

    task: str
    """Name of the task."""
    settings: dict[str, Any]
    """Settings that the results depend on."""
    measures: list[Measure]
    """Measures, in the order of the table."""
    problems: int
    """Number of problems."""
    left_out: dict[str, int]
    """Number of problems that were not scored, by reason."""
    results: list[Result] = field(repr=False)
    """Results in the order of the problems."""
    confusion: dict[str, dict[str, int]] | None = None
    """Number of problems by truth and prediction, for classification tasks."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; an interrupted write leaves no partial file."""
        report = asdict(self) | {"results": [result.to_json() for result in self.results]}
        write_whole(Path(path), json.dumps(report, indent=1) + "\n")


def measure(
    name: str, values: Sequence[float | None], *, share: bool, seed: int, published: float | None = None
) -> Measure:
    """Return the mean of the values that are not None, with its confidence interval.

    Args:
        name: Name of the measure.
        values: A value or None for each problem.
        share: True if each value is 0 or 1, which has Wilson's interval; other values have the bootstrap's.
        seed: Seed of the bootstrap.
        published: Published value to show beside.
    """
    there = [float(value) for value in values if value is not None]
    kind = IntervalKind.WILSON if share else IntervalKind.BOOTSTRAP
    if not there:
        return Measure(name, None, None, None, 0, kind, published)
    low, high = wilson_interval(round(sum(there)), len(there)) if share else bootstrap_interval([there], seed)
    return Measure(name, sum(there) / len(there), low, high, len(there), kind, published)


def count_left_out(results: Sequence[Result]) -> dict[str, int]:
    """Return the number of results that are left out by reason, most frequent first."""
    reasons = [result.left_out for result in results if result.left_out is not None]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons), key=lambda r: (-reasons.count(r), r))}


def write_whole(path: Path, text: str) -> None:
    """Write a file so that an interruption leaves no partial file."""
    beside = path.with_name(path.name + ".unfinished")
    beside.write_text(text, "utf-8")
    beside.replace(path)
