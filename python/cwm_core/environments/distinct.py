"""Drop near-duplicate trajectories with MinHash and locality-sensitive hashing."""

import re
from collections.abc import Iterable, Iterator

from ..support.near_duplicates import NearIndex, sketch
from .trajectories import Trajectory

_WORDS = 5
_BUDGET = re.compile(r"\n<budget>\n.*?\n</budget>\Z", re.DOTALL)


class NearDuplicates:
    """Finds trajectories that are nearly equal to an earlier one.

    Trajectories are compared by the estimated Jaccard similarity of their sets of 5 consecutive words in actions and
    observations, without the notes on the remaining budget. The data of the Code World Model keeps pairs below 0.5.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        """Start without trajectories. Raise as `NearIndex`."""
        self._index = NearIndex(threshold)
        self._names: list[str] = []

    def check(self, trajectory: Trajectory) -> str | None:
        """Return the name of an earlier trajectory with at least the threshold's similarity, or keep this one: None."""
        made = sketch(shingles(trajectory))
        if (found := self._index.find(made)) is not None:
            return self._names[found]
        self._index.add(made)
        self._names.append(trajectory.name)
        return None


def distinct(trajectories: Iterable[Trajectory], threshold: float = 0.5) -> Iterator[Trajectory]:
    """Yield the trajectories that are not nearly equal to an earlier one, in order."""
    seen = NearDuplicates(threshold)
    return (trajectory for trajectory in trajectories if seen.check(trajectory) is None)


def shingles(trajectory: Trajectory) -> list[str]:
    """Return each sequence of 5 consecutive words of the turns, or all words if there are fewer."""
    turns = (f"{turn.action}\n{_BUDGET.sub('', turn.observation)}" for turn in trajectory.turns)
    words = "\n".join(turns).encode(errors="replace").decode().split()
    count = max(len(words) - _WORDS + 1, 1)
    return [" ".join(words[at : at + _WORDS]) for at in range(count)]
