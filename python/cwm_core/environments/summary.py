"""Summarize rollouts."""

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .trajectories import Trajectory


def summarize(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """Return counts and means in JSON types. Only one trajectory at a time is in memory.

    Returns:
        `rollouts`, `solved`, and `failed` count rollouts. `tasks` counts tasks, and `tasks_solved` those that at least
        one rollout solved. `ends`, `reasons`, and `failures` count rollouts by their end, the reason of their reward,
        and the error that ended them. `reward`, `turns`, `tokens`, and `seconds` are means over the rollouts that did
        not fail; `tokens` is None if no agent counted them.
    """
    tasks: dict[str, bool] = {}
    ends, reasons, failures = Counter[str](), Counter[str](), Counter[str]()
    rewards, turns, tokens, seconds = [], [], [], []
    solved = 0
    for trajectory in trajectories:
        tasks[trajectory.task.name] = tasks.get(trajectory.task.name, False) or trajectory.solved
        ends[trajectory.end] += 1
        if trajectory.failure is not None:
            failures[" ".join(trajectory.failure.split())[:200]] += 1
            continue
        solved += trajectory.solved
        # Details of a reason follow a colon or are in parentheses.
        reasons[trajectory.reason.partition(":")[0].partition(" (")[0]] += 1
        rewards.append(trajectory.reward)
        turns.append(len(trajectory.turns))
        seconds.append(trajectory.seconds)
        if trajectory.tokens is not None:
            tokens.append(trajectory.tokens)
    return {
        "rollouts": ends.total(),
        "solved": solved,
        "failed": failures.total(),
        "tasks": len(tasks),
        "tasks_solved": sum(tasks.values()),
        "reward": _mean(rewards),
        "turns": _mean(turns),
        "tokens": _mean(tokens),
        "seconds": _mean(seconds),
        "ends": dict(ends.most_common()),
        "reasons": dict(reasons.most_common()),
        "failures": dict(failures.most_common()),
    }


def _mean(values: list[Any]) -> float | None:
    return statistics.fmean(values) if values else None
