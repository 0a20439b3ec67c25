"""Boundaries of documents, and the first key that each query attends to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Consecutive documents that fill a packed row, or the rows of a batch with one document each."""

    offsets: Tensor
    """int32 [documents + 1] on the model's device, from 0 to the number of tokens. Equal offsets are empty
    documents."""
    lengths: list[int]
    """Lengths in tokens on the host, without empty documents."""
    packed: bool
    """Whether q, k and v hold all documents in one row; otherwise one row per document, all of one length."""

    @classmethod
    def from_offsets(cls, cu_seqlens: Tensor, tokens: int, device: torch.device) -> Documents:
        """Return the documents of a packed row of `tokens` tokens.

        Waits for the device unless `cu_seqlens` is on the host.

        Raises:
            ValueError: `cu_seqlens` does not rise from 0 to `tokens`.
        """
        values = cu_seqlens.tolist()
        lengths = [end - start for start, end in pairwise(values)]
        if not lengths or values[0] != 0 or values[-1] != tokens or min(lengths) < 0:
            raise ValueError(
                f"cu_seqlens must rise from 0 to the {tokens} tokens given, got {values[:4]}...{values[-1:]}"
            )
        offsets = cu_seqlens.to(device, torch.int32, non_blocking=True)
        return cls(offsets, [length for length in lengths if length], packed=True)

    @classmethod
    def from_rows(cls, rows: int, length: int, device: torch.device) -> Documents:
        """Return `rows` documents of `length` tokens, one per row."""
        offsets = torch.arange(rows + 1, dtype=torch.int32, device=device) * length
        return cls(offsets, [length] * rows, packed=False)

    def starts(self) -> Tensor:
        """Return the offset at which the document of each token begins, int32 [tokens].

        Does not wait for the device.
        """
        return self.offsets[:-1].repeat_interleave(self.offsets.diff(), output_size=sum(self.lengths))

    def first_keys(self, window: int | None) -> Tensor:
        """Return the first key that each token attends to, int32 [tokens]; the last key is the token itself.

        First keys never fall. With a `window`, a token attends to itself and at most the `window - 1` tokens before it.
        """
        starts = self.starts()
        if window is None:
            return starts
        positions = torch.arange(len(starts), dtype=torch.int32, device=starts.device)
        return starts.maximum(positions - (window - 1))


def to_row(x: Tensor) -> Tensor:
    """Concatenate rows [batch, heads, length, head_dim] to [1, heads, batch x length, head_dim]."""
    return x if len(x) == 1 else x.transpose(0, 1).flatten(1, 2)[None]


def from_row(x: Tensor, batch: int) -> Tensor:
    """Invert `to_row`."""
    return x if batch == 1 else torch.unflatten(x[0], 1, (batch, -1)).transpose(0, 1)
