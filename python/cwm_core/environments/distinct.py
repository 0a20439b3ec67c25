"""Leaving out trajectories that say nearly what another one says: MinHash with locality-sensitive hashing."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from .trajectories import Trajectory

_HASHES = 128
_SEED = 42
_WORDS = 5
_BUDGET = re.compile(r"\n<budget>\n.*?\n</budget>\Z", re.DOTALL)


class NearDuplicates:
    """Tells of each trajectory whether one before it, that was kept, is much the same.

    Compared are the sets of 5 consecutive words in actions and observations, without the notes on the budget left. The
    estimate of their Jaccard similarity by 128 hashes has a standard error of 0.044 at 0.5. (The Code World Model's
    data keeps pairs below 0.5.)
    """

    def __init__(self, threshold: float = 0.5) -> None:
        """Nothing kept yet. Raises ValueError for a threshold outside (0, 1], ImportError without `rensa`."""
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold is to be above 0 and at most 1, not {threshold}")
        import rensa

        self.threshold = threshold
        self._new = lambda: rensa.RMinHash(num_perm=_HASHES, seed=_SEED)
        # Bands of so few rows that a pair at the threshold is found in 94 of 100 cases: 1 - (1 - s^rows)^bands.
        bands = next((b for b in (8, 16, 32, 64) if 1 - (1 - threshold ** (_HASHES // b)) ** b >= 0.94), _HASHES)
        self._index = rensa.RMinHashLSH(threshold=threshold, num_perm=_HASHES, num_bands=bands)
        self._kept: list[tuple[str, Any]] = []

    def check(self, trajectory: Trajectory) -> str | None:
        """The name of the first one kept that is as similar as the threshold or more; None where this one is kept."""
        minhash = self._new()
        minhash.update(shingles(trajectory))
        for candidate in sorted(self._index.query(minhash)):
            name, kept = self._kept[candidate]
            if minhash.jaccard(kept) >= self.threshold:
                return name
        self._index.insert(len(self._kept), minhash)
        self._kept.append((trajectory.name, minhash))
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
