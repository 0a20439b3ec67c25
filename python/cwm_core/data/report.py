"""Report what shards hold and how their documents pack into rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..support.files import StrPath
from .loader import PackedLoader
from .shards import Document, Shards

if TYPE_CHECKING:
    from cwm_core.tokenizer import Tokenizer

_BAR_WIDTH = 40
_SAMPLE_CHARS = 600
# Documents to read for the fraction of tokens in the loss.
_SAMPLED_DOCUMENTS = 1000
_STEPS_AT_A_TIME = 1000


@dataclass(frozen=True)
class SourceSummary:
    """Size of one source in a folder of shards."""

    tokens: int
    """Number of tokens."""
    documents: int
    """Number of documents."""
    share: float
    """Fraction of the folder's tokens, from 0 to 1."""


@dataclass(frozen=True)
class ShardSummary:
    """Contents of a folder of shards."""

    tokens: int
    """Number of tokens."""
    documents: int
    """Number of documents."""
    vocab_size: int | None
    """Number of ids in the vocabulary, or None if it is not known."""
    mean_length: float
    """Mean number of tokens in a document."""
    median_length: float
    """Median number of tokens in a document."""
    max_length: int
    """Number of tokens in the longest document."""
    sources: dict[str, SourceSummary]
    """Sources by tag."""


def describe(folder: StrPath) -> ShardSummary:
    """Summarize a folder of shards.

    Raises:
        ValueError, OSError: As `Shards`.
    """
    shards = Shards(folder)
    lengths, source_ids = shards.lengths, shards.source_ids
    tokens = np.bincount(source_ids, weights=lengths, minlength=len(shards.sources))
    documents = np.bincount(source_ids, minlength=len(shards.sources))
    return ShardSummary(
        tokens=shards.tokens,
        documents=len(shards),
        vocab_size=shards.vocab_size,
        mean_length=float(lengths.mean()),
        median_length=float(np.median(lengths)),
        max_length=int(lengths.max()),
        sources={
            name: SourceSummary(tokens=int(count), documents=int(number), share=float(count / shards.tokens))
            for name, count, number in zip(shards.sources, tokens, documents, strict=True)
        },
    )


def inspect(folder: StrPath, tokenizer: Tokenizer | None = None, samples: int = 3, seed: int = 0) -> Iterator[str]:
    """Yield the lines of a report on a folder of shards: sizes, sources, lengths, and decoded sample documents.

    Args:
        folder: The folder.
        tokenizer: Vocabulary to decode documents with. Without it, no documents are shown.
        samples: Number of documents to show.
        seed: Seed of the choice of documents to show, and to read for the fraction of tokens in the loss.

    Raises:
        ValueError, OSError: As `Shards`.
    """
    shards, summary = Shards(folder), describe(folder)
    lengths = shards.lengths
    yield from _size_lines({str(folder): summary}, lengths)
    chosen = random.Random(seed).sample(range(len(shards)), min(len(shards), _SAMPLED_DOCUMENTS))
    yield from _loss_lines([shards[number] for number in chosen])
    yield from _histogram_lines(lengths)
    for number in chosen[: samples if tokenizer else 0]:
        document = shards[number]
        text = tokenizer.decode(document.tokens) if tokenizer else ""
        more = f" ... ({len(text) - _SAMPLE_CHARS:,} characters more)" if len(text) > _SAMPLE_CHARS else ""
        yield f"\n--- document {number:,}, {len(document.tokens):,} tokens, source {document.source!r}"
        yield text[:_SAMPLE_CHARS] + more


@dataclass(frozen=True)
class PackingSummary:
    """Rows that one epoch of folders of shards packs into."""

    shards: dict[str, ShardSummary]
    """Contents by folder."""
    rows: int
    """Number of rows."""
    steps: int
    """Number of steps."""
    longer_documents: int
    """Number of documents that are longer than a row."""
    efficiency: float
    """Fraction of all positions that hold a token."""


