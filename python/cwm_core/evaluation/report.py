"""What an evaluation found, and the file of results by which an interrupted one goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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
        _write_whole(Path(path), json.dumps(asdict(self), indent=1) + "\n")


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


class Results:
    """Results of problems by id, in `folder` if there is one: `settings.json` and, a line each, `results.jsonl`.

    A folder that holds results of the same settings is gone on with; a line that an interruption cut is dropped.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        """Raises ValueError when the folder holds results of other settings or damaged ones."""
        self._by_id: dict[str, Result] = {}
        self._file = None
        if folder is None:
            return
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        path = where / "results.jsonl"
        settings = json.loads(json.dumps(dict(settings)))
        if path.exists():
            _check_settings(where, settings)
            self._read(path)
        else:
            _write_whole(where / "settings.json", json.dumps(settings, indent=1) + "\n")
        self._file = path.open("a", encoding="ascii")

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                result = json.loads(line)
                self._by_id[result["id"]] = result
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}, line {number}: not a result of an evaluation") from None
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def __contains__(self, id: str) -> bool:
        """Whether there is a result of that problem."""
        return id in self._by_id

    def __getitem__(self, id: str) -> Result:
        """The result of a problem."""
        return self._by_id[id]

    def add(self, results: Sequence[Result]) -> None:
        """Add and write the results of problems that have none yet."""
        for result in results:
            if result["id"] not in self:
                # As a file gives it back, so that a resumed evaluation has what an uninterrupted one has.
                line = json.dumps(result)
                self._by_id[result["id"]] = json.loads(line)
                if self._file:
                    self._file.write(line + "\n")
        if self._file:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    try:
        old = json.loads((folder / "settings.json").read_text("utf-8"))
        keys = [*settings, *(old.keys() - settings.keys())]
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"{folder} holds results without readable settings; choose another folder") from None
    for key in keys:
        if old.get(key) != settings.get(key):
            raise ValueError(
                f"{folder} holds results with {key} = {old.get(key)!r}, not {settings.get(key)!r}; "
                "choose another folder or the same settings"
            )


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".unfinished")
    beside.write_text(text, "utf-8")
    beside.replace(path)
