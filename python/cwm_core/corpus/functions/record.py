"""Functions in the pipeline: explored and recorded in the same sandboxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..recording import Kept, Left, Recording
from ..sample import Drop
from .discovery import Function
from .explore import explore


@dataclass(frozen=True)
class ExploreAndRecord:
    """`Work` for items that are functions: calls of each are looked for, chosen, and recorded."""

    seed: int = 0
    budget: int = 100
    """The most calls that are tried of a function."""
    most: int = 5
    """The most calls that are recorded of a function."""

    def __call__(self, functions: Sequence[Function], recording: Recording) -> list[Kept | Left]:
        """What becomes of each call; of a function without one, why."""
        results: list[Kept | Left] = []
        for (module, paths), group in groupby(functions, lambda function: (function.module, function.paths)):
            try:
                worker = recording.recorders(module, paths).workers[0]
            except ImportError as error:
                results += [Left(function.id, Drop("cannot be imported", str(error))) for function in group]
                continue
            units = []
            for function in group:
                explored = explore(function, worker, seed=self.seed, budget=self.budget, most=self.most)
                if explored.unit is None:
                    most_common = explored.outcomes.most_common(1)
                    results.append(Left(function.id, Drop("no call that ends well", str(dict(most_common)))))
                else:
                    units.append(explored.unit)
            results += recording.samples(units)
        return results
