"""Write and read token shards. `docs/guides/pack.md` describes them."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cwm_core import _native
from cwm_core.support.arguments import reject_single_string
from cwm_core.support.files import StrPath
from cwm_core.support.text import well_formed


class HasVocabSize(Protocol):
    """A tokenizer, as far as shards need it. Its `fingerprint`, if it has one, identifies the vocabulary."""

    @property
    def vocab_size(self) -> int:
        """Number of ids. Every id is below it."""


class Document(NamedTuple):
    """A document of a shard."""

    tokens: NDArray[np.int32]
    """int32 [n]. Token ids."""
    loss_mask: NDArray[np.bool_]
    """bool [n]. True where the token is in the loss."""
    source: str
    """Source tag that the document was added with."""
    spans: dict[str, NDArray[np.int64]]
    """int64 [k, 2] by label. First token of every span, and the token after its last, sorted by the first."""


class ShardWriter:
    """Writes documents to the shard files of a folder: `00000.cwmtok`, `00001.cwmtok`, and so on.

    A token takes 2 bytes if the vocabulary has at most 65,536 ids, else 4. A shard gets its name when it is complete
    and on disk. Leaving the `with` block publishes the last shard. Leaving it by an exception, or never closing the
    writer, discards the unfinished shard and keeps the published ones.
    """

    def __init__(
        self,
        folder: StrPath,
        vocab_size: int | HasVocabSize,
        *,
        shard_tokens: int = 100_000_000,
        append: bool = False,
    ) -> None:
        """Open a folder for writing, and create it if needed.

        Args:
            folder: The folder.
            vocab_size: Number of ids, or a tokenizer, whose fingerprint the shards then carry.
            shard_tokens: Size at which a shard is closed. Only a single longer document exceeds it.
            append: Append to the shards in the folder, for example after the writer was killed. `documents` then counts
                those too.

        Raises:
            FileExistsError: The folder holds shards, and `append` is False.
            BlockingIOError: Another writer is using the folder.
            OSError: The folder cannot be written.
            ValueError: A size is out of range, or the shards in the folder are damaged or have another vocabulary.
        """
        size = vocabulary_of(vocab_size)
        check_not_negative(shard_tokens=shard_tokens)
        path, fingerprint = os.path.abspath(folder), fingerprint_of(vocab_size)
        self._native = _native.ShardWriter(path, size, fingerprint, shard_tokens, append)

    @property
    def documents(self) -> int:
        """Number of documents in the folder, including the unfinished shard."""
        return self._native.documents

    @property
    def tokens(self) -> int:
        """Number of tokens in the folder, including the unfinished shard."""
        return self._native.tokens

    def add(
        self,
        ids: ArrayLike,
        loss_mask: ArrayLike | None = None,
        source: str = "",
        spans: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Add a document.

        Args:
            ids: int32, uint16, uint32, or int64 [n], n at least 1. Token ids.
            loss_mask: bool [n]. True where the token is in the loss, that is, predicted from the tokens before it. By
                default, every token is.
            source: Tag stored with the document. A lone surrogate becomes U+FFFD, as in a text.
            spans: Integers [k, 2] by label. First token of every span, and the token after its last. Spans may overlap.

        Raises:
            ValueError: There are no ids, an id is outside the vocabulary, the mask has another length, or a span is
                empty or outside the document. The document is not added.
            TypeError: An array has another dtype. The document is not added.
            OSError: Writing failed. The writer is closed.
        """
        labeled = [_labeled(label, ranges) for label, ranges in (spans or {}).items()]
        self._native.add(np.asarray(ids), _mask(loss_mask), well_formed(source), labeled)

    def add_many(
        self,
        ids: ArrayLike,
        offsets: ArrayLike,
        loss_mask: ArrayLike | None = None,
        sources: Sequence[str] = ("",),
        source_ids: ArrayLike | None = None,
    ) -> None:
        """Add documents that are stored one after the other, which is much faster for short ones than `add`.

        Args:
            ids: Token ids of all documents, as for `add`.
            offsets: Integers [documents + 1]. Start of every document in `ids`, then `len(ids)`.
            loss_mask: bool [len(ids)]. True where the token is in the loss.
            sources: Source tags.
            source_ids: Integers [documents]. Index in `sources` of every document's tag (default: 0).

        Raises:
            ValueError: A document is invalid, as for `add`. The documents before it are added.
            TypeError: An array has another dtype.
            OSError: Writing failed. The writer is closed.
        """
        tags = None if source_ids is None else _integers(source_ids)
        names = [well_formed(source) for source in reject_single_string(sources, "sources")]
        self._native.add_many(np.asarray(ids), _integers(offsets), _mask(loss_mask), names, tags)

    def close(self) -> None:
        """Publish the unfinished shard and accept no more documents. A second call does nothing."""
        self._native.close()

    def __enter__(self) -> ShardWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer. After an exception, discard the unfinished shard."""
        if kind is None:
            self._native.close()
        else:
            self._native.discard()


class Shards:
    """Documents of a folder of shards, in the order in which they were written.

    The index is memory-mapped. Opening checks the index of every shard, and reading checks what is read: a damaged
    shard raises a ValueError that names the file, and never yields a wrong token.

    Also reads Megatron indexed datasets. Documents without tokens are skipped and not counted, and there are no loss
    masks, spans, or source tags. Opening checks the whole index. Reading checks that ids are in the vocabulary, if it
    is known. These files have no checksums, so another id within the vocabulary goes unnoticed.
    """

    def __init__(self, path: StrPath, *, vocab_size: int | HasVocabSize | None = None) -> None:
        """Open a folder of shards, or a Megatron dataset by its prefix, its `.idx`, or its `.bin`.

        Args:
            path: The folder or dataset.
            vocab_size: Number of ids, or a tokenizer. Shards of another vocabulary are refused. Megatron datasets name
                no vocabulary; without this argument, any id below 2^31 is accepted.

        Raises:
            ValueError: There are no shards, a shard is missing, damaged, truncated, or of another version, or
                vocabularies differ.
            OSError: A file cannot be read.
        """
        # Another process may open the path from another working directory.
        self._path = os.path.abspath(path)
        self._size = None if vocab_size is None else vocabulary_of(vocab_size)
        fingerprint = fingerprint_of(vocab_size)
        self._native = _native.Shards(self._path, self._size, fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to open the path."""
        return {"path": self._path, "vocab_size": self._size}

    def __setstate__(self, options: dict[str, Any]) -> None:
        """Open the path."""
        self.__init__(**options)  # type: ignore[misc]  # the class has no subclasses

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._native)

    def __getitem__(self, index: int) -> Document:
        """Read a document. A negative index counts from the end.

        Raises:
            IndexError: There is no such document.
            ValueError: The document is damaged.
        """
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"document index {index} is out of range for {len(self)} documents")
        tokens, loss_mask, source, labeled = self._native.document(at % len(self))
        spans: dict[str, list[tuple[int, int]]] = {}
        for label, start, end in labeled:
            spans.setdefault(label, []).append((start, end))
        return Document(tokens, loss_mask, source, {label: np.array(ranges) for label, ranges in spans.items()})

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents in order."""
        return (self[index] for index in range(len(self)))

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self._native.tokens

    @property
    def vocab_size(self) -> int | None:
        """Number of ids in the vocabulary, or None if it is not known. Every id is below it."""
        return self._native.vocab_size

    @property
    def vocabulary_fingerprint(self) -> str | None:
        """`Tokenizer.fingerprint` of the tokenizer that made the documents, or None if no shard names it."""
        return fingerprint_text(self._native.vocabulary_fingerprint)

    @property
    def sources(self) -> list[str]:
        """Source tags in order of first appearance."""
        return self._native.sources

    @property
    def labels(self) -> list[str]:
        """Labels of spans in order of first appearance."""
        return self._native.labels

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """uint32 [documents]. Number of tokens of every document."""
        return self._native.lengths()[0]

    @property
    def source_ids(self) -> NDArray[np.uint32]:
        """uint32 [documents]. Index in `sources` of every document's tag."""
        return self._native.lengths()[1]

    def verify(self) -> None:
        """Check every byte of every shard.

        Raises:
            ValueError: A file is damaged. The message names the first one.
        """
        self._native.verify()


