"""Leaving out trajectories that say nearly what another one says: MinHash with locality-sensitive hashing."""

import re
from collections.abc import Iterable, Iterator

from ..support.near_duplicates import NearIndex, sketch
from .trajectories import Trajectory

_WORDS = 5
_BUDGET = re.compile(r"\n<budget>\n.*?\n</budget>\Z", re.DOTALL)


class NearDuplicates:
    """Tells of each trajectory whether one before it, that was kept, is much the same.

    Compared are the sets of 5 consecutive words in actions and observations, without the notes on the budget left, by
    their estimated Jaccard similarity. (The Code World Model's data keeps pairs below 0.5.)
    """

    def __init__(self, threshold: float = 0.5) -> None:
        """Nothing kept yet. Raises as `NearIndex`."""
        self._index = NearIndex(threshold)
        self._names: list[str] = []

    def check(self, trajectory: Trajectory) -> str | None:
        """The name of the first one kept that is as similar as the threshold or more; None where this one is kept."""
        made = sketch(shingles(trajectory))
        if (found := self._index.find(made)) is not None:
            return self._names[found]
        self._index.add(made)
        self._names.append(trajectory.name)
        return None


def distinct(trajectories: Iterable[Trajectory], threshold: float = 0.5) -> Iterator[Trajectory]:
    """Those of the trajectories, in their order, that no earlier one of them is nearly equal to."""
    seen = NearDuplicates(threshold)
    return (trajectory for trajectory in trajectories if seen.check(trajectory) is None)


def shingles(trajectory: Trajectory) -> list[str]:
    """What is compared of a trajectory: each 5 consecutive words of its turns, or all if they are fewer."""
    turns = (f"{turn.action}\n{_BUDGET.sub('', turn.observation)}" for turn in trajectory.turns)
    words = "\n".join(turns).encode(errors="replace").decode().split()
    count = max(len(words) - _WORDS + 1, 1)
    return [" ".join(words[at : at + _WORDS]) for at in range(count)]
