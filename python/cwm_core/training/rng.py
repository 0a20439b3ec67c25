"""States of the random number generators of one process."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import torch


def state(device: torch.device) -> bytes:
    """Return the states of the generators of PyTorch (CPU, and `device` if it is a GPU), NumPy and Python."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    states = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    buffer = io.BytesIO()
    torch.save(states, buffer)
    return buffer.getvalue()


def set_state(stored: bytes, device: torch.device) -> None:
    """Restore the states that `state` returned.

    The generator of a GPU stays unchanged if `stored` has no state of one.
    """
    states: dict[str, Any] = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def seed_all(seed: int, rank: int) -> None:
    """Seed all generators, with different numbers on every rank."""
    for_torch, for_numpy, for_python = np.random.SeedSequence((seed, rank)).generate_state(3)
    torch.manual_seed(int(for_torch))
    np.random.seed(for_numpy)
    random.seed(int(for_python))
