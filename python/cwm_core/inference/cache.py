"""Keys and values of the sequences that run: all positions in global layers, the last of a window in local ones.

A local layer's positions lie in a ring: position p at p % length. The ring is `MARGIN` longer than the window, so that
a sequence may be taken up again up to `MARGIN` tokens before its end. As long as it has not come round, nothing in it
is lost, and the sequence may be taken up anywhere: see `reusable`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model import ModelConfig

# Positions are allocated, and read while decoding, in multiples of this.
BLOCK = 64
# At 131,072 tokens of the 32 B model, this much costs 50 MB beside 10.2 GB.
MARGIN = 256


def layer_length(window: int | None, capacity: int) -> int:
    """Positions that a layer keeps of a sequence of at most `capacity` tokens."""
    return capacity if window is None else min(capacity, rounded(window + MARGIN))


def rounded(tokens: int) -> int:
    """The next multiple of `BLOCK`."""
    return -(-tokens // BLOCK) * BLOCK


def cache_bytes(config: ModelConfig, tokens: int, slots: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of the keys and values of `slots` sequences of up to `tokens` tokens."""
    positions = sum(layer_length(window, rounded(tokens)) for window in config.layer_windows)
    return 2 * slots * config.kv_heads * config.head_size * positions * dtype.itemsize


def reusable(config: ModelConfig, length: int, prefix: int) -> bool:
    """Whether what is cached of a sequence of `length` tokens serves one that has the first `prefix` in common."""
    # One less than the margin: a step may write the next position of a sequence that it is not yet the turn of.
    return all(
        length <= layer_length(window, length) or length - prefix < layer_length(window, length) - window
        for window in set(config.layer_windows) - {None}
    )


@dataclass(frozen=True)
class Snapshot:
    """A copy of what is cached of one sequence."""

    tokens: np.ndarray
    """int32 [n]: the tokens whose keys and values these are."""
    layers: list[Tensor]
    """For each layer keys and values, [2, kv_heads, kept positions, head_size]."""

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(layer.nbytes for layer in self.layers)


class KeyValueCache:
    """Keys and values of up to `slots` sequences of up to `capacity` tokens each; empty until `resize`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Without memory yet."""
        self.config, self.dtype, self.device = config, dtype, device
        self.slots = self.capacity = 0
        self.layers: list[Tensor] = []
        """For each layer keys and values, [2, slots, kv_heads, length, head_size]."""
        self.lengths = np.zeros(0, np.int64)
        """How many tokens each slot holds."""

    def resize(self, slots: int, capacity: int) -> None:
        """Make room for `slots` sequences of `capacity` tokens (rounded up), keeping what the first slots hold.

        No sequence that is kept may be longer than `capacity`.
        """
        self.capacity = capacity = rounded(capacity)
        kept = min(slots, self.slots)
        for i, window in enumerate(self.config.layer_windows):
            shape = (2, slots, self.config.kv_heads, layer_length(window, capacity), self.config.head_size)
            # Zeros, not uninitialized: masked positions get weight 0, and 0 times a stray NaN would still be NaN.
            new = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if i == len(self.layers):
                self.layers.append(new)
                continue
            # A ring that is too short for window and margin has never come round, so positions stay in place.
            length = min(self.layers[i].shape[3], shape[3])
            new[:, :kept, :, :length] = self.layers[i][:, :kept, :, :length]
            self.layers[i] = new
        lengths = np.zeros(slots, np.int64)
        lengths[:kept] = self.lengths[:kept]
        self.slots, self.lengths = slots, lengths

    def move(self, source: int, target: int) -> None:
        """Take the sequence in slot `source` to slot `target`, over what that holds."""
        if source != target:
            self.copy(source, target, int(self.lengths[source]))
        self.lengths[source] = 0

    def copy(self, source: int, target: int, prefix: int) -> None:
        """Begin slot `target` with the first `prefix` tokens of slot `source`, where that is `reusable`."""
        self._fill(target, [layer[:, source] for layer in self.layers], int(self.lengths[source]), prefix)

    def restore(self, target: int, snapshot: Snapshot, prefix: int) -> None:
        """Begin slot `target` with the first `prefix` tokens of a snapshot, where that is `reusable`."""
        self._fill(target, snapshot.layers, len(snapshot.tokens), prefix)

    def _fill(self, target: int, layers: list[Tensor], length: int, prefix: int) -> None:
        for window, layer, copied in zip(self.config.layer_windows, self.layers, layers, strict=True):
            # All of a ring that has come round, else only the prefix.
            positions = prefix if length <= layer_length(window, length) else copied.shape[2]
            layer[:, target, :, :positions] = copied[:, :, :positions]
        self.lengths[target] = prefix

    def snapshot(self, slot: int, tokens: np.ndarray) -> Snapshot:
        """A copy of what slot `slot` holds: `tokens`."""
        return Snapshot(tokens, [layer[:, slot, :, : len(tokens)].clone() for layer in self.layers])
