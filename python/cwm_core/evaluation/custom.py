"""Evaluate a model with a task of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .problems import Problem
from .report import Measure, Report, Result, count_left_out, measure
from .results import run_batches

if TYPE_CHECKING:
    from ..inference import Engine

Scores = Mapping[str, float | bool | None]
"""Scores of one problem by name. None if a score does not apply to the problem."""


class EvaluationTask(Protocol):
    """A function that scores a model on a batch of problems."""

    def __call__(self, engine: Engine, problems: Sequence[Problem], seed: int) -> Sequence[Scores | str]:
        """Return the scores of each problem, in order, or the reason that it is left out.

        Args:
            engine: The engine of the model, with a tokenizer.
            problems: The problems of the batch.
            seed: Seed of all random choices for this batch.
        """
        ...


def evaluate_task(
    engine: Engine, problems: Sequence[Problem], task: EvaluationTask, *, name: str | None = None, **options: Any
) -> Report:
    """Evaluate a model with a task, in batches that can be resumed.

    The report has the mean of each score with its confidence interval: Wilson's if every value is a bool, else the
    bootstrap's.

    Args:
        engine: The engine of the model.
        problems: Problems of `read_problems`.
        task: The task.
        name: Name of the task in the report. Defaults to the name of the function.
        options: Arguments of `run_batches`: `folder`, `batch`, `seed`, `progress` and `settings`.

    Raises:
        ValueError: The task returned another number of scores than problems, or `folder` holds results of other
            settings.
    """
    name = name or str(getattr(task, "__name__", type(task).__name__))

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        scores = list(task(engine, batch, seed))
        if len(scores) != len(batch):
            raise ValueError(f"task {name}: expected scores of {len(batch)} problems, got {len(scores)}")
        return [_result(problem, found) for problem, found in zip(batch, scores, strict=True)]

    results, settings = run_batches(name, problems, solve, {}, **options)
    scored = [result.values["scores"] for result in results if result.left_out is None]
    names = dict.fromkeys(key for scores in scored for key in scores)
    measures = [_measure(key, [scores.get(key) for scores in scored], settings["seed"]) for key in names]
    return Report(name, settings, measures, len(problems), count_left_out(results), results)


def _result(problem: Problem, found: Scores | str) -> Result:
    if isinstance(found, str):
        return Result(problem.id, left_out=found)
    return Result(problem.id, {"scores": dict(found)})


def _measure(name: str, values: list[float | bool | None], seed: int) -> Measure:
    share = all(isinstance(value, bool) for value in values if value is not None)
    return measure(name, values, share=share, seed=seed)
