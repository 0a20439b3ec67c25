"""Token shards on disk: ``ShardWriter`` and ``Shards``, described in ``docs/guides/pack.md``."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cwm_core import _native
from cwm_core.support.arguments import reject_single_string
from cwm_core.support.text import well_formed

Path = str | os.PathLike[str]


class HasVocabSize(Protocol):
    """What a shard needs to know of a tokenizer. One with a `fingerprint`, hexadecimal digits, is told from others."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""


class Document(NamedTuple):
    """One document of a shard.

    ``tokens``: int32 [n]. ``loss_mask``: bool [n], True where the token is to be learned. ``source``: the tag it was
    added with. ``spans``: by label, int64 [k, 2], first token and token after the last, by their starts.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    source: str
    spans: dict[str, NDArray[np.int64]]


class ShardWriter:
    """Writes documents into the shard files of a folder: ``00000.cwmtok``, ``00001.cwmtok``, ...

    A token takes 2 bytes if the vocabulary has at most 65,536 ids, else 4. A shard appears under its name when it is
    complete and on disk. Leaving the ``with`` block publishes the last one; leaving it by an exception, or never
    closing the writer, discards the shard under way and keeps those published.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int | HasVocabSize,
        *,
        shard_tokens: int = 100_000_000,
        append: bool = False,
    ) -> None:
        """Open ``folder`` for writing, created if need be.

        ``vocab_size``: the number of ids, or a tokenizer, whose fingerprint the shards then carry. ``shard_tokens``: a
        shard is closed before it would grow
        past this; only a single longer document does. ``append``: go on behind the shards that the folder holds, as
        after a writer that was killed; ``documents`` says how many they have.

        Raises FileExistsError if the folder already holds shards and ``append`` is false, BlockingIOError if another
        writer is at work in it, OSError if it cannot be written, ValueError for an impossible size, or shards that are
        damaged or of another vocabulary.
        """
        size = vocabulary_of(vocab_size)
        check_not_negative(shard_tokens=shard_tokens)
        path, fingerprint = os.path.abspath(folder), fingerprint_of(vocab_size)
        self._native = _native.ShardWriter(path, size, fingerprint, shard_tokens, append)

    @property
    def documents(self) -> int:
        """Documents in the folder, with those of the shard under way."""
        return self._native.documents

    @property
    def tokens(self) -> int:
        """Tokens in the folder, with those of the shard under way."""
        return self._native.tokens

    def add(
        self,
        ids: ArrayLike,
        loss_mask: ArrayLike | None = None,
        source: str = "",
        spans: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Add one document.

        ``ids``: int32, uint16, uint32 or int64 [n], n at least 1. ``loss_mask``: bool [n], True where the token is to
        be learned, that is, predicted from those before it; without it every token is. ``source``: a tag kept with
        the document; a lone surrogate in it becomes U+FFFD, as in a text. ``spans``: where something lies in it,
        by label: integers [k, 2], first token and token after the last; spans may overlap.

        Raises ValueError for an id outside the vocabulary, no ids, a mask of another length or a span that is empty or
        outside the document, and TypeError for another dtype; such a document changes nothing. After an OSError the
        writer is closed.
        """
        spans = [_labelled(*item) for item in (spans or {}).items()]
        self._native.add(np.asarray(ids), _mask(loss_mask), well_formed(source), spans)

    def add_many(
        self,
        ids: ArrayLike,
        offsets: ArrayLike,
        loss_mask: ArrayLike | None = None,
        sources: Sequence[str] = ("",),
        source_ids: ArrayLike | None = None,
    ) -> None:
        """Add documents that lie one after the other: much faster than one by one where they are short.

        ``ids``: as for ``add``, those of all documents. ``offsets``: integers [documents + 1], where each begins, and
        ``len(ids)``. ``loss_mask``: bool, one a token. ``source_ids``: integers [documents], place in ``sources`` of
        every document's tag; without them all have the first.

        Raises as ``add`` does, for the first document that it refuses: those before it are added, which ``documents``
        tells.
        """
        tags = None if source_ids is None else _integers(source_ids)
        names = [well_formed(source) for source in reject_single_string(sources, "sources")]
        self._native.add_many(np.asarray(ids), _integers(offsets), _mask(loss_mask), names, tags)

    def close(self) -> None:
        """Publish the shard under way and take no more documents. The second call does nothing."""
        self._native.close()

    def __enter__(self) -> ShardWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer, or after an exception discard the shard under way."""
        if kind is None:
            self._native.close()
        else:
            self._native.discard()


class Shards:
    """The documents of a folder of shards, in the order they were written; their index is memory-mapped.

    Opening checks the index of every shard, reading checks what is read: a damaged shard is a ValueError that names the
    file, never a wrong token.

    Reads Megatron's indexed datasets as well. Documents without tokens are passed over there and not counted; there
    are no loss masks, spans or source tags. Opening checks the whole index, reading that ids are in the vocabulary, if
    it is known; a changed id that is in it goes unnoticed, since these files have no checksums.
    """

    def __init__(self, path: Path, *, vocab_size: int | HasVocabSize | None = None) -> None:
        """Open a folder of shards, or a dataset of Megatron's by its prefix, its ``.idx`` or its ``.bin``.

        ``vocab_size``: the number of ids, or a tokenizer. Shards of another size, or made with another tokenizer as far
        as they name it, are refused; Megatron's files name
        none, so that without it any id below 2^31 is let pass.

        Raises OSError if the files cannot be read and ValueError if there are no shards, one is missing, damaged,
        truncated or of another version, or their vocabularies differ.
        """
        self._options = {
            # Another process may open it after a change of the working directory.
            "path": os.path.abspath(path),
            "vocab_size": None if vocab_size is None else vocabulary_of(vocab_size),
        }
        fingerprint = fingerprint_of(vocab_size)
        self._native = _native.Shards(self._options["path"], self._options["vocab_size"], fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle as the path, which another process opens for itself."""
        return self._options

    def __setstate__(self, options: dict[str, Any]) -> None:
        """Open the path."""
        self.__init__(**options)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._native)

    def __getitem__(self, index: int) -> Document:
        """Read a document; a negative index counts from the end. Raises IndexError, or ValueError if it is damaged."""
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        tokens, loss_mask, source, labelled = self._native.document(at % len(self))
        spans: dict[str, list[tuple[int, int]]] = {}
        for label, start, end in labelled:
            spans.setdefault(label, []).append((start, end))
        return Document(tokens, loss_mask, source, {label: np.array(ranges) for label, ranges in spans.items()})

    def __iter__(self) -> Iterator[Document]:
        """Read the documents in order."""
        return (self[index] for index in range(len(self)))

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self._native.tokens

    @property
    def vocab_size(self) -> int | None:
        """Number of ids in the vocabulary; every id is below it. None if it is not known."""
        return self._native.vocab_size

    @property
    def vocabulary_fingerprint(self) -> str | None:
        """`Tokenizer.fingerprint` of the tokenizer that made the documents. None if no shard names it."""
        return fingerprint_text(self._native.vocabulary_fingerprint)

    @property
    def sources(self) -> list[str]:
        """The source tags, each once, in order of first appearance."""
        return self._native.sources

    @property
    def labels(self) -> list[str]:
        """The labels of spans, each once, in order of first appearance."""
        return self._native.labels

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of every document: uint32 [documents]."""
        return self._native.lengths()[0]

    @property
    def source_ids(self) -> NDArray[np.uint32]:
        """Place in ``sources`` of every document's tag: uint32 [documents]."""
        return self._native.lengths()[1]

    def verify(self) -> None:
        """Check every byte of every shard. Raises ValueError that names the first damaged file."""
        self._native.verify()


def _labelled(label: str, ranges: ArrayLike) -> tuple[str, NDArray[np.int64]]:
    array = np.asarray(ranges)
    if array.size == 0:
        return well_formed(label), np.empty((0, 2), dtype=np.int64)
    if array.ndim != 2:
        raise ValueError(f"spans labelled {label!r} must have two dimensions, not {array.ndim}")
    return well_formed(label), array.astype(np.int64, casting="same_kind")


def _integers(values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    # An empty list arrives as float64.
    return array.astype(np.int64, casting="same_kind" if array.size else "unsafe")


def _mask(loss_mask: ArrayLike | None) -> NDArray[np.bool_] | None:
    if loss_mask is None:
        return None
    mask = np.asarray(loss_mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"loss_mask must be bool, not {mask.dtype}")
    if mask.ndim != 1:
        raise ValueError(f"loss_mask must have one dimension, not {mask.ndim}")
    return mask


def vocabulary_of(vocab_size: int | HasVocabSize) -> int:
    """Return the number of ids that is given, or that of a tokenizer; raises ValueError for a negative one."""
    size = operator.index(getattr(vocab_size, "vocab_size", vocab_size))
    check_not_negative(vocab_size=size)
    return size


def fingerprint_of(vocabulary: int | HasVocabSize | None) -> int | None:
    """Return a tokenizer's fingerprint as a number; None for a size, or a tokenizer without a fingerprint."""
    text = getattr(vocabulary, "fingerprint", None)
    return None if text is None else int(text, 16)


def fingerprint_text(fingerprint: int | None) -> str | None:
    """Return a fingerprint as `Tokenizer.fingerprint` writes it."""
    return None if fingerprint is None else f"{fingerprint:016x}"


def check_not_negative(**values: int) -> None:
    """Raise ValueError for an argument below 0, which the native half would call too large."""
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative: {value}")
