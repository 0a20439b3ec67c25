"""Causal attention within documents, global or within a window; its cost follows the documents, not their packing.

Each document is its own call of PyTorch's fused attention, which needs no mask as long as the window covers the
document. Past the window, queries go in blocks, each against only the keys its window can reach. On a CPU, short
documents are plain matrix products instead: there the fused kernel took two to three times as long.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries per block where a mask is needed: bounds the mask to QUERY_BLOCK x (QUERY_BLOCK + window) entries.
QUERY_BLOCK = 512

# Documents of at most this many tokens are short for a CPU: their scores still fit its caches.
SHORT = 512


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int] | None = None, window: int | None = None) -> Tensor:
    """Causal attention of `q` [..., heads, n, head_size] to `k`, `v` [..., kv_heads, n, head_size].

    `lengths` splits the n tokens into consecutive documents that do not see each other (None: one document). With a
    `window`, a token attends to itself and the `window - 1` tokens before it. Returns [..., heads, n, head_size].
    """
    if lengths is None or len(lengths) == 1:
        return causal_attention(q, k, v, window)
    if sum(lengths) != q.shape[-2]:
        raise ValueError(f"document lengths add up to {sum(lengths)}, but there are {q.shape[-2]} tokens")
    documents = zip(q.split(lengths, -2), k.split(lengths, -2), v.split(lengths, -2), strict=True)
    return torch.cat([causal_attention(*qkv, window) for qkv in documents], -2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """One document's attention, where the queries are the last m of n positions: `q` [..., m, d], `k`, `v` [..., n, d].

    m < n when earlier keys and values come from a cache.
    """
    m, n = q.shape[-2], k.shape[-2]
    if q.device.type == "cpu" and n <= SHORT:
        return short_attention(q, k, v, window)
    if m == n and (window is None or n <= window):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    blocks = []
    for start in range(n - m, n, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n)
        first_key = 0 if window is None else max(0, start - window + 1)
        mask = causal_mask(end - start, end - first_key, window, q.device)
        queries = q[..., start - (n - m) : end - (n - m), :]
        keys, values = k[..., first_key:end, :], v[..., first_key:end, :]
        blocks.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True))
    return torch.cat(blocks, -2)


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


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int] | None = None, window: int | None = None
) -> Tensor:
    """What `attention` computes, written as the formula: softmax(q kᵀ / √head_size) v over one dense mask."""
    n = q.shape[-2]
    documents = torch.arange(len(lengths or [n])).repeat_interleave(torch.tensor(lengths or [n])).to(q.device)
    mask = causal_mask(n, n, window, q.device) & (documents[:, None] == documents)
    groups = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
