"""Evaluate problems in batches, and store results so that an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np

from .._native import DamagedFileError
from ..machines import Limits
from ..support.jsonl import loads
from ..support.log import ResumableLog
from .report import Result, write_whole

if TYPE_CHECKING:
    from ..inference import Engine


class Named(Protocol):
    """A problem with an id, as evaluations require."""

    @property
    def id(self) -> str:
        """Return the unique id in the data set."""


P = TypeVar("P", bound=Named)

Progress = Callable[[int, int], object]
"""Callback with the number of finished problems and the number of all problems."""

BATCH = 64
"""Default number of problems that are predicted together."""


def too_long(engine: Engine, prompts: Iterable[np.ndarray], max_new_tokens: int) -> list[str | None]:
    """Return why the engine refuses each prompt, or None. An engine without `refusal` accepts all."""
    refusal = getattr(engine, "refusal", lambda *_: None)
    reasons = (refusal(len(prompt), max_new_tokens) for prompt in prompts)
    return [reason and f"the prompt {reason}" for reason in reasons]


def leaving_out(
    problems: Sequence[P], reasons: Iterable[str | None], solve: Callable[[list[P]], list[Result]]
) -> list[Result]:
    """Return the results of the problems in order; call `solve` with those that have no reason to be left out."""
    reasons = list(reasons)
    kept = [problem for problem, reason in zip(problems, reasons, strict=True) if reason is None]
    solved = iter(solve(kept) if kept else [])
    return [
        next(solved) if reason is None else Result(problem.id, left_out=reason)
        for problem, reason in zip(problems, reasons, strict=True)
    ]


def run_batches(
    task: str,
    problems: Sequence[P],
    solve: Callable[[Sequence[P], int], list[Result]],
    task_settings: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
    dataset: str | None = None,
) -> tuple[list[Result], dict[str, Any]]:
    """Return the results of all problems in order, and the settings that they depend on.

    Args:
        task: Name of the task.
        problems: Problems with unique ids.
        solve: Function from a batch and its seed to a result for each problem, in order.
        task_settings: Settings of the task that results depend on.
        folder: Folder that stores results, from which an interrupted evaluation resumes; None stores nothing.
        batch: Number of problems in a batch; random choices depend on it.
        seed: Seed of all random choices.
        progress: Callback with the number of finished problems and the number of all problems.
        settings: Further settings that results depend on, such as the name of the model.
        dataset: Digest of the problems. None takes the digest of their fields, so they must be dataclasses.

    Raises:
        ValueError: `batch` is below 1, or `folder` holds results of other settings.
        DamagedFileError: `folder` holds damaged results.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if dataset is None:
        dataset = digest(json.dumps([asdict(cast(Any, problem)) for problem in problems]))
    all_settings = {"task": task, **(settings or {}), **task_settings, "batch": batch, "seed": seed, "dataset": dataset}
    results = Results(folder, all_settings)
    try:
        for start in range(0, len(problems), batch):
            part = problems[start : start + batch]
            if not all(problem.id in results for problem in part):
                # Repeat an interrupted batch as a whole: samples depend on a prompt's place in its batch.
                own_seed = int(np.random.SeedSequence([seed, start // batch]).generate_state(1)[0])
                results.add(solve(part, own_seed))
            if progress:
                progress(start + len(part), len(problems))
    finally:
        results.close()
    return [results[problem.id] for problem in problems], all_settings


class Results:
    """Results of problems by id, stored in `settings.json` and `results.jsonl` of a folder."""

    def __init__(self, folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        """Create or resume a folder; None stores nothing. A line that an interruption cut is dropped.

        Raises:
            ValueError: The folder holds results of other settings.
            DamagedFileError: The folder holds damaged results.
        """
        self._by_id: dict[str, Result] = {}
        self._log: ResumableLog | None = None
        if folder is None:
            return
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        path = where / "results.jsonl"
        own: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        if path.exists():
            _check_settings(where, own)
        else:
            write_whole(where / "settings.json", json.dumps(own, indent=1) + "\n")
        self._log = ResumableLog(path, durable=False, expected="a result of an evaluation")
        try:
            self._read(path, self._log)
        except BaseException:
            self._log.close()
            raise

    def _read(self, path: Path, log: ResumableLog) -> None:
        for number, row in enumerate(log.rows(), 1):
            try:
                result = Result.from_json(row)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DamagedFileError(f"{path}, line {number}: not a result of an evaluation") from None
            self._by_id[result.id] = result

    def __contains__(self, id: str) -> bool:
        """Return whether there is a result for a problem id."""
        return id in self._by_id

    def __getitem__(self, id: str) -> Result:
        """Return the result for a problem id."""
        return self._by_id[id]

    def add(self, results: Sequence[Result]) -> None:
        """Store the results of problems that have none yet."""
        for result in results:
            if result.id not in self:
                # As read from a file, so that a resumed evaluation equals an uninterrupted one.
                row = json.loads(json.dumps(result.to_json()))
                self._by_id[result.id] = Result.from_json(row)
                if self._log:
                    self._log.append(row)

    def close(self) -> None:
        """Close the file."""
        if self._log:
            self._log.close()


def limit_settings(limits: Limits) -> dict[str, Any]:
    """Return limits of programs as settings that results depend on."""
    return {f"limit_{name}": value for name, value in asdict(limits).items()}


def digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    try:
        old = loads((folder / "settings.json").read_bytes())
        keys = [*settings, *(old.keys() - settings.keys())]
    except (OSError, ValueError, AttributeError):
        raise DamagedFileError(f"{folder} holds results without readable settings; choose another folder") from None
    for key in keys:
        if old.get(key) != settings.get(key):
            raise ValueError(
                f"{folder} holds results with {key} = {old.get(key)!r}, not {settings.get(key)!r}; "
                "choose another folder or the same settings"
            )
