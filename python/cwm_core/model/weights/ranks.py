"""Ranks that save a model together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Ranks of the default process group if the model is sharded, else this process alone."""

    sharded: bool
    """Whether the model is sharded."""

    @property
    def first(self) -> bool:
        """Whether this rank acts for all."""
        return not self.sharded or dist.get_rank() == 0

    def once(self, action: Callable[[], T]) -> T:
        """Run `action` on the first rank only; return its result or raise its exception on all ranks."""
        if not self.sharded:
            return action()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = action()
            except Exception as error:  # no rank may be left waiting
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        result: T = outcome[0]
        failure: Exception | None = outcome[1]
        if failure is not None:
            raise failure
        return result
