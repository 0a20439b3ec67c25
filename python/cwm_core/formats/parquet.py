"""Import Parquet files of token ids into token shards. Requires pyarrow (extra `parquet`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._native import DamagedFileError
from ..data.shards import HasVocabSize, Shards, ShardWriter, check_not_negative
from ..support.files import StrPath

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

IGNORED_LABEL = -100
"""Label of a token outside the loss, which PyTorch's `cross_entropy` ignores."""
# Limits of a batch: a number of rows, and about a number of tokens, estimated from the mean length of a row.
_ROWS = 1 << 14
_TOKENS = 1 << 20
# Column chunks are read in parts of this size.
_READ_BYTES = 1 << 20
_MASKS = ("loss_mask", "labels", "attention_mask")


@dataclass(frozen=True)
class ImportResult:
    """Result of `import_parquet`."""

    documents: int
    """Documents in the folder."""
    tokens: int
    """Tokens in the folder."""
    new_documents: int
    """Documents that this call added."""
    new_tokens: int
    """Tokens that this call added."""
    empty_rows: int
    """Rows without tokens, which are skipped."""


@dataclass
class _Rows:
    """The rows of one batch, concatenated."""

    ids: NDArray[Any]
    """Token ids, integers of shape [n]."""
    offsets: NDArray[np.int64]
    """Start of each row in `ids` and the end of the last one, shape [rows + 1]."""
    mask: NDArray[np.bool_] | None
    """True for tokens in the loss, shape [n]. None if all are."""
    sources: list[str]
    """Distinct sources."""
    source_ids: NDArray[np.int64] | None
    """Index in `sources` for each row, shape [rows]. None if all rows have the first source."""
    numbers: NDArray[np.int64]
    """Index of each row in its file, shape [rows]."""

    def __len__(self) -> int:
        return len(self.numbers)

    def after(self, count: int) -> _Rows:
        """Return the rows after the first `count`."""
        start = self.offsets[count]
        return _Rows(
            self.ids[start:],
            self.offsets[count:] - start,
            None if self.mask is None else self.mask[start:],
            self.sources,
            None if self.source_ids is None else self.source_ids[count:],
            self.numbers[count:],
        )


def import_parquet(
    files: StrPath | Sequence[StrPath],
    folder: StrPath,
    vocab_size: int | HasVocabSize,
    *,
    ids: str = "input_ids",
    source: str | None = None,
    shard_tokens: int = 100_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> ImportResult:
    """Write each row of Parquet files as a document into a folder of token shards, in order.

    A file may have three more columns of lists, each as long as the ids:

    - `loss_mask`: booleans, or 0 and 1. True for a token in the loss.
    - `labels`: -100 for a token outside the loss, else the id. Not shifted.
    - `attention_mask`: 0 for padding, which is dropped and may occur only at the end of a row.

    To resume an interrupted import, call the function again with the same arguments. It compares documents that are
    already in the folder with their rows (all lengths, and the content of one document per batch) and writes the rest.
    At most `shard_tokens` tokens are written again.

    Args:
        files: One or more Parquet files. Each is read in batches of about a million tokens.
        folder: The folder of shards.
        vocab_size: Number of ids, or a tokenizer, as in `ShardWriter`.
        ids: Name of the column of token ids, lists of integers of any width.
        source: Name of a column of strings, the sources of the documents. By default, the source is empty.
        shard_tokens: Tokens per shard, as in `ShardWriter`.
        progress: Called repeatedly with the rows done and the rows of all files.

    Returns:
        The numbers of documents and tokens.

    Raises:
        DamagedFileError: A file is damaged.
        ValueError: A column is missing or has an unsupported type, a row is invalid (a null, an id outside the
            vocabulary, lists of different lengths, a label that differs from the id, padding before a token), or the
            folder has other documents. The message names the file and the row. Documents before an invalid row are
            kept only if their shard was full.
        OSError: A file cannot be read or written.
        ModuleNotFoundError: pyarrow is not installed.
    """
    check_not_negative(shard_tokens=shard_tokens)
    paths = [os.fspath(path) for path in ([files] if isinstance(files, str | os.PathLike) else files)]
    if not paths:
        raise ValueError("files: expected at least one file, got none")
    total = sum(_checked_rows(path, ids, source) for path in paths)
    done = empty = 0
    with ShardWriter(folder, vocab_size, shard_tokens=shard_tokens, append=True) as writer:
        known = _Known(folder, writer.documents)
        before = (writer.documents, writer.tokens)
        for path in paths:
            for count, rows in _read(path, ids, source):
                fresh = rows.after(known.match(path, rows))
                if len(fresh):
                    _add(writer, path, fresh)
                done += count
                empty += count - len(rows)
                if progress is not None:
                    progress(done, total)
        if known.left:
            raise ValueError(
                f"{folder} has {known.left} more documents than the files; expected only documents of these files"
            )
        documents, tokens = writer.documents, writer.tokens
    return ImportResult(documents, tokens, documents - before[0], tokens - before[1], empty)


def _add(writer: ShardWriter, path: str, rows: _Rows) -> None:
    before = writer.documents
    try:
        writer.add_many(rows.ids, rows.offsets, rows.mask, rows.sources, rows.source_ids)
    except ValueError as error:
        raise _bad(path, rows.numbers[writer.documents - before], error) from error


class _Known:
    """Matches documents that an earlier run wrote to the folder with the rows, in order."""

    def __init__(self, folder: StrPath, documents: int) -> None:
        self._shards = Shards(folder) if documents else None
        self._lengths = self._shards.lengths if self._shards else np.zeros(0, dtype=np.uint32)
        self._at = 0

    @property
    def left(self) -> int:
        """Number of documents not matched yet."""
        return len(self._lengths) - self._at

    def match(self, path: str, rows: _Rows) -> int:
        """Return how many of the rows are already in the folder.

        Raises:
            ValueError: A row differs from its document.
        """
        count = min(self.left, len(rows))
        if count == 0 or self._shards is None:
            return 0
        lengths = np.diff(rows.offsets[: count + 1])
        wrong = np.flatnonzero(lengths != self._lengths[self._at : self._at + count])
        last = self._shards[self._at + count - 1].tokens
        if not len(wrong) and not np.array_equal(last, rows.ids[rows.offsets[count - 1] : rows.offsets[count]]):
            wrong = np.array([count - 1])
        if len(wrong):
            row = int(wrong[0])
            what = f"not document {self._at + row} of the shards: they were not made of these files"
            raise _bad(path, rows.numbers[row], what)
        self._at += count
        return count


def _bad(path: str, row: int, what: object) -> ValueError:
    return ValueError(f"{path}: row {row}: {what}")


def _open(path: str) -> ParquetFile:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True)
    except ArrowException as error:
        raise DamagedFileError(f"{path}: {error}") from error


