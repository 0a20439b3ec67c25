"""Store the keys and values of running sequences: all positions in global layers, the last window in local layers.

A local layer stores position p at place p % length of a ring. The ring is `MARGIN` positions longer than the window, so
that another sequence can reuse any prefix that ends at most `MARGIN` tokens before the end. Until the ring wraps
around, it holds all positions, and any prefix can be reused: see `KeyValueCache.reusable`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..model import ModelConfig

BLOCK = 64
"""Positions are allocated, and read while decoding, in multiples of this."""
MARGIN = 256
"""Extra positions of a ring: 50 MB beside 10.2 GB for the 32 B model at 131,072 tokens."""


def layer_length(window: int | None, capacity: int) -> int:
    """Return the number of positions that a layer stores of a sequence of at most `capacity` tokens."""
    return capacity if window is None else min(capacity, rounded(window + MARGIN))


def rounded(tokens: int) -> int:
    """Return `tokens` rounded up to a multiple of `BLOCK`."""
    return -(-tokens // BLOCK) * BLOCK


def cache_bytes(config: ModelConfig, tokens: int, slots: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
    """Return the size in bytes of the keys and values of `slots` sequences of up to `tokens` tokens."""
    positions = sum(layer_length(window, rounded(tokens)) for window in config.layer_windows)
    return 2 * slots * config.num_key_value_heads * config.head_dim * positions * dtype.itemsize


class KeyValueCache:
    """The keys and values of up to `slots` sequences of up to `capacity` tokens each."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Create an empty cache; `resize` allocates memory."""
        self.config, self.dtype, self.device = config, dtype, device
        self.slots = self.capacity = 0
        self.layers: list[Tensor] = []
        """Keys and values of each layer, [2, slots, kv_heads, length, head_dim]."""
        self.lengths = np.zeros(0, np.int64)
        """Number of tokens in each slot, int64 [slots]."""
        self.begins = self.lengths.copy()
        """First position written to the local layers of each slot, int64 [slots]; the ring may have lost it since."""
        self.block = BLOCK
        self.rings = {rounded(window + MARGIN) for window in config.layer_windows if window is not None}
        """Lengths of the rings of local layers."""

    def resize(self, slots: int, capacity: int) -> None:
        """Allocate `slots` slots of `capacity` tokens, rounded up, and keep the contents of the first slots.

        No kept sequence may be longer than `capacity`.
        """
        self.capacity = capacity = rounded(capacity)
        kept = min(slots, self.slots)
        for i, window in enumerate(self.config.layer_windows):
            shape = (2, slots, self.config.num_key_value_heads, layer_length(window, capacity), self.config.head_dim)
            # Zeros, because masked positions get weight 0, and 0 times a stray NaN of uninitialized memory is NaN.
            new = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if i == len(self.layers):
                self.layers.append(new)
                continue
            # A ring shorter than window and margin has never wrapped around, so positions keep their places.
            length = min(self.layers[i].shape[3], shape[3])
            new[:, :kept, :, :length] = self.layers[i][:, :kept, :, :length]
            self.layers[i] = new
        self.slots = slots
        self.lengths, self.begins = (
            np.concatenate([numbers[:kept], np.zeros(slots - kept, np.int64)])
            for numbers in (self.lengths, self.begins)
        )

    def move(self, source: int, target: int) -> None:
        """Move the sequence in slot `source` to slot `target`, which is overwritten."""
        if source != target:
            self.copy(source, target, int(self.lengths[source]))
        self.lengths[source] = self.begins[source] = 0

    def first_kept(self, slot: int, ring: int) -> int:
        """Return the first position of a slot that a local layer with a ring of `ring` positions still holds."""
        # One position less than the ring has: a step may write the next position of a sequence that it skips.
        return max(int(self.begins[slot]), int(self.lengths[slot]) + 1 - ring)

    def reusable(self, slot: int, prefix: int) -> bool:
        """Return whether the contents of a slot can start a sequence with the same first `prefix` tokens."""
        for window in {window for window in self.config.layer_windows if window is not None}:
            # All that the next token sees, and the last block of the prefix, which is copied once it is complete.
            needed = max(0, prefix - max(window, self.block))
            if needed < self.first_kept(slot, rounded(window + MARGIN)):
                return False
        return True

    def copy(self, source: int, target: int, prefix: int) -> None:
        """Copy the first `prefix` tokens of slot `source`, which must be `reusable`, to slot `target`."""
        for layer in self.layers:
            # All of a ring that has wrapped around, else only the prefix.
            length = layer.shape[3]
            positions = prefix if self.lengths[source] <= length else length
            layer[:, target, :, :positions] = layer[:, source, :, :positions]
        self.begins[target] = max((self.first_kept(source, ring) for ring in self.rings), default=0)
        self.lengths[target] = prefix

    def copy_block(self, slot: int, start: int, local: bool) -> Tensor:
        """Return a copy of one block of a slot, [layers, 2, kv_heads, block, head_dim].

        Args:
            slot: The slot.
            start: First position of the block, a multiple of `block`.
            local: True for the local layers, False for the global ones.
        """
        views = self._block_views(slot, start, local)
        return torch.stack(views) if views else torch.empty(0)

    def restore_block(self, slot: int, start: int, local: bool, block: Tensor) -> None:
        """Write a result of `copy_block` into any slot."""
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
