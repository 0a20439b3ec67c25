"""The rewards of the tasks for other trainers: as reward functions of TRL, verl, and verifiers.

A judge takes an item and the text of an answer, and returns a `Reward`: `judge_output`, `judge_input`,
`judge_program`, a `MathJudge`, or your own. The functions of this module give a judge the signature of a trainer. They
make the item from a row of the trainer's data set. `problem_of`, `contest_problem_of`, and `math_problem_of` take the
columns that the readers of this package take.

A failure of the machine raises an error. It is never a reward.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ..corpus.contests import ContestProblem, contest_of
from ..evaluation import Problem
from ..machines.programs import in_parallel
from .tasks import MathProblem, Reward

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Judge = Callable[[Item, str], Reward]
"""Returns the reward of the text of an answer to an item."""
ItemOf = Callable[[Mapping[str, Any]], Item]
"""Makes an item from a row of a data set. It raises ValueError for a row without what it needs."""


class TrlReward(Protocol):
    """A reward function of TRL's `GRPOTrainer`."""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the reward of each completion; None leaves the completion out."""
        ...


def problem_of(row: Mapping[str, Any]) -> Problem:
    """Return the problem of a row with `code`, `input`, and `output` or `ground_truth`."""
    output = row.get("output", row.get("ground_truth"))
    return Problem(
        str(row.get("id", "")), _text(row, "code"), _text(row, "input"), None if output is None else str(output)
    )


def contest_problem_of(row: Mapping[str, Any]) -> ContestProblem:
    """Return the problem of a row in the form of CodeContests or APPS; `ground_truth` may hold `input_output`."""
    values = {name: value for name, value in row.items() if value is not None}
    if "ground_truth" in values and not {"public_tests", "input_output"} & values.keys():
        values["input_output"] = values["ground_truth"]
    return contest_of(values, 0)


def math_problem_of(row: Mapping[str, Any]) -> MathProblem:
    """Return the problem of a row with `answer` or `ground_truth`."""
    answer = row.get("answer", row.get("ground_truth"))
    if answer is None:
        raise ValueError(f"expected the column 'answer' or 'ground_truth', got {sorted(row)}")
    return MathProblem(str(row.get("id", "")), "", str(answer))


def trl_reward(judge: Judge[Item], item_of: ItemOf[Item], *, name: str = "cwm_reward") -> TrlReward:
    """Return a reward function for `GRPOTrainer(reward_funcs=...)` and the other trainers of TRL that take one.

    It judges the completions of a batch in parallel, with one thread per processor. Conversations are judged by their
    last message. A completion whose machine failed gets None, which TRL leaves out, and an error in the log. The share
    of solved completions is the metric `NAME/solved`, if the trainer takes metrics.

    Args:
        judge: The judge.
        item_of: Makes the item from the columns of a row.
        name: Name of the function, which TRL shows.
    """

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        count = len(completions)
        lists = {key: values for key, values in columns.items() if isinstance(values, list) and len(values) == count}
        rows = [{key: values[i] for key, values in lists.items()} for i in range(count)]

        def one(number: int) -> Reward | None:
            try:
                return judge(item_of(rows[number]), _last_text(completions[number]))
            except ValueError:
                raise  # the data set lacks something
            except Exception:
                logger.exception("%s: completion %d was not judged", name, number)
                return None

        rewards = in_parallel(one, range(count))
        judged = [reward for reward in rewards if reward is not None]
        if judged and callable(log := columns.get("log_metric")):
            log(f"{name}/solved", sum(reward.solved for reward in judged) / len(judged))
        return [None if reward is None else reward.value for reward in rewards]

    reward.__name__ = name
    return reward


def verl_compute_score(
    judges: Mapping[str, tuple[Judge[Any], ItemOf[Any]]],
) -> Callable[..., dict[str, float | str]]:
    """Return a `compute_score` for verl's `custom_reward_function`.

    The row of an item is verl's `extra_info`, with `ground_truth` in addition. The function returns `score`, `acc`
    (1 if the answer solves the item, else 0), and `reason`.

    Args:
        judges: A judge and a function that makes its items, by `data_source`.
    """

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
    ) -> dict[str, float | str]:
        if data_source not in judges:
            raise ValueError(f"there is no judge for the data source {data_source!r}; expected one of {sorted(judges)}")
        judge, item_of = judges[data_source]
        reward = judge(item_of({**(extra_info or {}), "ground_truth": ground_truth}), solution_str)
        return {"score": reward.value, "acc": float(reward.solved), "reason": " | ".join(reward.reasons)}

    return compute_score


def verifiers_reward(
    judge: Judge[Item], item_of: ItemOf[Item], *, name: str = "cwm_reward"
) -> Callable[..., Coroutine[Any, Any, float]]:
    """Return a reward function of `verifiers`: of a `Rubric(funcs=[...])`, or of a task's rewards from its version 0.4.

    The row of an item is `info`, with `answer` as `ground_truth` in addition; or the fields of the task's data.

    Args:
        judge: The judge.
        item_of: Makes the item from the row.
        name: Name of the function, which verifiers shows.
    """

    # Both versions pass the arguments that the signature names: a rubric the first three, a task the other two.
    async def reward(
        completion: Any = None, answer: Any = None, info: Any = None, task: Any = None, trace: Any = None
    ) -> float:
        if trace is not None:
            row, text = task.model_dump(), trace.last_reply
        else:
            known = json.loads(info) if isinstance(info, str) and info else dict(info or {})
            row, text = {"ground_truth": answer, **known}, _last_text(completion)
        judged = await asyncio.to_thread(lambda: judge(item_of(row), text))
        return judged.value

    reward.__name__ = name
    return reward


def _last_text(completion: Any) -> str:
    """Return a completion, or the text of the last message of a conversation; empty if it has none."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    last = completion[-1]
    content = last.get("content") if isinstance(last, Mapping) else getattr(last, "content", None)
    return content if isinstance(content, str) else ""


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"expected text in the column {column!r}, got {type(value).__name__}; columns: {sorted(row)}")
    return value