def _checked_rows(path: str, ids: str, source: str | None) -> int:
    """Check that the columns exist and have supported types, and return the number of rows."""
    from pyarrow import types

    with _open(path) as file:
        schema = file.schema_arrow
        for name in (ids, source):
            if name is not None and name not in schema.names:
                raise ValueError(f"{path}: no column {name!r}; the file has {', '.join(schema.names)}")
        for name in _lists(file, ids):
            kind = schema.field(name).type
            if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
                raise ValueError(f"{path}: column {name!r} must contain lists, got {kind}")
            inner = kind.value_type
            if not (types.is_integer(inner) or (types.is_boolean(inner) and name not in (ids, "labels"))):
                raise ValueError(f"{path}: column {name!r} must contain lists of integers, got lists of {inner}")
        if source is not None:
            kind = schema.field(source).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_string(kind) or types.is_large_string(kind)):
                raise ValueError(f"{path}: column {source!r} must contain strings, got {kind}")
        return int(file.metadata.num_rows)


def _lists(file: ParquetFile, ids: str) -> list[str]:
    """Return the names of the list columns to read."""
    return [ids, *(name for name in _MASKS if name in file.schema_arrow.names)]


def _read(path: str, ids: str, source: str | None) -> Iterator[tuple[int, _Rows]]:
    """Yield the rows of a file in batches: the number of rows in the batch, and those that have tokens."""
    from pyarrow import ArrowException

    with _open(path) as file:
        columns = _lists(file, ids)
        tags = [] if source is None else [source]
        first = 0
        batches = file.iter_batches(batch_size=_batch_rows(file, ids), columns=[*columns, *tags])
        while True:
            try:
                batch = next(batches, None)
            except (ArrowException, OSError) as error:
                if getattr(error, "errno", None) is not None:
                    raise
                raise DamagedFileError(f"{path}: damaged at row {first} or after: {error}") from error
            if batch is None:
                return
            lists = {name: _List(path, first, name, batch.column(name)) for name in columns}
            yield batch.num_rows, _rows(path, first, lists, ids, None if source is None else batch.column(source))
            first += batch.num_rows


