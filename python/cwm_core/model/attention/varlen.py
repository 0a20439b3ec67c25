"""Attention by FlashAttention's kernel for packed documents, from PyTorch or the flash-attn package.

PyTorch has the kernel since 2.9, at first without windows. If the installed PyTorch lacks windows, the kernel of the
flash-attn package is used, if it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .documents import Documents, from_row, to_row


class Varlen:
    """Attention of all documents in one call of a kernel that reads their offsets; CUDA, bfloat16 or float16."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attend within `documents`, and within `window` tokens if given."""
        self.kernel = find_kernel()
        self.offsets = documents.offsets
        # The kernel launches blocks for documents of this length and exits those that a document does not fill. A power
        # of two, so that compiled code serves many batches.
        self.longest = 1 << (max(documents.lengths, default=1) - 1).bit_length()
        self.window = (-1 if window is None else window - 1, 0)  # the kernel's windows do not count the query's own key

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the backend cannot run on `device`, or None if it can."""
        if device.type != "cuda":
            return f"its kernel is CUDA's, and the model is on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "FlashAttention needs a GPU of compute capability 8.0 or later"
        if find_kernel() is None:
            return f"PyTorch {torch.__version__} has no varlen_attn with windows, and flash-attn is not installed"
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Implement `Mask.attend`.

        Raises:
            TypeError: The dtype is neither bfloat16 nor float16.
        """
        if q.dtype not in (torch.bfloat16, torch.float16):
            raise TypeError(f"attention backend 'varlen' computes in bfloat16 or float16, got {q.dtype}")
        assert self.kernel is not None  # otherwise the backend is unavailable
        packed = (to_row(x)[0].transpose(0, 1) for x in (q, k, v))
        out = self.kernel(*packed, self.offsets, self.offsets, self.longest, self.longest, window_size=self.window)
        return from_row(out.transpose(0, 1)[None], len(q))


@lru_cache
def find_kernel() -> Callable[..., Any] | None:
    """Return PyTorch's kernel if it has windows, else that of the flash-attn package, else None.

    Both take q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], the offsets and the longest document
    for queries and for keys, and `window_size`: the number of keys before and after the query's own key, -1 for all.
    """
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        if {"window_size", "enable_gqa"} <= signature(varlen_attn).parameters.keys():
            return partial(varlen_attn, enable_gqa=True)
    with suppress(ImportError):
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]  # optional

        return partial(flash_attn_varlen_func, causal=True)
    return None
