"""Write Megatron indexed datasets: `PREFIX.bin` and `PREFIX.idx`.

`Shards` and `PackedLoader` read these datasets in place.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from secrets import token_hex
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.shards import HasVocabSize, Shards, vocabulary_of
from ..support.files import StrPath, sync

# `rust/packing/src/megatron.rs` describes the layout.
_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
# Megatron stores ids of smaller vocabularies in 16 bits (`DType.optimal_dtype`).
_SHORT = 65_500
_LONGEST = 2**31 - 1
_WRITE_BYTES = 1 << 20


class MegatronWriter:
    """Writes documents to `PREFIX.bin` and `PREFIX.idx`, one sequence per document.

    A token takes 2 bytes if the vocabulary has fewer than 65,500 ids, else 4, as in Megatron. Both files appear once
    they are complete and on disk, the index last. If an exception leaves the `with` block, or the writer is never
    closed, no files remain.
    """

    def __init__(self, prefix: StrPath, vocab_size: int | HasVocabSize) -> None:
        """Create a writer, and the folder of the files if it does not exist.

        Args:
            prefix: Path of both files without `.bin` and `.idx`.
            vocab_size: Number of ids, or a tokenizer.

        Raises:
            FileExistsError: One of the files exists.
            OSError: The files cannot be written.
            ValueError: The vocabulary size is out of range.
        """
        self._vocab_size = vocabulary_of(vocab_size)
        if not 1 <= self._vocab_size <= 2**31:
            raise ValueError(f"vocab_size must be 1 to {2**31}, got {self._vocab_size}")
        self._dtype = np.dtype(np.uint16 if self._vocab_size < _SHORT else np.int32)
        prefix = Path(prefix)
        self._data, self._index = (
            Path(os.path.realpath(prefix.with_name(prefix.name + extension))) for extension in (".bin", ".idx")
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
        """Number of documents added."""
        return len(self._lengths)

    @property
    def tokens(self) -> int:
        """Number of tokens added."""
        return self._tokens

    def add(self, ids: ArrayLike) -> None:
        """Add a document.

        After an OSError, the writer is closed. After another exception, the writer is unchanged.

        Args:
            ids: Integers of shape [n], n at least 1.

        Raises:
            ValueError: The document is empty or longer than 2^31 - 1 tokens, or an id is outside the vocabulary.
            TypeError: The ids are not integers.
            OSError: The data cannot be written.
        """
        file = self._open_file()
        tokens = np.asarray(ids)
        if tokens.ndim != 1:
            raise ValueError(f"ids must have one dimension, got {tokens.ndim}")
        if not 1 <= len(tokens) <= _LONGEST:
            raise ValueError(f"a document must have 1 to {_LONGEST} tokens, got {len(tokens)}")
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, got {tokens.dtype}")
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            at = int(np.argmax((tokens < 0) | (tokens >= self._vocab_size)))
            raise ValueError(f"token {at} has id {tokens[at]}, outside the vocabulary of {self._vocab_size}")
        self._pending += tokens.astype(self._dtype.newbyteorder("<")).tobytes()
        self._lengths.append(len(tokens))
        self._tokens += len(tokens)
        if len(self._pending) >= _WRITE_BYTES:
            self._flush(file)

    def close(self) -> None:
        """Complete both files and give them their names. A second call does nothing.

        Raises:
            FileExistsError: Another process created one of the files in the meantime.
            OSError: The files cannot be written.
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
        """Delete the unfinished files. Has no effect after `close`."""
        # The files belong to the process that opened them, not to its forks.
        if self._file is not None and self._process == os.getpid():
            _remove(self._file)
        self._file = None
        self._pending.clear()

    def _open_file(self) -> FileIO:
        if self._file is None:
            raise ValueError("the writer is closed")
        if self._process != os.getpid():
            raise ValueError("the writer belongs to the process that opened it, and this is another process")
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
                raise FileExistsError(f"{path} exists already; it is never overwritten")

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
        """Close the writer; after an exception, discard the files."""
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        """Discard the files if the writer was never closed."""
        if getattr(self, "_file", None) is not None:
            self.discard()


def write_megatron(prefix: StrPath, shards: Shards, *, drop_masks: bool = False) -> int:
    """Write the documents of token shards to `PREFIX.bin` and `PREFIX.idx`.

    The format has no loss masks, spans, and sources. Spans and sources are dropped.

    Args:
        prefix: Path of both files without `.bin` and `.idx`.
        shards: The documents.
        drop_masks: Whether to accept documents with masked tokens. All their tokens are then in the loss.

    Returns:
        The number of documents.

    Raises:
        FileExistsError: One of the files exists.
        OSError: A file cannot be read or written.
        DamagedFileError: The shards are damaged.
        ValueError: A document has masked tokens and `drop_masks` is False, or the shards name no vocabulary.
    """
    if shards.vocab_size is None:
        raise ValueError("the vocabulary is unknown; pass vocab_size to Shards")
    with MegatronWriter(prefix, shards.vocab_size) as writer:
        for number, document in enumerate(shards):
            if not (drop_masks or document.loss_mask.all()):
                raise ValueError(
                    f"document {number} has tokens outside the loss, and the format has no loss masks; "
                    "drop_masks puts all tokens in the loss"
                )
            writer.add(document.tokens)
    return len(shards)


def _unfinished(path: Path) -> FileIO:
    return open(path.with_name(f".unfinished-{path.name}-{token_hex(4)}"), "xb", buffering=0)


def _write(file: FileIO, content: bytes | bytearray) -> None:
    with memoryview(content) as view:
        written = 0
        while written < len(view):
            written += file.write(view[written:])


def _remove(file: FileIO) -> None:
    file.close()
    Path(file.name).unlink(missing_ok=True)
