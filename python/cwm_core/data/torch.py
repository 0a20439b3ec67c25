"""``PackedLoader`` as a dataset of PyTorch's own loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from .loader import Batch, PackedLoader


class PackedDataset(IterableDataset[Batch]):
    """Batches of tensors, from where the loader stands; in a worker process, every n-th of them."""

    def __init__(self, loader: PackedLoader) -> None:
        """Take the batches of ``loader``."""
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        """Return this worker's batches."""
        info = get_worker_info()
        if info is None:
            return _Batches(self.loader)
        return _Batches(self.loader, info.id, info.num_workers)


class _Batches:
    """An iterator that ``StatefulDataLoader`` can save and load, each worker its own."""

    def __init__(self, loader: PackedLoader, worker: int = 0, workers: int = 1) -> None:
        self._loader = loader
        if workers > 1:
            # Workers are asked in turn, the first one for the step at which the loader stands.
            self._share((loader.stats()["steps"] + worker) % workers, workers, loader.state_dict())

    def _share(self, turn: int, workers: int, state: dict[str, Any]) -> None:
        self._loader = self._loader._worker(turn, workers)
        self._loader.load_state_dict(state)
        self._turn = [turn, workers]

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Batch:
        return next(self._loader).to_torch()

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self._loader.state_dict(), "turn": getattr(self, "_turn", None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["turn"] is None:
            self._loader.load_state_dict(state["loader"])
        else:
            self._share(*state["turn"], state["loader"])
