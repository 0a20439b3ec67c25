"""Choose the prompts: a mixture of tasks by share, whose items have solve rates in a window, in stages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Raises:
        ValueError: A share or the window is out of range.
    """

    shares: dict[str, float]
    """Share of the prompts of each task; tasks that are not named have none."""
    step: int = 0
    """Training step at which the stage begins."""
    solve_rates: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest solve rate of the items. The rate is that of the item's last group; items without one always
    take part. The published window is 0.1 to 0.7 (arXiv 2510.02387)."""

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.shares or min(self.shares.values()) < 0 or not sum(self.shares.values()) > 0:
            raise ValueError(f"shares must not be negative and not all 0, got {self.shares}")
        if not 0 <= self.solve_rates[0] <= self.solve_rates[1] <= 1:
            raise ValueError(f"solve_rates must rise from at least 0 to at most 1, got {list(self.solve_rates)}")


class Curriculum:
    """Draws items, each task's in a random order that is new in each pass.

    Equal seeds, steps, and solve rates give equal draws.
    """

    def __init__(self, items: Mapping[str, Sequence[Any]], stages: Sequence[Stage], seed: int = 0) -> None:
        """Draw from the `items` of each task.

        Raises:
            ValueError: There is no stage from step 0, or a stage names a task without items.
        """
        self.items = items
        self._stages = sorted(stages, key=lambda stage: stage.step)
        self._seed = seed
        if not self._stages or self._stages[0].step != 0:
            raise ValueError("the first stage of the curriculum must begin at step 0")
        for stage in self._stages:
            for task in stage.shares:
                if not items.get(task):
                    raise ValueError(f"the stage from step {stage.step} names {task!r}, a task without items")
        self._places = dict.fromkeys(items, 0)  # items drawn or passed over
        self._draws: dict[str, float] = {}  # in the present stage
        self._began = 0
        self._rates: dict[str, dict[int, float]] = {task: {} for task in items}
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}  # pass and its order

    def stage(self, step: int) -> Stage:
        """Return the stage of a training step."""
        return next(stage for stage in reversed(self._stages) if stage.step <= step)

    def draw(self, step: int) -> tuple[str, int]:
        """Return the task and the number of an item for a prompt of a training step."""
        stage = self.stage(step)
        if stage.step != self._began:
            self._began, self._draws = stage.step, {}
        total = sum(stage.shares.values())
        drawn = sum(self._draws.values()) + 1
        # The task that is furthest behind its share.
        task = max(stage.shares, key=lambda name: stage.shares[name] / total * drawn - self._draws.get(name, 0))
        self._draws[task] = self._draws.get(task, 0) + 1
        low, high = stage.solve_rates
        for _ in range(len(self.items[task])):
            number = self._next(task)
            if low <= self._rates[task].get(number, low) <= high:
                return task, number
        logger.warning("no item of task %s has a solve rate from %s to %s; drew another one", task, low, high)
        return task, self._next(task)

    def _next(self, task: str) -> int:
        count = len(self.items[task])
        passes, place = divmod(self._places[task], count)
        self._places[task] += 1
        if task not in self._orders or self._orders[task][0] != passes:
            rng = np.random.default_rng((self._seed, passes, *task.encode()))
            self._orders[task] = passes, rng.permutation(count)
        return int(self._orders[task][1][place])

    def record(self, task: str, number: int, solve_rate: float) -> None:
        """Record the share of an item's group that solved it."""
        self._rates[task][number] = solve_rate

    def state_dict(self) -> dict[str, Any]:
        """Return the position, fit for JSON."""
        rates = {task: [[number, rate] for number, rate in of_task.items()] for task, of_task in self._rates.items()}
        return {"places": self._places, "draws": self._draws, "began": self._began, "rates": rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Move to a position of the same items.

        Raises:
            ValueError: The state has other tasks.
        """
        if state["places"].keys() != self.items.keys():
            raise ValueError(f"the run to resume has the tasks {sorted(state['places'])}, not {sorted(self.items)}")
        self._places, self._draws, self._began = dict(state["places"]), dict(state["draws"]), state["began"]
        self._rates = {task: {int(number): rate for number, rate in rates} for task, rates in state["rates"].items()}
