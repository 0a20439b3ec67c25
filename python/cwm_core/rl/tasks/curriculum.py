"""Choose the items to train on: a mixture of tasks by share, by difficulty, in stages."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

WINDOW = (0.1, 0.7)
"""Solve rates of the items in the later stages of the Code World Model (arXiv 2510.02387, section 5.2)."""


@dataclass(frozen=True)
class Stage:
    """A stage of training, from a step to the next stage."""

    shares: Mapping[str, float]
    """Share of the draws of each task by name, relative to their sum. A task that is not named is not drawn."""
    step: int = 0
    """First step of the stage."""
    window: tuple[float, float] | None = None
    """Lowest and highest solve rate of the items to draw. Items with an unknown rate are drawn. None draws all."""


class Curriculum:
    """Draws items from several tasks. Draws depend only on the arguments, the steps, and the reported rates.

    The task that is furthest behind its share of the draws is next. Each task goes through its items in a random order,
    and then in another.
    """

    def __init__(self, sizes: Mapping[str, int], stages: Sequence[Stage], *, seed: int = 0) -> None:
        """Set the mixture.

        Args:
            sizes: Number of items of each task, by its name.
            stages: Stages in the order of their steps; the first begins at step 0.
            seed: Seed of the order.

        Raises:
            ValueError: A stage is out of order, names an unknown task or one without items, has no positive share, or
                has a window that is not within 0 and 1.
        """
        _check(sizes, stages)
        self._sizes, self._stages, self._seed = dict(sizes), list(stages), seed
        self._stage = 0
        self._drawn = dict.fromkeys(sizes, 0)
        """Draws of each task in this stage."""
        self._places = dict.fromkeys(sizes, 0)
        """Place of each task in the sequence of its passes over the items."""
        self._rates: dict[str, dict[int, float]] = {name: {} for name in sizes}
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def draw(self, step: int) -> tuple[str, int]:
        """Return the task and the index of the next item.

        Args:
            step: Step of training, which decides the stage. Stages do not go back.
        """
        while self._stage + 1 < len(self._stages) and step >= self._stages[self._stage + 1].step:
            self._stage += 1
            self._drawn = dict.fromkeys(self._sizes, 0)
        shares = self._stages[self._stage].shares
        total = sum(shares.values())
        draws = sum(self._drawn.values()) + 1
        # The task that is furthest behind its share.
        name = max(shares, key=lambda name: draws * shares[name] / total - self._drawn[name])
        self._drawn[name] += 1
        return name, self._next(name)

    def report(self, name: str, index: int, solve_rate: float) -> None:
        """Record the share of an item's trajectories that solved it, which replaces an earlier one.

        Raises:
            ValueError: The task, the index, or the rate does not exist.
        """
        if name not in self._sizes or not 0 <= index < self._sizes[name] or not 0 <= solve_rate <= 1:
            raise ValueError(f"task {name!r} has no item {index}, or {solve_rate} is not a rate from 0 to 1")
        self._rates[name][index] = solve_rate

    def state_dict(self) -> dict[str, Any]:
        """Return the state in JSON types. Later draws continue from it exactly."""
        rates = {name: {str(index): rate for index, rate in each.items()} for name, each in self._rates.items()}
        places = dict(self._places)
        return {
            "sizes": dict(self._sizes), "seed": self._seed, "stage": self._stage, "drawn": dict(self._drawn),
            "places": places, "rates": rates,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Raises:
            ValueError: The state has another seed, other tasks, or other numbers of items.
        """
        for name, own in (("sizes", self._sizes), ("seed", self._seed)):
            if state[name] != own:
                raise ValueError(f"the state of the curriculum has the {name} {state[name]}, expected {own}")
        self._stage = int(state["stage"])
        self._drawn, self._places = dict(state["drawn"]), dict(state["places"])
        self._rates = {
            name: {int(index): float(rate) for index, rate in each.items()} for name, each in state["rates"].items()
        }

    def _next(self, name: str) -> int:
        """Return the next item of a task within the window of the stage."""
        size, window = self._sizes[name], self._stages[self._stage].window
        for _ in range(2 * size):  # at least one whole pass
            index = self._item(name, self._places[name])
            self._places[name] += 1
            rate = self._rates[name].get(index)
            if window is None or rate is None or window[0] <= rate <= window[1]:
                return index
        logger.warning("%s: no item has a solve rate from %g to %g; all are drawn again", name, *(window or ()))
        self._rates[name].clear()
        return self._next(name)

    def _item(self, name: str, place: int) -> int:
        """Return the item at a place in the passes over the items of a task, each in an order of its own."""
        number, at = divmod(place, self._sizes[name])
        if name not in self._orders or self._orders[name][0] != number:
            order = list(range(self._sizes[name]))
            random.Random(f"{self._seed}/{name}/{number}").shuffle(order)
            self._orders[name] = number, order
        return self._orders[name][1][at]


def _check(sizes: Mapping[str, int], stages: Sequence[Stage]) -> None:
    """Raise ValueError for a curriculum that cannot be drawn from."""
    steps = [stage.step for stage in stages]
    if not stages or steps[0] != 0 or any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"stages must begin at step 0 and have increasing steps, got {steps}")
    for number, stage in enumerate(stages):
        for name, share in stage.shares.items():
            if not sizes.get(name):
                raise ValueError(f"stage {number}: there is no task {name!r} with items; expected one of {[*sizes]}")
            if not share > 0:
                raise ValueError(f"stage {number}: the share of {name!r} must be positive, got {share}")
        if not stage.shares:
            raise ValueError(f"stage {number}: expected the share of at least one task")
        if stage.window is not None and not 0 <= stage.window[0] <= stage.window[1] <= 1:
            raise ValueError(f"stage {number}: expected a window within 0 and 1, got {stage.window}")
