"""Going through problems in batches, with a file of results by which an interrupted evaluation goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..machines import Limits
from .problems import Problem
from .report import Result, write_whole

if TYPE_CHECKING:
    from ..inference import Engine

Progress = Callable[[int, int], object]

BATCH = 64
"""Problems that are predicted together, unless a caller says otherwise."""


def too_long(engine: Engine, prompts: Iterable[np.ndarray], max_new_tokens: int) -> list[str | None]:
    """Why each prompt cannot be put before the engine's model, None where it can; engines that do not tell take all."""
    refusal = getattr(engine, "refusal", lambda *_: None)
    reasons = (refusal(len(prompt), max_new_tokens) for prompt in prompts)
    return [reason and f"the prompt {reason}" for reason in reasons]


def leaving_out(
    problems: Sequence[Problem], reasons: Iterable[str | None], solve: Callable[[list[Problem]], list[Result]]
) -> list[Result]:
    """Results of the problems in order: of those that have a reason to be left out that reason, of others `solve`'s."""
    reasons = list(reasons)
    kept = [problem for problem, reason in zip(problems, reasons, strict=True) if reason is None]
    solved = iter(solve(kept) if kept else [])
    return [
        next(solved) if reason is None else {"id": problem.id, "left_out": reason}
        for problem, reason in zip(problems, reasons, strict=True)
    ]


def run_batches(
    task: str,
    problems: Sequence[Problem],
    solve: Callable[[Sequence[Problem], int], list[Result]],
    task_settings: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[list[Result], dict[str, Any]]:
    """Results of all problems, in their order, and the settings that they belong to.

    Args:
        task: Its name.
        problems: With ids that occur once.
        solve: Called with each batch and a seed of its own; gives a result for each problem, in order.
        task_settings: What results depend on.
        folder: Where results are kept and found again.
        batch: Problems of a batch; what is drawn at random depends on it.
        seed: Of all that is drawn at random.
        progress: Called with the number of problems that are done, and that of all.
        settings: More that results depend on, such as the name of the model.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    dataset = digest(json.dumps([asdict(problem) for problem in problems]))
    all_settings = {"task": task, **(settings or {}), **task_settings, "batch": batch, "seed": seed, "dataset": dataset}
    results = Results(folder, all_settings)
    try:
        for start in range(0, len(problems), batch):
            part = problems[start : start + batch]
            if not all(problem.id in results for problem in part):
                # Whole again where it was interrupted within: what is drawn depends on a prompt's place in its batch.
                own_seed = int(np.random.SeedSequence([seed, start // batch]).generate_state(1)[0])
                results.add(solve(part, own_seed))
            if progress:
                progress(start + len(part), len(problems))
    finally:
        results.close()
    return [results[problem.id] for problem in problems], all_settings


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
            write_whole(where / "settings.json", json.dumps(settings, indent=1) + "\n")
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


def limit_settings(limits: Limits) -> dict[str, Any]:
    """The limits as settings that results depend on."""
    return {f"limit_{name}": value for name, value in asdict(limits).items()}


def digest(text: str) -> str:
    """A short name for a text: 16 digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


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
