"""Attention by PyTorch's FlexAttention: one kernel, compiled for the GPU, over the blocks that the mask leaves.

The blocks follow from the first key of each query alone. Documents are consecutive and attention is causal, so first
keys never fall. A block of queries therefore needs a contiguous range of key blocks, and the full blocks among them
(every query attends to every key) are contiguous too. This is arithmetic on a few numbers per block, whereas
`create_block_mask` evaluates the mask for every pair of tokens: 17 billion at 131,072 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .documents import Documents, from_row, to_row

# Tokens per block of queries and of keys, FlexAttention's own default.
BLOCK = 128


class Flex:
    """Attention of all documents in one kernel."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attend within `documents`, and within `window` tokens if given."""
        self.block_mask = block_mask(documents.first_keys(window))

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return None: the backend runs on every device, though on a CPU without gradients and over all scores."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Implement `Mask.attend`."""
        # An enclosing torch.compile compiles the kernel too. On a CPU, in tests, the kernel is not compiled.
        alone = q.device.type != "cpu" and not torch.compiler.is_compiling()
        batch = len(q)
        q, k, v = to_row(q), to_row(k), to_row(v)
        if alone:
            out: Tensor = compiled_flex_attention()(q, k, v, block_mask=self.block_mask, enable_gqa=True)
        else:
            out = flex_attention(q, k, v, block_mask=self.block_mask, enable_gqa=True)
        return from_row(out, batch)


@lru_cache
def compiled_flex_attention() -> Callable[..., Any]:
    """Return FlexAttention, compiled once. With `fullgraph`, failing to compile is an error, not a slow fallback."""
    return torch.compile(flex_attention, fullgraph=True)


def block_mask(first: Tensor) -> BlockMask:
    """Return the mask under which each query attends to the keys from its own entry of `first` to itself.

    `first` is int32 [tokens]. The mask is computed on its device without waiting for it, and equals the result of
    `create_block_mask` for the same mask.
    """
    n = len(first)
    blocks = -(-n // BLOCK)
    queries = torch.arange(blocks, dtype=torch.int32, device=first.device)
    # First keys of the first and the last query of each block; the window of the last query begins last.
    first_of_first, first_of_last = first[::BLOCK], first[BLOCK - 1 :: BLOCK]
    if n % BLOCK:  # an incomplete block is not full
        first_of_last = torch.cat((first_of_last, first.new_full((1,), n)))
    begin = first_of_first // BLOCK
    # The last block of keys contains the diagonal; the block before it is the last that can be full.
    full_begin = ((first_of_last + BLOCK - 1) // BLOCK).clamp(max=queries)
    full = queries - full_begin
    columns = queries[None]
    before = (full_begin - begin)[:, None]
    # Partial blocks are those before the full ones, then the one on the diagonal.
    partial_indices = torch.where(columns < before, begin[:, None] + columns, queries[:, None])
    full_indices = (full_begin[:, None] + columns).clamp(max=blocks - 1)

    def mask_mod(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= first[query]) & (key <= query)

    return BlockMask.from_kv_blocks(
        (full_begin - begin + 1)[None, None],
        partial_indices[None, None],
        full[None, None],
        full_indices[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(n, n),
    )
