"""Megatron's indexed dataset, ``PREFIX.bin`` and ``PREFIX.idx``: ``MegatronWriter`` and ``write``.

``Shards`` and ``PackedLoader`` read it as it is.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from io import FileIO
from pathlib import Path as FilePath
from secrets import token_hex
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.shards import HasVocabSize, Path, Shards, vocabulary_of
from ..support.files import sync

# The layout is described in `rust/packing/src/megatron.rs`.
_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
# Megatron stores a vocabulary below this size in 16 bits (`DType.optimal_dtype`).
_SHORT = 65_500
_LONGEST = 2**31 - 1
_WRITE_BYTES = 1 << 20


class MegatronWriter:
    """Writes documents to ``PREFIX.bin`` and ``PREFIX.idx``, one sequence a document.

    A token takes 2 bytes if the vocabulary has fewer than 65,500 ids, else 4, as Megatron chooses. The files appear
    under their names, the index last, when they are complete and on disk. Leaving the ``with`` block by an exception,
    or never closing the writer, leaves nothing.
    """

    def __init__(self, prefix: Path, vocab_size: int | HasVocabSize) -> None:
        """Begin ``PREFIX.bin`` and ``PREFIX.idx``; the folder is created if need be.

        ``vocab_size``: the number of ids, or a tokenizer.

        Raises FileExistsError if one of the files is there, OSError if they cannot be written and ValueError for an
        impossible size.
        """
        self._vocab_size = vocabulary_of(vocab_size)
        if not 1 <= self._vocab_size <= 2**31:
            raise ValueError(f"vocab_size must be 1 to {2**31}, not {self._vocab_size}")
        self._dtype = np.dtype(np.uint16 if self._vocab_size < _SHORT else np.int32)
        prefix = FilePath(prefix)
        self._data, self._index = (
            FilePath(os.path.realpath(prefix.with_name(prefix.name + extension))) for extension in (".bin", ".idx")
        )
        self._lengths = array("i")
        self._tokens = 0
        self._pending = bytearray()
        self._refuse_existing()
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._file: FileIO | None = _unfinished(self._data)
        self._process = os.getpid()

    @property
    def documents(self) -> int:
        """Documents added."""
        return len(self._lengths)

    @property
    def tokens(self) -> int:
        """Tokens added."""
        return self._tokens

    def add(self, ids: ArrayLike) -> None:
        """Add one document.

        ``ids``: integers [n], n at least 1.

        Raises ValueError for an id outside the vocabulary, no ids or more than 2^31 - 1, and TypeError for another
        dtype; such a document changes nothing. After an OSError the writer is closed.
        """
        file = self._open_file()
        tokens = np.asarray(ids)
        if tokens.ndim != 1:
            raise ValueError(f"ids must have one dimension, not {tokens.ndim}")
        if not 1 <= len(tokens) <= _LONGEST:
            raise ValueError(f"a document needs 1 to {_LONGEST} tokens, not {len(tokens)}")
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, not {tokens.dtype}")
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            at = int(np.argmax((tokens < 0) | (tokens >= self._vocab_size)))
            raise ValueError(f"token {at} has id {tokens[at]}, outside the vocabulary of {self._vocab_size}")
        self._pending += tokens.astype(self._dtype.newbyteorder("<")).tobytes()
        self._lengths.append(len(tokens))
        self._tokens += len(tokens)
        if len(self._pending) >= _WRITE_BYTES:
            self._flush(file)

    def close(self) -> None:
        """Put both files on disk under their names and take no more documents. The second call does nothing.

        Raises FileExistsError if a file came to be there in the meantime.
        """
        if self._file is None:
            return
        file = self._open_file()
        self._flush(file)
        index = None
        try:
            index = _unfinished(self._index)
            for part in self._index_parts():
                _write(index, part)
            for written in (file, index):
                os.fsync(written.fileno())
            self._refuse_existing()
            os.rename(file.name, self._data)
            os.rename(index.name, self._index)
            sync(self._index.parent)
        finally:
            self.discard()
            if index is not None:
                _remove(index)

    def discard(self) -> None:
        """Drop what was written, unless the writer was closed before."""
        # A fork has no part in the files of its parent.
        if self._file is not None and self._process == os.getpid():
            _remove(self._file)
        self._file = None
        self._pending.clear()

    def _open_file(self) -> FileIO:
        if self._file is None:
            raise ValueError("the writer is closed")
        if self._process != os.getpid():
            raise ValueError("a writer belongs to the process that opened it")
        return self._file

    def _flush(self, file: FileIO) -> None:
        try:
            _write(file, self._pending)
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, os.fspath(self._data)) from error
        self._pending.clear()

    def _refuse_existing(self) -> None:
        for path in (self._data, self._index):
            if path.exists():
                raise FileExistsError(f"{path} is there already")

    def _index_parts(self) -> Iterable[bytes]:
        lengths: NDArray[np.int32] = np.frombuffer(self._lengths, dtype=np.intc)
        sequences = len(lengths)
        pointers = np.zeros(sequences, dtype="<i8")
        np.cumsum(lengths[:-1] * np.int64(self._dtype.itemsize), out=pointers[1:])
        yield _MAGIC + struct.pack("<QBQQ", _VERSION, _CODES[self._dtype], sequences, sequences + 1)
        yield lengths.astype("<i4").tobytes()
        yield pointers.tobytes()
        yield np.arange(sequences + 1, dtype="<i8").tobytes()

    def __enter__(self) -> MegatronWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer, or after an exception discard what was written."""
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        """Discard what was written if the writer was never closed."""
        if getattr(self, "_file", None) is not None:
            self.discard()


def write(prefix: Path, shards: Shards, *, drop_masks: bool = False) -> int:
    """Write the documents of ``shards`` to ``PREFIX.bin`` and ``PREFIX.idx`` and return how many there are.

    The format has no place for source tags, spans and loss masks. Tags and spans are left out; a document with tokens
    that are not to be learned is refused unless ``drop_masks``: then all its tokens are.

    Raises as ``MegatronWriter`` and ``Shards`` do, and ValueError for a masked document, or shards that name no
    vocabulary.
    """
    if shards.vocab_size is None:
        raise ValueError("the vocabulary is not known: open the shards with vocab_size")
    with MegatronWriter(prefix, shards.vocab_size) as writer:
        for number, document in enumerate(shards):
            if not (drop_masks or document.loss_mask.all()):
                raise ValueError(
                    f"document {number} has tokens that are not to be learned, which the format cannot say: "
                    "drop_masks writes them like the others"
                )
            writer.add(document.tokens)
    return len(shards)


def _unfinished(path: FilePath) -> FileIO:
    return open(path.with_name(f".unfinished-{path.name}-{token_hex(4)}"), "xb", buffering=0)


def _write(file: FileIO, content: bytes | bytearray) -> None:
    with memoryview(content) as view:
        written = 0
        while written < len(view):
            written += file.write(view[written:])


def _remove(file: FileIO) -> None:
    file.close()
    FilePath(file.name).unlink(missing_ok=True)
