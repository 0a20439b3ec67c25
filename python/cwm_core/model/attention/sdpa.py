"""Attention by PyTorch's `scaled_dot_product_attention`, a call or more for each document: runs everywhere.

Such a call needs no mask as long as the window covers the document. Past the window, queries go in blocks, each against
only the keys its window can reach; seen from its first key every block has the same mask, which all share. On a CPU,
short documents are plain matrix products instead: there the fused kernel took two to three times as long.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import Documents

# Queries per block where a mask is needed. A block computes the scores of QUERY_BLOCK - 1 keys more than its window
# has, so smaller blocks waste less, and larger ones are fewer calls: on a CPU, of 64 to 1,024, 128 took least time.
QUERY_BLOCK = 128

# Blocks are cut from slices of the document this long, or as long as the window where that is longer: the gradient of
# a cut is as large as what it was cut from, and cut from a whole document its blocks would cost that length squared.
QUERY_SLICE = 16 * QUERY_BLOCK

# Queries per block against a cache's keys: bounds the mask to so many rows.
CACHED_BLOCK = 512

# Documents of at most this many tokens are short for a CPU: their scores still fit its caches.
SHORT = 512


class Sdpa:
    """Attention of each document in calls of its own."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attention within `documents`, and within `window` tokens if given."""
        self.lengths = documents.lengths if documents.packed else None
        self.window = window

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """None: it runs on every device."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Mask.attend`. Never compiled: which calls it makes depends on how long the documents are."""
        if torch.compiler.is_compiling():
            return torch.compiler.disable(self._attend)(q, k, v)
        return self._attend(q, k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.lengths is None or len(self.lengths) == 1:
            return causal_attention(q, k, v, self.window)
        documents = zip(*(x.split(self.lengths, -2) for x in (q, k, v)), strict=True)
        return torch.cat([causal_attention(*qkv, self.window) for qkv in documents], -2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """One document's attention, where the queries are the last m of n positions.

    `q` [..., heads, m, head_dim], `k`, `v` [..., kv_heads, n, head_dim]; m < n when earlier keys and values come from
    a cache. With a `window`, a token attends to itself and the `window - 1` tokens before it.
    """
    m, n = q.shape[-2], k.shape[-2]
    if q.device.type == "cpu" and n <= SHORT:
        return short_attention(q, k, v, window)
    if window is None or n <= window:
        return unwindowed_attention(q, k, v)
    near = max(0, m - (n - window))  # queries whose window reaches the document's first token
    outputs = [unwindowed_attention(q[..., :near, :], k[..., :window, :], v[..., :window, :])] if near else []
    step = max(window, QUERY_SLICE)
    for start in range(near, m, step):
        end = min(start + step, m)
        reach = slice(n - m + start - window + 1, n - m + end)
        outputs += sliding_attention(q[..., start:end, :], k[..., reach, :], v[..., reach, :], window)
    return torch.cat(outputs, -2)


def unwindowed_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What `causal_attention` gives without a window."""
    m, n = q.shape[-2], k.shape[-2]
    if m == n:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    blocks = []
    for start in range(0, m, CACHED_BLOCK):
        queries = q[..., start : start + CACHED_BLOCK, :]
        keys = n - m + start + queries.shape[-2]
        mask = causal_mask(queries.shape[-2], keys, None, q.device)
        blocks.append(
            F.scaled_dot_product_attention(queries, k[..., :keys, :], v[..., :keys, :], attn_mask=mask, enable_gqa=True)
        )
    return torch.cat(blocks, -2)


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> list[Tensor]:
    """Blocks of the attention of m queries that all have a full window: `k`, `v` [..., m + window - 1, head_dim].

    Query heads that share a key head are one longer sequence of queries: CUDA's kernels that take a mask want as many
    key heads as query heads, and copies of the keys would be held for each block.
    """
    m, groups = q.shape[-2], q.shape[-3] // k.shape[-3]
    grouped = q.unflatten(-3, (-1, groups))
    mask = sliding_mask(groups, window, q.dtype, q.device)
    blocks = []
    for start in range(0, m, QUERY_BLOCK):
        size = min(QUERY_BLOCK, m - start)
        queries = grouped[..., start : start + size, :].flatten(-3, -2)
        keys, values = (x[..., start : start + size + window - 1, :] for x in (k, v))
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask[:, :size, : size + window - 1].flatten(0, 1)
        )
        blocks.append(out.unflatten(-2, (groups, size)).flatten(-4, -3))
    return blocks


@lru_cache(maxsize=8)
def sliding_mask(groups: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores, [groups, QUERY_BLOCK, QUERY_BLOCK + window - 1]: 0 for keys i to i + window - 1 of i.

    Of the scores' type, since PyTorch turns a boolean mask into such a one, and keeps it, in every call.
    """
    with torch.inference_mode(False):  # the mask made while generating serves training too
        keys = QUERY_BLOCK + window - 1
        # CUDA's kernels copy a mask whose rows do not begin at multiples of 16 bytes.
        mask = torch.zeros(groups, QUERY_BLOCK, -(-keys // 16) * 16, dtype=dtype, device=device)[..., :keys]
        outside = torch.ones(QUERY_BLOCK, keys, dtype=torch.bool, device=device).triu(window)
        outside |= torch.ones_like(outside).tril(-1)
        return mask.masked_fill_(outside, float("-inf"))


def short_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """What `causal_attention` gives, for n of at most `SHORT`, as two products and a softmax over all scores.

    The query heads that share a key head go into the product as one longer sequence, so that no key is copied.
    """
    m, n = q.shape[-2], k.shape[-2]
    groups = q.shape[-3] // k.shape[-3]
    grouped = (q * q.shape[-1] ** -0.5).unflatten(-3, (-1, groups)).flatten(-3, -2)
    scores = (grouped @ k.transpose(-1, -2)).unflatten(-2, (groups, m))
    weights = (scores + short_mask(window, scores.dtype)[n - m : n, :n]).softmax(-1).flatten(-3, -2)
    return (weights @ v).unflatten(-2, (groups, m)).flatten(-4, -3)


@lru_cache
def short_mask(window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [SHORT, SHORT]: 0 where a query may look, else minus infinity."""
    with torch.inference_mode(False):  # the mask made while generating serves training too
        mask = causal_mask(SHORT, SHORT, window, torch.device("cpu"))
        return torch.zeros(SHORT, SHORT, dtype=dtype).masked_fill(~mask, float("-inf"))


def causal_mask(m: int, n: int, window: int | None, device: torch.device) -> Tensor:
    """Boolean [m, n], true where a query may look: the queries are the last m of the n positions."""
    queries = torch.arange(n - m, n, device=device)[:, None]
    keys = torch.arange(n, device=device)
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)
