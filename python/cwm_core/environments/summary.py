"""Summarize rollouts."""

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .trajectories import Trajectory


@dataclass(frozen=True)
class RolloutSummary:
    """Counts and means of rollouts, in types that `dataclasses.asdict` turns into JSON."""

    rollouts: int
    """Number of rollouts."""
    solved: int
    """Number of rollouts that solved their task."""
    failed: int
    """Number of rollouts that an error ended."""
    tasks: int
    """Number of tasks."""
    tasks_solved: int
    """Number of tasks that at least one rollout solved."""
    reward: float | None
    """Mean reward of the rollouts that did not fail, or None if all did. The same holds for the next means."""
    turns: float | None
    """Mean number of turns."""
    tokens: float | None
    """Mean number of tokens that the agent generated, or None if no agent counted them."""
    seconds: float | None
    """Mean duration, in seconds."""
    ends: dict[str, int]
    """Number of rollouts by the reason of their end, most frequent first. The same order holds for the next counts."""
    reasons: dict[str, int]
    """Number of rollouts by the reason of their reward, without its details."""
    failures: dict[str, int]
    """Number of rollouts by the error that ended them."""


def summarize(trajectories: Iterable[Trajectory]) -> RolloutSummary:
    """Return counts and means. Only one trajectory at a time is in memory."""
    tasks: dict[str, bool] = {}
    ends, reasons, failures = Counter[str](), Counter[str](), Counter[str]()
    rewards: list[float] = []
    turns: list[float] = []
    tokens: list[float] = []
    seconds: list[float] = []
    solved = 0
    for trajectory in trajectories:
        tasks[trajectory.task.name] = tasks.get(trajectory.task.name, False) or trajectory.solved
        ends[str(trajectory.end)] += 1
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
    return RolloutSummary(
        rollouts=ends.total(),
        solved=solved,
        failed=failures.total(),
        tasks=len(tasks),
        tasks_solved=sum(tasks.values()),
        reward=_mean(rewards),
        turns=_mean(turns),
        tokens=_mean(tokens),
        seconds=_mean(seconds),
        ends=dict(ends.most_common()),
        reasons=dict(reasons.most_common()),
        failures=dict(failures.most_common()),
    )


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
