"""Attention by FlashAttention's kernel for packed documents, which PyTorch ships since 2.9, at first without windows.

Where the installed PyTorch lacks windows, the flash-attn package's kernel stands in, if that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from inspect import signature

import torch
from torch import Tensor

from .documents import Documents, from_row, to_row


class Varlen:
    """Attention of all documents in one call of a kernel that reads their offsets. CUDA, bfloat16 or float16."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attention within `documents`, and within `window` tokens if given."""
        self.kernel = find_kernel()
        self.offsets = documents.offsets
        # The kernel starts blocks for documents of this length and leaves those that a document does not fill. A power
        # of two, so that code compiled for it serves many batches.
        self.longest = 1 << (max(documents.lengths, default=1) - 1).bit_length()
        self.window = (-1 if window is None else window - 1, 0)  # our windows count the query's own key, theirs do not

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Why it cannot run on `device` here, or None."""
        if device.type != "cuda":
            return f"its kernel is CUDA's, and the model is on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "FlashAttention needs a GPU of compute capability 8.0 or later"
        if find_kernel() is None:
            return f"PyTorch {torch.__version__} has no varlen_attn with windows, and flash-attn is not installed"
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Mask.attend`. Raises TypeError for types other than bfloat16 and float16."""
        if q.dtype not in (torch.bfloat16, torch.float16):
            raise TypeError(f"attention backend 'varlen' computes in bfloat16 or float16, got {q.dtype}")
        assert self.kernel is not None  # where it is, the backend is unavailable
        packed = (to_row(x)[0].transpose(0, 1) for x in (q, k, v))
        out = self.kernel(*packed, self.offsets, self.offsets, self.longest, self.longest, window_size=self.window)
        return from_row(out.transpose(0, 1)[None], len(q))


@lru_cache
def find_kernel() -> Callable[..., Tensor] | None:
    """PyTorch's kernel if it has windows, else that of the flash-attn package, else None.

    Both take q [tokens, heads, head_dim], k and v of kv_heads, then offsets and longest document, each for queries and
    for keys, and `window_size`: how many keys before and after the query's own it looks at, -1 for all.
    """
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        if {"window_size", "enable_gqa"} <= signature(varlen_attn).parameters.keys():
            return partial(varlen_attn, enable_gqa=True)
    with suppress(ImportError):
        from flash_attn import flash_attn_varlen_func

        return partial(flash_attn_varlen_func, causal=True)
    return None
