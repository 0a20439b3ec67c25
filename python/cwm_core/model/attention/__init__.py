"""Causal attention within documents, global or within a window.

Four backends compute the same result (`docs/concepts/model.md`). Work follows the mask, not the packing. A backend is a
class; its objects are masks, made once per forward pass and window from the offsets of the documents, and shared by all
layers with that window.

- "sdpa" runs everywhere, with at least one call per document. Default except on CUDA.
- "flex" is FlexAttention over the blocks that the mask leaves. Default on CUDA.
- "varlen" is FlashAttention's kernel for packed documents. Needs CUDA and bfloat16 or float16.
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
    """Keys that each query of a forward pass attends to, in the form of one backend."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attend within `documents`; with a `window`, to the token itself and the `window - 1` tokens before it."""
        ...

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return why the backend cannot run on `device`, or None if it can."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of `q` to `k` and `v`, in the shape and dtype of `q`.

        Args:
            q: Queries, [batch, heads, length, head_dim]; batch is 1 for packed documents.
            k: Keys, [batch, kv_heads, length, head_dim], in the dtype of `q`.
            v: Values, like `k`.
        """
        ...


BACKENDS: dict[str, type[Mask]] = {"reference": Reference, "sdpa": Sdpa, "flex": Flex, "varlen": Varlen}
"""Attention backends by name."""


def choose_backend(name: str | None, device: torch.device) -> type[Mask]:
    """Return the backend `name`, or the default backend of `device` if `name` is None.

    Raises:
        ValueError: The backend does not exist.
        RuntimeError: The backend cannot run on `device`; the message says why.
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
    """Return causal attention, [batch, heads, n, head_dim].

    Args:
        q: Queries, [batch, heads, n, head_dim].
        k: Keys, [batch, kv_heads, n, head_dim].
        v: Values, [batch, kv_heads, n, head_dim].
        cu_seqlens: Offsets of documents that do not see each other, integers [documents + 1] from 0 to n, for a batch
            of 1;
            None: each row is one document.
        window: Number of tokens that a token attends to, itself included; None: all tokens before it.
        backend: Key of `BACKENDS`. Defaults to that of the device.

    Raises:
        ValueError: The backend does not exist, or `cu_seqlens` does not cover the tokens.
        RuntimeError: The backend cannot run on this device.
    """
    batch, _, n, _ = q.shape
    if cu_seqlens is None:
        documents = Documents.from_rows(batch, n, q.device)
    else:
        documents = Documents.from_offsets(cu_seqlens, batch * n, q.device)
    return choose_backend(backend, q.device)(documents, window).attend(q, k, v)
