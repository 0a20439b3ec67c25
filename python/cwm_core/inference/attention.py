"""Compute the attention of new tokens to a cache: a piece of one prompt, or one token of each sequence."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from typing import cast

import torch
from torch import Tensor

from ..model import ModelConfig
from ..model.attention.sdpa import causal_attention
from ..model.attention.varlen import find_kernel

Kernel = Callable[..., Tensor]
"""An attention function of PyTorch or flash-attn."""

# Thread blocks that fill a large GPU twice. Attention of few sequences splits the keys to reach this number
# (flash-decoding, https://pytorch.org/blog/flash-decoding).
GPU_BLOCKS = 256


def append_and_attend(cached: Tensor, start: int, qkv: tuple[Tensor, Tensor, Tensor], window: int | None) -> Tensor:
    """Append keys and values to the cache of a layer, and return the attention of the new positions.

    Args:
        cached: The slot of the sequence in the layer, [2, kv_heads, length, head_dim].
        start: Position of the first new token.
        qkv: Queries [heads, m, head_dim], and keys and values [kv_heads, m, head_dim].
        window: Window of the layer; None for a global layer.

    Returns:
        The attention output, [heads, m, head_dim].
    """
    q, k, v = qkv
    length, m = cached.shape[2], k.shape[1]
    end = start + m
    if end <= length:
        cached[0, :, start:end], cached[1, :, start:end] = k, v
        return attend_to_end(q, cached[0, :, :end], cached[1, :, :end], window)
    assert window is not None  # a global layer is as long as the longest sequence
    before = torch.arange(max(0, start - window + 1), start, device=k.device) % length
    keys, values = (torch.cat((old.index_select(1, before), new), 1) for old, new in zip(cached, (k, v), strict=True))
    last = min(m, length)
    rows = torch.arange(end - last, end, device=k.device) % length
    cached[0].index_copy_(1, rows, k[:, m - last :])
    cached[1].index_copy_(1, rows, v[:, m - last :])
    return attend_to_end(q, keys, values, window)


def attend_to_end(q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Return the causal attention of `q` [heads, m, head_dim], the last m of the n positions of `keys`."""
    if q.device.type == "cuda" and q.dtype != torch.float32 and (kernel := find_kernel()):
        m, n = q.shape[1], keys.shape[1]
        ends = [torch.tensor([0, length], dtype=torch.int32, device=q.device) for length in (m, n)]
        packed = (t.transpose(0, 1) for t in (q, keys, values))
        reach = (-1 if window is None else window - 1, 0)
        out: Tensor = kernel(*packed, *ends, m, n, window_size=reach)
        return out.transpose(0, 1)
    return causal_attention(q[None], keys[None], values[None], window)[0]


def decode_mask(positions: Tensor, span: int, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return the mask to add to the scores of one query per sequence, [n, span].

    Args:
        positions: Position of each query, [n].
        span: Number of cache places to attend to, from the first.
        length: Length of the layer's ring. Place j holds the latest position p with p % length = j.
        window: Window of the layer; None for a global layer.
        dtype: Type of the scores.
    """
    age = (positions[:, None] - torch.arange(span, device=positions.device)) % length
    reach = positions if window is None else positions.clamp(max=window - 1)
    # Finite, so that a split without visible keys gives finite numbers, which then get weight 0.
    lowest = torch.finfo(dtype).min / 2
    return torch.zeros((), dtype=dtype, device=age.device).where(age <= reach[:, None], lowest)


def key_splits(blocks: int, span: int) -> int:
    """Return the number of splits of the keys that turns `blocks` thread blocks into `GPU_BLOCKS`.

    Each split has at least 64 keys.
    """
    return max(1, min(GPU_BLOCKS // blocks, span // 64))


def split_attention(q: Tensor, cached: Tensor, mask: Tensor, splits: int) -> Tensor:
    """Return the attention of one position per sequence, computed over splits of the keys in parallel.

    The outputs of the splits are weighted by their sums of exponentials.

    Args:
        q: Queries, [n x kv_heads, group, head_dim].
        cached: The slots of a layer, [2, n, kv_heads, length, head_dim].
        mask: Mask to add to the scores of the first `span` places, [n x kv_heads, 1, span].
        splits: Number of splits; fewer if it does not divide the keys.
    """
    _, group, size = q.shape
    span = mask.shape[-1]
    keys, values = cached[:, :, :, :span].flatten(1, 2).unbind()
    while span % (8 * splits) and splits > 1:  # CUDA kernels read masks in units of 16 bytes
        splits -= 1
    if splits == 1 and q.device.type == "cpu":
        return torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=size**-0.5).softmax(-1) @ values
    key_parts, value_parts = (torch.unflatten(t, 1, (splits, -1)).transpose(0, 1) for t in (keys, values))
    added = torch.unflatten(mask, 2, (splits, -1)).movedim(2, 0).expand(-1, -1, group, -1)
    queries = q.expand(splits, *q.shape)
    if q.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = kernel(queries, key_parts, value_parts, attn_mask=added)
    else:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        out, sums, *_ = kernel(queries, key_parts, value_parts, added, compute_log_sumexp=True)
    weights = sums[:, :, :group].softmax(0)[..., None]
    attended: Tensor = (out * weights).sum(0).to(q.dtype)
    return attended


def find_counting_kernel(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """Return PyTorch's `varlen_attn` if it can read only the filled places of each sequence, else None.

    It needs PyTorch 2.11 or later. With one query per sequence and several query heads for each key head, it splits the
    keys itself: see `seqlenq_ngroups_swapped` in `mha_varlen_fwd`,
    aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp.
    """
    if (
        device.type != "cuda"
        or dtype not in (torch.bfloat16, torch.float16)
        or config.num_attention_heads == config.num_key_value_heads
    ):
        return None
    if torch.cuda.get_device_capability(device) < (8, 0) or config.head_dim % 8 or config.head_dim > 256:
        return None
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        if {"seqused_k", "enable_gqa"} <= signature(varlen_attn).parameters.keys():
            return cast(Kernel, varlen_attn)  # it returns a pair only with `return_aux`
    return None


def counted_attention(q: Tensor, cached: Tensor, counts: Tensor, span: int, kernel: Kernel) -> Tensor:
    """Return the attention of one position a sequence to the first `counts` places, with `kernel`.

    Args:
        q: Queries, [n x kv_heads, group, head_dim].
        cached: The slots of a layer, [2, n, kv_heads, length, head_dim].
        counts: Number of filled places, int32 [n x kv_heads].
        span: Upper bound of `counts`.
        kernel: The function that `find_counting_kernel` returned.
    """
    length, size = cached.shape[3:]
    # To the kernel, each key head of a slot is a sequence.
    queries = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    keys, values = cached.reshape(2, -1, 1, size).unbind()
    return kernel(q, keys, values, queries, queries * length, 1, span, enable_gqa=True, seqused_k=counts)
