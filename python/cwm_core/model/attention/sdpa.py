"""Attention by PyTorch's `scaled_dot_product_attention`, with at least one call per document. Runs everywhere.

A call needs no mask while the window covers the document. Past the window, queries are split into blocks, each against
only the keys that its window reaches. Relative to its first key, every block has the same mask, which all share. On a
CPU, short documents are computed as plain matrix products, because the fused kernel took two to three times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import Documents

# Queries per block if a mask is needed. A block computes scores of QUERY_BLOCK - 1 keys more than its window, so
# smaller blocks waste less, and larger blocks need fewer calls. On a CPU, 128 was fastest of 64 to 1,024.
QUERY_BLOCK = 128

# Blocks are cut from slices of the document of this length, or of the window's length if that is longer. The gradient
# of a block is as large as the tensor it was cut from, so blocks of a whole document would cost its length squared.
QUERY_SLICE = 16 * QUERY_BLOCK

# Queries per block against the keys of a cache; bounds the rows of the mask.
CACHED_BLOCK = 512

# Longest document in tokens whose scores fit the caches of a CPU.
SHORT = 512


class Sdpa:
    """Attention with separate calls for each document."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attend within `documents`, and within `window` tokens if given."""
        self.lengths = documents.lengths if documents.packed else None
        self.window = window

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return None: the backend runs on every device."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Implement `Mask.attend`. Never compiled: the number of calls depends on the lengths of the documents."""
        if torch.compiler.is_compiling():
            plain: Callable[..., Tensor] = torch.compiler.disable(self._attend)  # type: ignore[no-untyped-call]  # PyTorch
            return plain(q, k, v)
        return self._attend(q, k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.lengths is None or len(self.lengths) == 1:
            return causal_attention(q, k, v, self.window)
        queries, keys, values = (torch.split(x, self.lengths, -2) for x in (q, k, v))
        outputs = [causal_attention(*one, self.window) for one in zip(queries, keys, values, strict=True)]
        return torch.cat(outputs, -2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Return the attention of one document in which the queries are the last m of n positions.

    Args:
        q: Queries, [..., heads, m, head_dim].
        k: Keys, [..., kv_heads, n, head_dim]; n > m if earlier keys come from a cache.
        v: Values, like `k`.
        window: Number of tokens that a token attends to, itself included; None: all tokens before it.
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
    """Compute `causal_attention` without a window."""
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
    """Return blocks of the attention of m queries that all have a full window.

    `k` and `v` are [..., m + window - 1, head_dim]. Query heads that share a key head become one longer sequence of
    queries: CUDA kernels that take a mask need as many key heads as query heads, and each block would otherwise hold
    copies of the keys.
    """
    m, groups = q.shape[-2], q.shape[-3] // k.shape[-3]
    grouped = torch.unflatten(q, -3, (-1, groups))
    mask = sliding_mask(groups, window, q.dtype, q.device)
    blocks = []
    for start in range(0, m, QUERY_BLOCK):
        size = min(QUERY_BLOCK, m - start)
        queries = grouped[..., start : start + size, :].flatten(-3, -2)
        keys, values = (x[..., start : start + size + window - 1, :] for x in (k, v))
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask[:, :size, : size + window - 1].flatten(0, 1)
        )
        blocks.append(torch.unflatten(out, -2, (groups, size)).flatten(-4, -3))
    return blocks


@lru_cache(maxsize=8)
def sliding_mask(groups: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask to add to scores, under which query i sees keys i to i + window - 1.

    The shape is [groups, QUERY_BLOCK, QUERY_BLOCK + window - 1]. The mask has the dtype of the scores, because PyTorch
    converts a boolean mask in every call and keeps the result.
    """
    with torch.inference_mode(False):  # the mask made while generating serves training too
        keys = QUERY_BLOCK + window - 1
        # CUDA's kernels copy a mask whose rows do not begin at multiples of 16 bytes.
        mask = torch.zeros(groups, QUERY_BLOCK, -(-keys // 16) * 16, dtype=dtype, device=device)[..., :keys]
        outside = torch.ones(QUERY_BLOCK, keys, dtype=torch.bool, device=device).triu(window)
        outside |= torch.ones_like(outside).tril(-1)
        return mask.masked_fill_(outside, float("-inf"))


def short_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Compute `causal_attention` for n of at most `SHORT` as two products and a softmax over all scores.

    Query heads that share a key head become one longer sequence, so that keys are not copied.
    """
    m, n = q.shape[-2], k.shape[-2]
    groups = q.shape[-3] // k.shape[-3]
    grouped = torch.unflatten(q * q.shape[-1] ** -0.5, -3, (-1, groups)).flatten(-3, -2)
    scores = torch.unflatten(grouped @ k.transpose(-1, -2), -2, (groups, m))
    weights = (scores + short_mask(window, scores.dtype)[n - m : n, :n]).softmax(-1).flatten(-3, -2)
    return torch.unflatten(weights @ v, -2, (groups, m)).flatten(-4, -3)


@lru_cache
def short_mask(window: int | None, dtype: torch.dtype) -> Tensor:
    """Return the mask to add to scores, [SHORT, SHORT]: 0 where a query attends, else minus infinity."""
    with torch.inference_mode(False):  # the mask made while generating serves training too
        mask = causal_mask(SHORT, SHORT, window, torch.device("cpu"))
        return torch.zeros(SHORT, SHORT, dtype=dtype).masked_fill(~mask, float("-inf"))


def causal_mask(m: int, n: int, window: int | None, device: torch.device) -> Tensor:
    """Return bool [m, n], true where a query attends; the queries are the last m of the n positions."""
    queries = torch.arange(n - m, n, device=device)[:, None]
    keys = torch.arange(n, device=device)
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)
