"""Copies of what caches held, for later prompts that begin with the same tokens.

Blocks of 64 tokens (`cache.BLOCK`) are copied as soon as they are whole, before the rings of local layers forget them.
A block is known by all tokens up to its end, so what sequences begin with together is kept once. A prompt that leaves
what is known after some block needs the global layers' part of all blocks up to there, and the local layers' part of
those within a ring's length. Each part stays for as long as it is among those used last: of a prompt that is used to
its end, the local parts of the first blocks go first, and what is left takes no more than a cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from hashlib import blake2b

import numpy as np
from torch import Tensor

from .cache import KeyValueCache, cache_bytes


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens `a` and `b` have in common at their beginning."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


def block_keys(tokens: np.ndarray, size: int) -> list[bytes]:
    """For each whole block of `size` of `tokens`, int32 [n], a hash of all of them up to its end."""
    digest, keys = blake2b(digest_size=16), []
    for end in range(size, len(tokens) + 1, size):
        digest.update(tokens[end - size : end].tobytes())
        keys.append(digest.digest())
    return keys


class Prefixes:
    """The parts of blocks used last, of at most `limit` bytes together."""

    def __init__(self, cache: KeyValueCache, limit: int) -> None:
        """Of what `cache` holds; none yet."""
        self.cache, self.limit = cache, limit
        self.nbytes = 0
        self._size = cache.block
        self._ring = max(cache.rings, default=0) // cache.block
        self._parts: OrderedDict[tuple[bytes, bool], Tensor] = OrderedDict()  # by hash, and whether of local layers

    def keep(self, slot: int, tokens: np.ndarray, since: int) -> None:
        """Copy the blocks of `tokens`, all that a slot holds, that became whole after `since` tokens.

        What does not fit the limit together with all before it is left out.
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
        """Of how many of the first of `tokens` all is kept that a sequence needs."""
        found = recent = 0
        for i, key in enumerate(block_keys(tokens, self._size) if self._parts else (), 1):
            if (key, False) not in self._parts:
                break
            recent = recent + 1 if (key, True) in self._parts else 0
            if recent >= min(i, self._ring):
                found = i * self._size
        return found

    def restore(self, slot: int, tokens: np.ndarray) -> None:
        """Begin a slot with `tokens`, as many as `find` gave; they count as used."""
        keys = block_keys(tokens, self._size)
        self._use(keys)
        for i, local in self._needed(keys):
            self.cache.restore_block(slot, i * self._size, local, self._parts[keys[i], local])
        self.cache.begins[slot] = max(0, len(keys) - self._ring) * self._size
        self.cache.lengths[slot] = len(tokens)

    def _needed(self, keys: list[bytes]) -> list[tuple[int, bool]]:
        """The parts that a sequence needs that goes on after these blocks."""
        first = len(keys) - self._ring
        return [(i, local) for i in range(len(keys)) for local in (False, True) if i >= first or not local]

    def _use(self, keys: list[bytes]) -> None:
        """What a sequence needs to go on after these blocks is the last to go, and of it what is shared the most."""
        for i, local in reversed(self._needed(keys)):
            if (keys[i], local) in self._parts:
                self._parts.move_to_end((keys[i], local))
