"""Keys and values of the sequences that run: all positions in global layers, the last of a window in local ones.

A local layer's positions lie in a ring: position p at p % length. The ring is `MARGIN` longer than the window, so that
a sequence may be taken up again up to `MARGIN` tokens before its end. As long as it has not come round, nothing in it
is lost, and the sequence may be taken up anywhere: see `KeyValueCache.reusable`.
"""

from __future__ import annotations

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
    return 2 * slots * config.num_key_value_heads * config.head_dim * positions * dtype.itemsize


class KeyValueCache:
    """Keys and values of up to `slots` sequences of up to `capacity` tokens each; empty until `resize`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Without memory yet."""
        self.config, self.dtype, self.device = config, dtype, device
        self.slots = self.capacity = 0
        self.layers: list[Tensor] = []
        """For each layer keys and values, [2, slots, kv_heads, length, head_dim]."""
        self.lengths = np.zeros(0, np.int64)
        """How many tokens each slot holds."""
        self.begins = self.lengths.copy()
        """The first position that a slot was given in local layers, which may have lost it since."""
        self.block = BLOCK
        self.rings = {rounded(window + MARGIN) for window in config.layer_windows if window is not None}
        """How many positions local layers keep."""

    def resize(self, slots: int, capacity: int) -> None:
        """Make room for `slots` sequences of `capacity` tokens (rounded up), keeping what the first slots hold.

        No sequence that is kept may be longer than `capacity`.
        """
        self.capacity = capacity = rounded(capacity)
        kept = min(slots, self.slots)
        for i, window in enumerate(self.config.layer_windows):
            shape = (2, slots, self.config.num_key_value_heads, layer_length(window, capacity), self.config.head_dim)
            # Zeros, not uninitialized: masked positions get weight 0, and 0 times a stray NaN would still be NaN.
            new = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if i == len(self.layers):
                self.layers.append(new)
                continue
            # A ring that is too short for window and margin has never come round, so positions stay in place.
            length = min(self.layers[i].shape[3], shape[3])
            new[:, :kept, :, :length] = self.layers[i][:, :kept, :, :length]
            self.layers[i] = new
        self.slots = slots
        self.lengths, self.begins = (
            np.concatenate([numbers[:kept], np.zeros(slots - kept, np.int64)])
            for numbers in (self.lengths, self.begins)
        )

    def move(self, source: int, target: int) -> None:
        """Take the sequence in slot `source` to slot `target`, over what that holds."""
        if source != target:
            self.copy(source, target, int(self.lengths[source]))
        self.lengths[source] = self.begins[source] = 0

    def first_kept(self, slot: int, ring: int) -> int:
        """The first position of a slot that a local layer of `ring` positions still holds."""
        # One fewer than it has room for: a step may write the next position of a sequence whose turn it is not.
        return max(int(self.begins[slot]), int(self.lengths[slot]) + 1 - ring)

    def reusable(self, slot: int, prefix: int) -> bool:
        """Whether what a slot holds serves a sequence that has the first `prefix` tokens in common with it."""
        for window in set(self.config.layer_windows) - {None}:
            # All that the next token sees, and the block that the prefix ends in, to be copied once it is whole.
            needed = max(0, prefix - max(window, self.block))
            if needed < self.first_kept(slot, rounded(window + MARGIN)):
                return False
        return True

    def copy(self, source: int, target: int, prefix: int) -> None:
        """Begin slot `target` with the first `prefix` tokens of slot `source`, where that is `reusable`."""
        for layer in self.layers:
            # All of a ring that has come round, else only the prefix.
            length = layer.shape[3]
            positions = prefix if self.lengths[source] <= length else length
            layer[:, target, :, :positions] = layer[:, source, :, :positions]
        self.begins[target] = max((self.first_kept(source, ring) for ring in self.rings), default=0)
        self.lengths[target] = prefix

    def copy_block(self, slot: int, start: int, local: bool) -> Tensor:
        """A copy of what the local, or the global, layers hold of a slot's positions `start` to `start` + `block`.

        [layers, 2, kv_heads, block, head_dim]; `start` is a multiple of `block`.
        """
        views = self._block_views(slot, start, local)
        return torch.stack(views) if views else torch.empty(0)

    def restore_block(self, slot: int, start: int, local: bool, block: Tensor) -> None:
        """Put back what `copy_block` gave, into any slot."""
        for view, copied in zip(self._block_views(slot, start, local), block, strict=True):
            view.copy_(copied)

    def _block_views(self, slot: int, start: int, local: bool) -> list[Tensor]:
        places = ((layer, start % layer.shape[3]) for layer in self.layers)
        windows = self.config.layer_windows
        return [
            layer[:, slot, :, place : place + self.block]
            for window, (layer, place) in zip(windows, places, strict=True)
            if (window is not None) == local
        ]
