"""Checks of a run's data before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data import Document, Shards

if TYPE_CHECKING:
    from .run import DataConfig

# Share of tokens with loss below which a corpus deserves a warning.
_LITTLE_LOSS = 0.1

# Documents read per source to estimate the share of tokens with loss.
_SAMPLED = 200


def corpus_warnings(data: DataConfig) -> list[str]:
    """Return warnings about documents that are longer than rows, and about sources with few loss tokens.

    Lengths are counted over all documents. The share of loss tokens is estimated from up to 200 documents per source,
    spread evenly.
    """
    warnings = []
    for name, (folder, *_) in data.sources.items():
        shards = Shards(folder)
        lengths = shards.lengths
        # A row holds its tokens and the target of the last one.
        cut = lengths > _row_lengths(data, lengths) + 1
        if cut.any():
            share = lengths[cut].sum() / lengths.sum()
            warnings.append(
                f"source {name!r}: {int(cut.sum()):,} of {len(lengths):,} documents ({share:.0%} of its tokens) are "
                "longer "
                f"than their rows, up to {int(lengths.max()):,} tokens, and are cut: raise seq_len, or add a bucket"
            )
        share = _loss_share(shards, data.mask)
        if share < _LITTLE_LOSS:
            warnings.append(
                f"source {name!r}: only {share:.1%} of its tokens carry loss: check the loss masks of its documents "
                "and the table [data.mask]"
            )
    return warnings


def _row_lengths(data: DataConfig, lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the length of the rows that documents of these `lengths` go to."""
    rows = np.full(len(lengths), data.seq_len, np.int64)
    for bucket in reversed(data.buckets or []):
        chosen = slice(None) if bucket.max_length is None else lengths <= bucket.max_length
        rows[chosen] = bucket.seq_len or data.seq_len
    return rows


def _loss_share(shards: Shards, mask: dict[str, float]) -> float:
    """Estimate the share of tokens that carry loss under `mask`, which drops shares of labeled spans."""
    tokens = loss = 0.0
    for number in np.unique(np.linspace(0, len(shards) - 1, _SAMPLED).astype(int)).tolist():
        document = shards[number]
        tokens += len(document.tokens)
        loss += _loss_tokens(document, mask)
    return loss / tokens


def _loss_tokens(document: Document, mask: dict[str, float]) -> float:
    kept = document.loss_mask.astype(float)
    for label, share in mask.items():
        for start, end in document.spans.get(label, ()):
            kept[start:end] *= 1 - share
    return float(kept.sum())
