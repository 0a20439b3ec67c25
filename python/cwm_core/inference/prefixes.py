"""Copies of the caches of prompts and finished sequences, for later ones that begin with the same tokens."""

from __future__ import annotations

import numpy as np

from ..model import ModelConfig
from .cache import Snapshot, reusable


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens `a` and `b` have in common at their beginning."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


class Prefixes:
    """The snapshots used last, of at most `limit` bytes together."""

    def __init__(self, config: ModelConfig, limit: int) -> None:
        """None yet."""
        self.config, self.limit = config, limit
        self.snapshots: list[Snapshot] = []

    def add(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; drop those that it makes needless, and those used longest ago until all fit."""
        self.snapshots = [kept for kept in self.snapshots if not self._covers(snapshot, kept)]
        self.snapshots.append(snapshot)
        while sum(kept.nbytes for kept in self.snapshots) > self.limit:
            self.snapshots.pop(0)

    def _covers(self, snapshot: Snapshot, other: Snapshot) -> bool:
        """Whether `snapshot` serves wherever `other` as a whole does."""
        length = len(other.tokens)
        begins = common_prefix(snapshot.tokens, other.tokens) == length
        return begins and reusable(self.config, len(snapshot.tokens), length)

    def find(self, tokens: np.ndarray) -> tuple[Snapshot | None, int]:
        """The snapshot with the longest reusable prefix of `tokens`, and its length; it counts as used."""
        best, length = None, 0
        for snapshot in self.snapshots:
            prefix = common_prefix(snapshot.tokens, tokens)
            if prefix > length and reusable(self.config, len(snapshot.tokens), prefix):
                best, length = snapshot, prefix
        if best is not None:
            self.snapshots.append(self.snapshots.pop(next(i for i, s in enumerate(self.snapshots) if s is best)))
        return best, length
