"""What shards hold and how they pack, as figures and as text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .loader import PackedLoader
from .shards import Document, Path, Shards

if TYPE_CHECKING:
    from cwm_core.tokenizer import Tokenizer

_BAR_WIDTH = 40
_SAMPLE_CHARS = 600
# So many documents are read to say which part of the tokens is learned.
_LOOKED_AT = 1000
_STEPS_AT_A_TIME = 1000


def describe(folder: Path) -> dict[str, Any]:
    """Return what a folder of shards holds; raises as ``Shards`` does.

    ``tokens``, ``documents``, ``vocab_size`` (None if it is not known); ``mean_length``, ``median_length``,
    ``max_length`` in tokens a document; ``sources``: by tag its ``tokens``, ``documents`` and ``share`` of all tokens.
    """
    shards = Shards(folder)
    lengths, source_ids = shards.lengths, shards.source_ids
    tokens = np.bincount(source_ids, weights=lengths, minlength=len(shards.sources))
    documents = np.bincount(source_ids, minlength=len(shards.sources))
    return {
        "tokens": shards.tokens,
        "documents": len(shards),
        "vocab_size": shards.vocab_size,
        "mean_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "max_length": int(lengths.max()),
        "sources": {
            name: {"tokens": int(count), "documents": int(number), "share": float(count / shards.tokens)}
            for name, count, number in zip(shards.sources, tokens, documents, strict=True)
        },
    }


def inspect(folder: Path, tokenizer: Tokenizer | None = None, samples: int = 3, seed: int = 0) -> Iterator[str]:
    """Give the lines of a report on a folder of shards: figures, sources, lengths, and ``samples`` decoded documents.

    Which documents are shown, and which are read to say what part of the tokens is learned, ``seed`` decides. Without
    a tokenizer no document is shown. Raises as ``Shards`` does.
    """
    shards, figures = Shards(folder), describe(folder)
    lengths = shards.lengths
    yield from _figures({str(folder): figures}, lengths)
    chosen = random.Random(seed).sample(range(len(shards)), min(len(shards), _LOOKED_AT))
    yield from _parts([shards[number] for number in chosen])
    yield from _histogram_lines(lengths)
    for number in chosen[: samples if tokenizer else 0]:
        document = shards[number]
        text = tokenizer.decode(document.tokens) if tokenizer else ""
        more = f" ... ({len(text) - _SAMPLE_CHARS:,} characters more)" if len(text) > _SAMPLE_CHARS else ""
        yield f"\n--- document {number:,}, {len(document.tokens):,} tokens, source {document.source!r}"
        yield text[:_SAMPLE_CHARS] + more


def packing(
    folders: Sequence[str],
    seq_len: int,
    *,
    batch_size: int = 1,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Iterator[str]:
    """Give the lines of a report on how one epoch of folders of shards packs, from document lengths alone.

    ``options`` are those of ``PackedLoader``. ``progress`` is called with the steps planned so far.
    """
    figures = packing_figures(folders, seq_len, batch_size=batch_size, progress=progress, **options)
    lengths = np.concatenate([Shards(folder).lengths for folder in folders])
    yield from _figures(figures["shards"], lengths)
    yield from _histogram_lines(lengths)
    longer = figures["longer_documents"]
    yield f"\nrows        {figures['rows']:,} of {seq_len:,} tokens, in {figures['steps']:,} steps"
    yield f"longer      {longer:,} documents ({longer / len(lengths):.1%}) are longer than a row"
    yield f"efficiency  {figures['efficiency']:.3%} of all positions hold a token"


def packing_figures(
    folders: Sequence[str],
    seq_len: int,
    *,
    batch_size: int = 1,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return how one epoch of folders of shards packs: `shards` by folder, `rows`, `steps`, `efficiency`, and so on.

    Takes the arguments of `packing`.
    """
    figures = {folder: describe(folder) for folder in folders}
    sources = {folder: (folder, one["tokens"]) for folder, one in figures.items()}
    loader = PackedLoader(sources, seq_len, batch_size=batch_size, epochs=1, **options)
    while loader.skip(_STEPS_AT_A_TIME) == _STEPS_AT_A_TIME:
        if progress:
            progress(loader.stats()["steps"])
    stats = loader.stats()
    return {
        "shards": figures,
        "rows": stats["steps"] * batch_size,
        "steps": stats["steps"],
        "longer_documents": sum(int((Shards(folder).lengths > seq_len).sum()) for folder in folders),
        "efficiency": stats["efficiency"],
    }


def histogram(lengths: NDArray[np.integer]) -> list[tuple[int, int, int, int]]:
    """(least length, greatest length, documents, tokens) in bins that end at powers of two, from first to last."""
    powers = np.ceil(np.log2(lengths)).astype(int)  # exact: lengths are far below 2**53
    documents, tokens = np.bincount(powers), np.bincount(powers, weights=lengths)
    bins = range(int(powers.min()), len(documents))
    return [(2**p // 2 + 1, 2**p, int(documents[p]), int(tokens[p])) for p in bins]


def _figures(described: dict[str, dict[str, Any]], lengths: NDArray[np.integer]) -> Iterator[str]:
    total = sum(one["tokens"] for one in described.values())
    sizes = {one["vocab_size"] for one in described.values()}
    vocabularies = ", ".join(sorted("not named" if size is None else f"{size:,}" for size in sizes))
    yield f"documents   {len(lengths):,}"
    yield f"tokens      {total:,}"
    middle = f"median {np.median(lengths):,.0f}, mean {lengths.mean():,.0f}, longest {lengths.max():,}"
    yield f"a document  {middle} tokens"
    yield f"vocabulary  {vocabularies}"
    yield "\nsource                            documents         tokens   share"
    for folder, one in described.items():
        for name, part in one["sources"].items():
            label = f"{folder}: {name}" if name else folder
            yield f"{label:<30} {part['documents']:>12,} {part['tokens']:>14,} {part['tokens'] / total:>7.1%}"


def _parts(documents: Sequence[Document]) -> Iterator[str]:
    """Which part of the tokens is learned, and which lies in spans of each label."""
    total = sum(len(document.tokens) for document in documents)
    learned = sum(int(document.loss_mask.sum()) for document in documents)
    counts: Counter[str] = Counter()
    for document in documents:
        for label, ranges in document.spans.items():
            inside = np.zeros(len(document.tokens), dtype=bool)
            for start, end in ranges:
                inside[start:end] = True
            counts[label] += int(inside.sum())
    yield f"\npart of the tokens ({len(documents):,} documents looked at)"
    yield f"{'learned':<30} {learned / total:>7.1%}"
    for label, count in counts.items():
        yield f"{'in spans: ' + label:<30} {count / total:>7.1%}"


def _histogram_lines(lengths: NDArray[np.integer]) -> Iterator[str]:
    yield "\ntokens a document       documents         tokens"
    for low, high, documents, tokens in histogram(lengths):
        bar = "#" * round(_BAR_WIDTH * documents / len(lengths))
        yield f"{low:>8,} - {high:>9,} {documents:>12,} {tokens:>14,} {bar}".rstrip()