def _batch_rows(file: ParquetFile, ids: str) -> int:
    """Return the number of rows that have about `_TOKENS` tokens, according to the metadata of the file."""
    metadata = file.metadata
    leaf = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path.startswith(ids + "."))
    values = sum(metadata.row_group(group).column(leaf).num_values for group in range(metadata.num_row_groups))
    return max(1, min(_ROWS, _TOKENS * int(metadata.num_rows) // max(1, int(values))))


class _List:
    """A column of lists: `values` of shape [n], `offsets` int64 of shape [rows + 1], which start at 0."""

    def __init__(self, path: str, first: int, name: str, column: pa.Array) -> None:
        from pyarrow import types

        if column.null_count:
            raise _bad(path, first + _first(column.is_null()), f"column {name!r} is null")
        values = column.flatten()
        if types.is_fixed_size_list(column.type):
            self.offsets = np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
        else:
            offsets = column.offsets.to_numpy().astype(np.int64)
            self.offsets = offsets - offsets[0]
        self.name, self._path, self._first = name, path, first
        if values.null_count:
            self.refuse(_first(values.is_null()), f"column {name!r} has a null")
        self.values: NDArray[Any] = values.to_numpy(zero_copy_only=False)

    def refuse(self, at: int, what: str) -> None:
        """Raise ValueError for the value at an index."""
        row = int(np.searchsorted(self.offsets, at, side="right")) - 1
        raise _bad(self._path, self._first + row, f"{what} at token {at - self.offsets[row]}")

    def flags(self) -> NDArray[np.bool_]:
        """Return the values as booleans."""
        if self.values.dtype != np.bool_ and (wrong := (self.values != 0) & (self.values != 1)).any():
            at = int(np.argmax(wrong))
            self.refuse(at, f"column {self.name!r} must be 0 or 1, got {self.values[at]}")
        return self.values.astype(np.bool_)


def _first(nulls: pa.BooleanArray) -> int:
    return int(np.argmax(nulls.to_numpy(zero_copy_only=False)))


def _rows(path: str, first: int, lists: dict[str, _List], ids: str, tags: pa.Array | None) -> _Rows:
    tokens = lists[ids]
    for other in lists.values():
        if len(wrong := np.flatnonzero(other.offsets != tokens.offsets)):
            row = int(wrong[0]) - 1
            counts = (np.diff(column.offsets)[row] for column in (other, tokens))
            raise _bad(path, first + row, "column {!r} has {} entries for {} tokens".format(other.name, *counts))
    values, offsets, mask = tokens.values, tokens.offsets, _mask(lists, tokens)
    if "attention_mask" in lists:
        kept = _kept(lists["attention_mask"])
        ends = np.concatenate([[0], np.cumsum(kept)])
        values, offsets, mask = values[kept], ends[offsets], None if mask is None else mask[kept]
    full = np.flatnonzero(np.diff(offsets))
    sources, source_ids = _sources(path, first, tags, full)
    numbers = first + full
    return _Rows(_ids(tokens, values), np.append(offsets[full], offsets[-1]), mask, sources, source_ids, numbers)


def _ids(column: _List, values: NDArray[Any]) -> NDArray[Any]:
    """Return the ids in a dtype that `ShardWriter` accepts."""
    if values.dtype == np.uint64:
        if len(values) and values.max() > np.iinfo(np.int64).max:
            at = int(np.argmax(column.values > np.iinfo(np.int64).max))
            column.refuse(at, f"id {column.values[at]} is too large for any vocabulary")
        return values.astype(np.int64)
    return values if values.dtype in (np.int32, np.uint16, np.uint32, np.int64) else values.astype(np.int32)


def _mask(lists: dict[str, _List], tokens: _List) -> NDArray[np.bool_] | None:
    """Return the loss mask: True for tokens that are in the loss according to every column that exists."""
    mask = lists["loss_mask"].flags() if "loss_mask" in lists else None
    if "labels" not in lists:
        return mask
    labels = lists["labels"]
    in_loss: NDArray[np.bool_] = labels.values != IGNORED_LABEL
    if (wrong := in_loss & (labels.values != tokens.values)).any():
        at = int(np.argmax(wrong))
        labels.refuse(at, f"label {labels.values[at]} differs from id {tokens.values[at]}")
    return in_loss if mask is None else mask & in_loss


def _kept(attention: _List) -> NDArray[np.bool_]:
    """Return True for tokens that are not padding."""
    kept = attention.flags()
    follows = np.zeros(len(kept), dtype=np.bool_)
    follows[1:] = ~kept[:-1]
    starts = attention.offsets[:-1]
    follows[starts[starts < len(kept)]] = False
    if (wrong := kept & follows).any():
        attention.refuse(int(np.argmax(wrong)), "padding must be at the end: token after padding")
    return kept


def _sources(
    path: str, first: int, tags: pa.Array | None, rows: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64] | None]:
    from pyarrow import types

    if tags is None:
        return [""], None
    if types.is_dictionary(tags.type):
        tags = tags.cast(tags.type.value_type)
    if tags.null_count:
        raise _bad(path, first + _first(tags.is_null()), "the source is null")
    encoded = tags.dictionary_encode()
    try:
        names = encoded.dictionary.to_pylist()
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: row {first} or after: a source is not UTF-8") from error
    return names, encoded.indices.to_numpy().astype(np.int64)[rows]
