"""What one rank does for all when a sharded model is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Those that save a model together: of the default group if it is sharded, else this process alone."""

    sharded: bool

    @property
    def first(self) -> bool:
        """Whether this is the rank that acts for all."""
        return not self.sharded or dist.get_rank() == 0

    def once(self, action: Callable[[], T]) -> T:
        """What `action` returns on the first rank, which alone calls it; what it raises, all ranks raise."""
        if not self.sharded:
            return action()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = action()
            except Exception as error:  # whatever it is, no rank may be left waiting
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        result, error = outcome
        if error is not None:
            raise error
        return result
