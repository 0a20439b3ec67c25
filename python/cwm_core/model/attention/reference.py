"""Compute attention from its formula with one dense mask. Tests compare the other backends with it."""

from __future__ import annotations

import torch
from torch import Tensor

from .documents import Documents, from_row, to_row


class Reference:
    """softmax(q kᵀ / √head_dim) v under a dense mask. Memory grows with the square of the number of tokens."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        """Attend within `documents`, and within `window` tokens if given."""
        first = documents.first_keys(window)
        keys = torch.arange(len(first), device=first.device)
        self.mask = (keys >= first[:, None]) & (keys <= keys[:, None])

    @staticmethod
    def unavailable(device: torch.device) -> str | None:
        """Return None: the backend runs on every device."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Implement `Mask.attend`."""
        batch, groups = len(q), q.shape[1] // k.shape[1]
        q, k, v = to_row(q), to_row(k).repeat_interleave(groups, 1), to_row(v).repeat_interleave(groups, 1)
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        return from_row(scores.masked_fill(~self.mask, float("-inf")).softmax(-1) @ v, batch)