def summarize_packing(
    folders: Sequence[str],
    seq_len: int,
    *,
    batch_size: int = 1,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> PackingSummary:
    """Compute how one epoch packs into rows, from the lengths of the documents alone.

    Args:
        folders: Folders of shards.
        seq_len: Tokens in a row.
        batch_size: Rows in a step.
        progress: Called with the number of steps planned so far.
        **options: Further options of `PackedLoader`.
    """
    summaries = {folder: describe(folder) for folder in folders}
    sources = {folder: (folder, float(summary.tokens)) for folder, summary in summaries.items()}
    loader = PackedLoader(sources, seq_len, batch_size=batch_size, epochs=1, **options)
    while loader.skip(_STEPS_AT_A_TIME) == _STEPS_AT_A_TIME:
        if progress:
            progress(loader.stats().steps)
    stats = loader.stats()
    return PackingSummary(
        shards=summaries,
        rows=stats.steps * batch_size,
        steps=stats.steps,
        longer_documents=sum(int((Shards(folder).lengths > seq_len).sum()) for folder in folders),
        efficiency=stats.efficiency,
    )


def packing(folders: Sequence[str], seq_len: int, **options: Any) -> Iterator[str]:
    """Yield the lines of a report on how one epoch packs into rows. Takes the arguments of `summarize_packing`."""
    summary = summarize_packing(folders, seq_len, **options)
    lengths = np.concatenate([Shards(folder).lengths for folder in folders])
    yield from _size_lines(summary.shards, lengths)
    yield from _histogram_lines(lengths)
    longer = summary.longer_documents
    yield f"\nrows        {summary.rows:,} of {seq_len:,} tokens, in {summary.steps:,} steps"
    yield f"longer      {longer:,} documents ({longer / len(lengths):.1%}) are longer than a row"
    yield f"efficiency  {summary.efficiency:.3%} of all positions hold a token"


class HistogramBin(NamedTuple):
    """Documents with a number of tokens in a range."""

    low: int
    """Fewest tokens of a document."""
    high: int
    """Most tokens of a document."""
    documents: int
    """Number of documents."""
    tokens: int
    """Number of tokens in these documents."""


def histogram(lengths: NDArray[np.integer]) -> list[HistogramBin]:
    """Count documents by length, in bins that end at powers of two, from the shortest document's to the longest's."""
    powers = np.ceil(np.log2(lengths)).astype(int)  # exact: lengths are far below 2**53
    documents, tokens = np.bincount(powers), np.bincount(powers, weights=lengths)
    bins = range(int(powers.min()), len(documents))
    return [HistogramBin(2**p // 2 + 1, 2**p, int(documents[p]), int(tokens[p])) for p in bins]


def _size_lines(summaries: dict[str, ShardSummary], lengths: NDArray[np.integer]) -> Iterator[str]:
    total = sum(summary.tokens for summary in summaries.values())
    sizes = {summary.vocab_size for summary in summaries.values()}
    vocabularies = ", ".join(sorted("unknown" if size is None else f"{size:,}" for size in sizes))
    yield f"documents   {len(lengths):,}"
    yield f"tokens      {total:,}"
    middle = f"median {np.median(lengths):,.0f}, mean {lengths.mean():,.0f}, longest {lengths.max():,}"
    yield f"lengths     {middle} tokens"
    yield f"vocabulary  {vocabularies}"
    yield "\nsource                            documents         tokens   share"
    for folder, summary in summaries.items():
        for name, source in summary.sources.items():
            label = f"{folder}: {name}" if name else folder
            yield f"{label:<30} {source.documents:>12,} {source.tokens:>14,} {source.tokens / total:>7.1%}"


def _loss_lines(documents: Sequence[Document]) -> Iterator[str]:
    """Yield the fractions of the tokens that are in the loss, and in spans of each label."""
    total = sum(len(document.tokens) for document in documents)
    in_loss = sum(int(document.loss_mask.sum()) for document in documents)
    counts: Counter[str] = Counter()
    for document in documents:
        for label, ranges in document.spans.items():
            inside = np.zeros(len(document.tokens), dtype=bool)
            for start, end in ranges:
                inside[start:end] = True
            counts[label] += int(inside.sum())
    yield f"\nfraction of the tokens (in {len(documents):,} documents)"
    yield f"{'in the loss':<30} {in_loss / total:>7.1%}"
    for label, count in counts.items():
        yield f"{'in spans: ' + label:<30} {count / total:>7.1%}"


def _histogram_lines(lengths: NDArray[np.integer]) -> Iterator[str]:
    yield "\nlength in tokens        documents         tokens"
    for low, high, documents, tokens in histogram(lengths):
        bar = "#" * round(_BAR_WIDTH * documents / len(lengths))
        yield f"{low:>8,} - {high:>9,} {documents:>12,} {tokens:>14,} {bar}".rstrip()
