"""Serve the batches of a `PackedLoader` through PyTorch's data loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .loader import PackedLoader, TensorBatch


def shared_counter() -> torch.Tensor:
    """Return an integer tensor of value -1 that this process shares with its workers."""
    counter = torch.tensor(-1, dtype=torch.int64)
    counter.share_memory_()  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
    return counter


class PackedDataset(IterableDataset[TensorBatch]):
    """Yields batches of tensors from the loader's position on; in a worker process, every n-th of them.

    Without workers, iterating moves the loader. Workers cannot move the loader of the main process: they yield the
    batches from its position once, and a second pass raises RuntimeError instead of repeating them.
    """

    def __init__(self, loader: PackedLoader, began: torch.Tensor) -> None:
        """Serve the batches of a loader.

        Args:
            loader: The loader.
            began: A `shared_counter`, which holds the loader's step at which workers last started taking batches.
        """
        self.loader = loader
        self._began = began

    def __iter__(self) -> Iterator[TensorBatch]:
        """Return an iterator over this worker's batches."""
        info = get_worker_info()
        if info is None:
            return _Batches(self.loader)
        # Workers are asked in turn, so the first one checks for all.
        return _Batches(self.loader, info.id, info.num_workers, self._began if info.id == 0 else None)


class _Batches:
    """An iterator whose state `StatefulDataLoader` saves and loads, separately for each worker."""

    def __init__(
        self, loader: PackedLoader, worker: int = 0, workers: int = 1, began: torch.Tensor | None = None
    ) -> None:
        self._loader = loader
        self._began = began
        self._turn: list[int] | None = None
        if workers > 1:
            # Workers are asked in turn, the first one for the loader's next step.
            self._share((loader.stats().steps + worker) % workers, workers, loader._state())

    def _share(self, turn: int, workers: int, state: dict[str, Any]) -> None:
        self._loader = self._loader._worker(turn, workers)
        self._loader.load_state_dict(state)
        self._turn = [turn, workers]

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> TensorBatch:
        self._begin()
        return next(self._loader).to_torch()

    def _begin(self) -> None:
        """Record that batches are taken from this step on. Raise RuntimeError if they were already."""
        if self._began is None:
            return
        steps = self._loader.stats().steps
        if self._began.item() == steps:
            raise RuntimeError(
                f"a DataLoader with worker processes already served the batches from step {steps} on, and its workers "
                "cannot move the loader. Iterate over the loader itself (its own thread prepares batches ahead), use "
                "torchdata's StatefulDataLoader, or move the loader with skip() or load_state_dict() before the next "
                "loop"
            )
        self._began.fill_(steps)
        self._began = None

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self._loader._state(), "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._began = None  # the state sets the position
        if state["turn"] is None:
            self._loader.load_state_dict(state["loader"])
        else:
            turn, workers = state["turn"]
            self._share(turn, workers, state["loader"])
