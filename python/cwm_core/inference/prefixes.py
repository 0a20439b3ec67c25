"""Keep copies of cached keys and values for later prompts that begin with the same tokens.

Blocks of 64 tokens (`cache.BLOCK`) are copied as soon as they are complete, before the rings of local layers lose them.
A block is identified by all tokens up to its end, so a common prefix of several sequences is stored once. A prompt that
matches up to some block needs the global layers' part of all blocks up to there, and the local layers' part of the
blocks within a ring's length. The parts used least recently are dropped first. For a prompt that is used to its end,
those are the local parts of its first blocks, and the rest takes no more memory than a cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from hashlib import blake2b

import numpy as np
from torch import Tensor

from .cache import KeyValueCache, cache_bytes


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the common prefix of `a` and `b`."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


def block_keys(tokens: np.ndarray, size: int) -> list[bytes]:
    """Return, for each complete block of `size` tokens, a hash of all `tokens`, int32 [n], up to its end."""
    digest, keys = blake2b(digest_size=16), list[bytes]()
    for end in range(size, len(tokens) + 1, size):
        digest.update(tokens[end - size : end].tobytes())
        keys.append(digest.digest())
    return keys


class Prefixes:
    """The most recently used parts of blocks, of at most `limit` bytes in total."""

    def __init__(self, cache: KeyValueCache, limit: int) -> None:
        """Store nothing yet; `keep` copies blocks of `cache`."""
        self.cache, self.limit = cache, limit
        self.nbytes = 0
        self._size = cache.block
        self._ring = max(cache.rings, default=0) // cache.block
        # Keys are the hash of a block and True for its local layers. Least recently used first.
        self._parts: OrderedDict[tuple[bytes, bool], Tensor] = OrderedDict()

    def keep(self, slot: int, tokens: np.ndarray, since: int) -> None:
        """Copy the blocks of a slot that were completed after the first `since` tokens.

        A block that exceeds the limit together with all blocks before it is not copied.

        Args:
            slot: The slot.
            tokens: All tokens of the slot, int32 [n].
            since: Number of tokens whose blocks are copied already.
        """
        keys = block_keys(tokens, self._size)
        config, dtype = self.cache.config, self.cache.dtype
        counts = range(len(keys) + 1)
        fitting = bisect_right(counts, self.limit, key=lambda n: cache_bytes(config, n * self._size, 1, dtype)) - 1
        del keys[fitting:]
        self._use(keys)
        for i in range(since // self._size, len(keys)):
            if i and (keys[i - 1], False) not in self._parts:
                break
            for local in (False, True):
                if (keys[i], local) not in self._parts:
                    part = self._parts[keys[i], local] = self.cache.copy_block(slot, i * self._size, local)
                    self.nbytes += part.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._parts.popitem(last=False)[1].nbytes

    def find(self, tokens: np.ndarray) -> int:
        """Return the length of the longest prefix of `tokens` that `restore` can provide."""
        found = recent = 0
        for i, key in enumerate(block_keys(tokens, self._size) if self._parts else (), 1):
            if (key, False) not in self._parts:
                break
            recent = recent + 1 if (key, True) in self._parts else 0
            if recent >= min(i, self._ring):
                found = i * self._size
        return found

    def restore(self, slot: int, tokens: np.ndarray) -> None:
        """Fill a slot with `tokens`, a prefix whose length `find` returned, and mark its parts as used."""
        keys = block_keys(tokens, self._size)
        self._use(keys)
        for i, local in self._needed(keys):
            self.cache.restore_block(slot, i * self._size, local, self._parts[keys[i], local])
        self.cache.begins[slot] = max(0, len(keys) - self._ring) * self._size
        self.cache.lengths[slot] = len(tokens)

    def _needed(self, keys: list[bytes]) -> list[tuple[int, bool]]:
        """Return the parts that a sequence needs to continue after these blocks."""
        first = len(keys) - self._ring
        return [(i, local) for i in range(len(keys)) for local in (False, True) if i >= first or not local]

    def _use(self, keys: list[bytes]) -> None:
        """Mark the parts needed to continue after these blocks as used, the most widely shared ones last."""
        for i, local in reversed(self._needed(keys)):
            if (keys[i], local) in self._parts:
                self._parts.move_to_end((keys[i], local))
