"""``PackedLoader`` as a dataset of PyTorch's own loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .loader import Batch, PackedLoader


def shared_counter() -> torch.Tensor:
    """Return a number that worker processes share with this one, -1 to begin with."""
    return torch.tensor(-1, dtype=torch.int64).share_memory_()


class PackedDataset(IterableDataset[Batch]):
    """Batches of tensors, from where the loader stands; in a worker process, every n-th of them.

    Without workers, iterating moves the loader on. Worker processes cannot do that: they hand out the batches from
    where the loader stands once, and a second time is a RuntimeError instead of the same batches again.
    """

    def __init__(self, loader: PackedLoader, began: torch.Tensor) -> None:
        """Take the batches of ``loader``.

        ``began`` is a ``shared_counter``: the step of the loader from which workers took batches last.
        """
        self.loader = loader
        self._began = began

    def __iter__(self) -> Iterator[Batch]:
        """Return this worker's batches."""
        info = get_worker_info()
        if info is None:
            return _Batches(self.loader)
        # Workers are asked in turn, so the first one speaks for all.
        return _Batches(self.loader, info.id, info.num_workers, self._began if info.id == 0 else None)


class _Batches:
    """An iterator that ``StatefulDataLoader`` can save and load, each worker its own."""

    def __init__(
        self, loader: PackedLoader, worker: int = 0, workers: int = 1, began: torch.Tensor | None = None
    ) -> None:
        self._loader = loader
        self._began = began
        if workers > 1:
            # Workers are asked in turn, the first one for the step at which the loader stands.
            self._share((loader.stats()["steps"] + worker) % workers, workers, loader._state())

    def _share(self, turn: int, workers: int, state: dict[str, Any]) -> None:
        self._loader = self._loader._worker(turn, workers)
        self._loader.load_state_dict(state)
        self._turn = [turn, workers]

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Batch:
        self._begin()
        return next(self._loader).to_torch()

    def _begin(self) -> None:
        """Note that batches are taken from here; refuse if they were before."""
        if self._began is None:
            return
        steps = self._loader.stats()["steps"]
        if self._began.item() == steps:
            raise RuntimeError(
                f"the batches from step {steps} on were handed out already, by a loop over a DataLoader with workers: "
                "worker processes cannot move the loader on. Iterate over the loader itself (its own thread makes "
                "batches ahead), use torchdata's StatefulDataLoader, or move the loader with skip() or "
                "load_state_dict() before the next loop"
            )
        self._began.fill_(steps)
        self._began = None

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self._loader._state(), "turn": getattr(self, "_turn", None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._began = None  # it says where to go on
        if state["turn"] is None:
            self._loader.load_state_dict(state["loader"])
        else:
            self._share(*state["turn"], state["loader"])
