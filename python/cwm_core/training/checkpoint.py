"""Checkpoints: everything a run needs to go on as if it had never stopped, one file each, written atomically."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 1


def save(folder: str | Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` (tensors, numbers, texts, and lists and dictionaries of them) as the checkpoint after `step` steps.

    The file appears under its name only when it is whole and on disk. All but the newest `keep` are then deleted.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, "step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    for old in _all(folder)[:-keep]:
        old.unlink()
    return path


def latest(folder: str | Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    return next(reversed(_all(Path(folder))), None)


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code from it; raises ValueError, naming it, for a damaged one."""
    with Path(path).open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise nearly anything
            raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}")
    return state


def rng_state() -> dict[str, Any]:
    """States of the generators of PyTorch, NumPy and Python."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
