"""Attention by FlashAttention's kernel for packed documents, which PyTorch ships since 2.9, with windows since 2.11.

Where the installed PyTorch lacks windows, the flash-attn package's kernel stands in, if that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature

import torch
from torch import Tensor

from .documents import Documents, from_row, to_row

# Takes q [tokens, heads, head_size], k and v of kv_heads, offsets, the longest document, and keys to the left (-1: all).
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


class Varlen:
    """Attention of all documents in one call of a kernel that reads their offsets. CUDA, bfloat16 or float16."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attention within `documents`, and within `window` tokens if given."""
        self.offsets = documents.offsets
        # The kernel starts blocks for documents of this length and leaves those that a document does not fill. A power
        # of two, so that code compiled for it serves many batches.
        self.longest = 1 << (max(documents.lengths, default=1) - 1).bit_length()
        self.left = -1 if window is None else window - 1  # keys before the query's own, where our windows count that

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Why it cannot run on `device` here, or None."""
        if device.type != "cuda":
            return f"its kernel is CUDA's, and the model is on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "FlashAttention needs a GPU of compute capability 8.0 or later"
        if kernel() is None:
            return f"PyTorch {torch.__version__} has no varlen_attn with windows, and flash-attn is not installed"
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Mask.attend`. Raises TypeError for types other than bfloat16 and float16."""
        if q.dtype not in (torch.bfloat16, torch.float16):
            raise TypeError(f"attention backend 'varlen' computes in bfloat16 or float16, got {q.dtype}")
        run = kernel()
        assert run is not None
        packed = (to_row(x)[0].transpose(0, 1) for x in (q, k, v))
        out = run(*packed, self.offsets, self.longest, self.left)
        return from_row(out.transpose(0, 1)[None], len(q))


@lru_cache
def kernel() -> Kernel | None:
    """PyTorch's kernel if it has windows, else that of the flash-attn package, else None."""
    return _from_torch() or _from_flash_attn()


def _from_torch() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not {"window_size", "enable_gqa"} <= signature(varlen_attn).parameters.keys():
        return None

    def run(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, left: int) -> Tensor:
        return varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=(left, 0), enable_gqa=True)

    return run


def _from_flash_attn() -> Kernel | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None

    def run(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, left: int) -> Tensor:
        return flash_attn_varlen_func(
            q, k, v, offsets, offsets, longest, longest, causal=True, window_size=(left, 0)
        )

    return run
