"""Attention of new tokens to a cache: of a piece of a prompt, and of one token of each of many sequences."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from inspect import signature

import torch
from torch import Tensor

from ..model import ModelConfig
from ..model.attention.sdpa import causal_attention
from ..model.attention.varlen import find_kernel

# Thread blocks that fill a large GPU twice over: attention of few sequences is cut along the keys until there are so
# many (flash-decoding, https://pytorch.org/blog/flash-decoding).
GPU_BLOCKS = 256


def append_and_attend(cached: Tensor, start: int, qkv: tuple[Tensor, Tensor, Tensor], window: int | None) -> Tensor:
    """Attention [heads, m, head_dim] of a piece of a sequence that begins at position `start`, to all up to its end.

    `qkv` are queries [heads, m, head_dim], and keys and values [kv_heads, m, head_dim], which go into `cached` [2,
    kv_heads, length, head_dim], the sequence's slot in a layer.
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
    """Causal attention of `q` [heads, m, head_dim], the last m of the n positions of `keys` and `values`."""
    if q.device.type == "cuda" and q.dtype != torch.float32 and (kernel := find_kernel()):
        m, n = q.shape[1], keys.shape[1]
        ends = [torch.tensor([0, length], dtype=torch.int32, device=q.device) for length in (m, n)]
        packed = (t.transpose(0, 1) for t in (q, keys, values))
        reach = (-1 if window is None else window - 1, 0)
        return kernel(*packed, *ends, m, n, window_size=reach).transpose(0, 1)
    return causal_attention(q[None], keys[None], values[None], window)[0]


def decode_mask(positions: Tensor, span: int, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [n, span], of the queries at `positions` [n] against the first places of a layer.

    In a ring of `length`, the latest position p at place j is the one with p % length = j.
    """
    age = (positions[:, None] - torch.arange(span, device=positions.device)) % length
    reach = positions if window is None else positions.clamp(max=window - 1)
    # Finite, so that a split of which a query sees nothing gives finite numbers, and then weight 0.
    lowest = torch.finfo(dtype).min / 2
    return torch.zeros((), dtype=dtype, device=age.device).where(age <= reach[:, None], lowest)


def key_splits(blocks: int, span: int) -> int:
    """Into how many parts to cut keys for `blocks` thread blocks to become `GPU_BLOCKS`, none under 64 keys."""
    return max(1, min(GPU_BLOCKS // blocks, span // 64))


def split_attention(q: Tensor, cached: Tensor, mask: Tensor, splits: int) -> Tensor:
    """Attention of `q` [n x kv_heads, group, head_dim], one position each, to `cached`, n slots of a layer.

    [2, n, kv_heads, length, head_dim]; `mask` [n x kv_heads, 1, span] is added to the scores of the first places. Keys
    are cut into `splits` parts, or fewer where they do not divide, which are attended to side by side; each part's
    output counts by its sum of exponentials.
    """
    _, group, size = q.shape
    span = mask.shape[-1]
    keys, values = cached[:, :, :, :span].flatten(1, 2).unbind()
    while span % (8 * splits) and splits > 1:  # CUDA's kernels read masks in units of 16 bytes
        splits -= 1
    if splits == 1 and q.device.type == "cpu":
        return torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=size**-0.5).softmax(-1) @ values
    key_parts, value_parts = (t.unflatten(1, (splits, -1)).transpose(0, 1) for t in (keys, values))
    added = mask.unflatten(2, (splits, -1)).movedim(2, 0).expand(-1, -1, group, -1)
    queries = q.expand(splits, *q.shape)
    if q.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = kernel(queries, key_parts, value_parts, attn_mask=added)
    else:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        out, sums, *_ = kernel(queries, key_parts, value_parts, added, compute_log_sumexp=True)
    weights = sums[:, :, :group].softmax(0)[..., None]
    return (out * weights).sum(0).to(q.dtype)


def find_counting_kernel(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """PyTorch's `varlen_attn`, since 2.11, where it reads of each sequence's keys only those there are, else None.

    Of one query a sequence, and several heads to one of keys, it cuts keys into parts itself (`mha_varlen_fwd` in
    aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, where `seqlenq_ngroups_swapped`).
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
            return varlen_attn
    return None


def counted_attention(q: Tensor, cached: Tensor, counts: Tensor, span: int, kernel: Callable[..., Tensor]) -> Tensor:
    """As `split_attention`, to the first `counts` places, int32 [n x kv_heads], none more than `span`, by `kernel`."""
    length, size = cached.shape[3:]
    queries = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)  # a head of a slot's keys is a sequence
    keys, values = cached.reshape(2, -1, 1, size).unbind()
    return kernel(q, keys, values, queries, queries * length, 1, span, enable_gqa=True, seqused_k=counts)
