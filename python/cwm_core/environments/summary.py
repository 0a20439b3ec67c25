"""What rollouts came to, in numbers."""

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .trajectories import Trajectory


def summarize(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """Counts and means, as JSON has them; one trajectory at a time is in memory.

    `tasks` and `tasks_solved` count tasks, the latter those that some rollout solved; `ends`, `reasons` and `failures`
    count rollouts by what ended them, why they have their reward, and what broke them off. Means are of all rollouts
    that did not fail; `tokens` is None where no agent counted them.
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
        # What a reason goes into stands in parentheses or behind a colon.
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
