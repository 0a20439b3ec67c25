"""Drop samples of calls that do more than compute."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..sample import Drop, Sample


@dataclass(frozen=True)
class NoEffects:
    """Drops samples with effects; the reason is `effect: NAME`, with the first effect by name."""

    allow: Collection[str] = frozenset()
    """Effects that do not matter; values of `Effect`."""

    def __call__(self, sample: Sample) -> Drop | None:
        """Return why to drop the sample, or None to keep it."""
        seen = sorted(sample.effects.difference(self.allow))
        return Drop(f"effect: {seen[0]}", ", ".join(seen)) if seen else None