def _labeled(label: str, ranges: ArrayLike) -> tuple[str, NDArray[np.int64]]:
    array = np.asarray(ranges)
    if array.size == 0:
        return well_formed(label), np.empty((0, 2), dtype=np.int64)
    if array.ndim != 2:
        raise ValueError(f"spans labeled {label!r} must have two dimensions, not {array.ndim}")
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
    """Return the number of ids, of a tokenizer or as given.

    Raises:
        TypeError: It is neither a number nor a tokenizer.
        ValueError: The number is negative.
    """
    size = vocab_size if isinstance(vocab_size, SupportsIndex) else getattr(vocab_size, "vocab_size", None)
    if not isinstance(size, SupportsIndex):
        raise TypeError(f"vocab_size: expected a whole number or a tokenizer, got {vocab_size!r}")
    number = operator.index(size)
    check_not_negative(vocab_size=number)
    return number


def fingerprint_of(vocabulary: int | HasVocabSize | None) -> int | None:
    """Return a tokenizer's fingerprint as a number, or None for a size or a tokenizer without a fingerprint."""
    text = getattr(vocabulary, "fingerprint", None)
    return None if text is None else int(text, 16)


def fingerprint_text(fingerprint: int | None) -> str | None:
    """Return a fingerprint as `Tokenizer.fingerprint` writes it."""
    return None if fingerprint is None else f"{fingerprint:016x}"


def check_not_negative(**values: int) -> None:
    """Check arguments that the native code takes as unsigned.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: An argument is negative or has more than 64 bits.
    """
    for name, value in values.items():
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
        if number < 0:
            raise ValueError(f"{name} must not be negative: {value}")
        if number >= 2**64:
            raise ValueError(f"{name} must be less than 2^64, got {value}")
