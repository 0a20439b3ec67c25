"""Causal attention within documents, global or within a window; its cost follows what the mask leaves, not the packing.

Four backends compute the same (`docs/concepts/model.md`). A backend is a class whose objects are masks:
made once for a forward pass and a window, from the documents' offsets, and handed to all layers of that window.

- "sdpa" runs everywhere, a call or more for each document; the default but on CUDA.
- "flex" is FlexAttention over the blocks that the mask leaves; the default on CUDA.
- "varlen" is FlashAttention's kernel for packed documents; CUDA, bfloat16 or float16.
- "reference" is the formula with a dense mask, for tests.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .documents import Documents
from .flex import Flex
from .reference import Reference
from .sdpa import Sdpa
from .varlen import Varlen


class Mask(Protocol):
    """Which keys each query of a forward pass looks at, in the form that a backend wants."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attention within `documents`; with a `window`, to the token itself and the `window - 1` tokens before it."""
        ...

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Why the backend cannot run on `device`, or None."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of `q` [batch, heads, length, head_dim] to `k`, `v` [batch, kv_heads, length, head_dim].

        All of one type; batch 1 where documents are packed. Returns the shape and type of `q`.
        """
        ...


BACKENDS: dict[str, type[Mask]] = {"reference": Reference, "sdpa": Sdpa, "flex": Flex, "varlen": Varlen}


def choose_backend(name: str | None, device: torch.device) -> type[Mask]:
    """The backend of that name, or the default of `device`.

    Raises ValueError for a name that does not exist, RuntimeError with the reason for a backend that cannot run.
    """
    name = name or ("flex" if device.type == "cuda" else "sdpa")
    if name not in BACKENDS:
        raise ValueError(f"no attention backend {name!r}; there are {', '.join(BACKENDS)}")
    if reason := BACKENDS[name].unavailable(device):
        raise RuntimeError(f"attention backend {name!r} cannot run: {reason}")
    return BACKENDS[name]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Causal attention of `q` [batch, heads, n, head_dim] to `k`, `v` [batch, kv_heads, n, head_dim].

    `cu_seqlens` [documents + 1] holds the offsets, from 0 to n, of documents that do not see each other, for a batch
    of 1; without it each row is one document. With a `window`, a token attends to itself and the `window - 1` tokens
    before it. Returns [batch, heads, n, head_dim]. Raises as `choose_backend`, and ValueError when `cu_seqlens` does
    not cover the tokens.
    """
    batch, _, n, _ = q.shape
    if cu_seqlens is None:
        documents = Documents.from_rows(batch, n, q.device)
    else:
        documents = Documents.from_offsets(cu_seqlens, batch * n, q.device)
    return choose_backend(backend, q.device)(documents, window).attend(q, k, v)
