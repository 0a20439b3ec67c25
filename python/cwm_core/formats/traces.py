"""Traces from and to files that other tools read: `export_traces` and `import_traces`, by what the file's name ends in.

A row of a Parquet file, or a line of a JSONL file, is a trace:

=============  ======================  =================================================================
``key``        string or null          of the store
``source``     string or null          the metadata of that name, where it is a string
``licence``    string or null          the metadata of that name, where it is a string
``outcome``    string                  the metadata of that name, where it is a string, else `store.outcome`
``frames``     int64                   number of frames
``context``    string                  the source text shown
``text``       string                  ``Trace.to_text()``
``metadata``   string                  all metadata, a JSON object
``trace``      binary, base64 in JSON  ``Trace.to_bytes()``: lossless, as the text is not
=============  ======================  =================================================================

Importing takes ``key``, ``metadata`` and ``trace``; the other columns are for who reads the file.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cwm_core._native import Trace
from cwm_core.support.arguments import reject_single_string
from cwm_core.support.files import files_in, replacing
from cwm_core.support.jsonl import is_jsonl, loads
from cwm_core.support.tables import read_table
from cwm_core.trace import StoredTrace, TraceReader, TraceWriter
from cwm_core.trace.store import outcome

TRACE, STORE = ".cwmtrace", ".cwmtraces"

Row = dict[str, Any]
Progress = Callable[[int], object]
"""Called with the number of traces done."""

# A row group of a Parquet file holds about so much text, or so many rows: what is in memory at a time.
_GROUP_BYTES, _GROUP_ROWS = 1 << 26, 10_000


def export_traces(
    store: str | os.PathLike[str], target: str | os.PathLike[str], progress: Progress | None = None
) -> int:
    """Write all traces of a store to a ``.parquet`` or ``.jsonl`` file and return their number.

    The file appears when it is complete. A link is followed; a FIFO or device of that name is written through.

    Raises FileExistsError if it is there already, OSError if something cannot be read or written, ValueError for a
    damaged store or a name of another kind, ModuleNotFoundError where pyarrow is needed and missing.
    """
    target = Path(target)
    kind = _kind(target, _WRITERS)
    reader = TraceReader(store)
    done = 0
    _check_new(target)
    with replacing(target) as file:
        with _WRITERS[kind](file) as rows:
            for done, entry in enumerate(reader.entries(), 1):
                rows.add(_row(entry))
                if progress:
                    progress(done)
        _check_new(target)  # again: it may have come to be there
    return done


def import_traces(
    sources: Sequence[str | os.PathLike[str]], store: str | os.PathLike[str], progress: Progress | None = None
) -> int:
    """Write the traces of files into a new store and return their number.

    ``sources``: files that `export_traces` wrote, stores, single ``.cwmtrace`` files, and folders, of which all stores
    and single traces are taken. A single trace gets its path, from the folder on and without its ending, for a key and
    the name of the folder that it lies in for a ``source``. The store appears when it is complete.

    Raises FileExistsError if it is there already, OSError if something cannot be read or written, ValueError for a key
    that occurs twice and for what is damaged or of another kind, ModuleNotFoundError where pyarrow is needed and
    missing.
    """
    target = Path(store)
    _kind(target, (STORE,))
    if target.exists() and not target.is_file():
        raise FileExistsError(17, "a store must be a regular file, and something else is there", str(target))
    done = 0
    with _appearing(target) as partial, TraceWriter(partial) as writer:
        for source in map(Path, reject_single_string(sources, "sources")):
            for entry in _read_folder(source) if source.is_dir() else _READERS[_kind_to_read(source, _READERS)](source):
                try:
                    writer.add_as_is(entry.trace, entry.key, entry.metadata)
                except ValueError as error:  # such as a key that is there already
                    raise ValueError(f"{source}: {error}") from None
                done += 1
                if progress:
                    progress(done)
    return done


def read_traces(file: Path, key: str | None = None) -> Iterator[StoredTrace]:
    """Go through the traces of a store, or give the one of a ``.cwmtrace`` file, with `key`.

    The metadata of the latter is its ``outcome``, and as ``source`` the name of the folder that it lies in.
    """
    if file.suffix == STORE:
        yield from TraceReader(file).entries()
    else:
        trace = Trace.load(file)
        yield StoredTrace(key, {"source": file.resolve().parent.name, "outcome": outcome(trace)}, trace)


def trace_from_row(row: Row, where: str) -> StoredTrace:
    """The trace of a row that `export_traces` wrote; raises ValueError, saying `where`, for another row."""
    try:
        key, metadata = row.get("key"), loads(row.get("metadata") or "{}")
        if not (key is None or isinstance(key, str)) or not isinstance(metadata, dict):
            raise ValueError("key must be a string or null, metadata a JSON object")
        trace = row["trace"]
        data = base64.b64decode(trace, validate=True) if isinstance(trace, str) else trace
        return StoredTrace(key, metadata, Trace.from_bytes(data))
    except KeyError:
        raise ValueError(f"{where}: there is no 'trace'; only what `cwm export` wrote can be imported") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def trace_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths, and for a folder all stores and single traces under it. Raises FileNotFoundError for one without."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = files_in(path, (TRACE, STORE))
        if not found:
            raise FileNotFoundError(2, f"no *{TRACE} or *{STORE} file in this folder", str(path))
        yield from found


def _row(entry: StoredTrace) -> Row:
    key, metadata, trace = entry

    def text(name: str) -> str | None:
        value = metadata.get(name)
        return value if isinstance(value, str) and _is_unicode(value) else None

    return {
        "key": key,
        "source": text("source"),
        "licence": text("licence"),
        "outcome": text("outcome") or outcome(trace),
        "frames": len(trace),
        "context": trace.context,
        "text": trace.to_text(),
        "metadata": json.dumps(metadata),
        "trace": trace.to_bytes(),
    }


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: there is no lone surrogate in it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class _RowWriter(Protocol):
    def add(self, row: Row) -> None: ...
    def __enter__(self) -> _RowWriter: ...
    def __exit__(self, *error: object) -> None: ...


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, row: Row) -> None:
        as_text = row | {"trace": base64.b64encode(row["trace"]).decode()}
        self._file.write((json.dumps(as_text, ensure_ascii=False) + "\n").encode())

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(self, *error: object) -> None:
        """`replacing` closes the file."""


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        # The large types: a text may be longer than 2 GiB.
        text, binary = pa.large_string(), pa.large_binary()
        types = {
            "outcome": text,
            "frames": pa.int64(),
            "context": text,
            "text": text,
            "metadata": text,
            "trace": binary,
        }
        nullable = [pa.field(name, text) for name in ("key", "source", "licence")]
        self._schema = pa.schema([*nullable, *(pa.field(name, kind, nullable=False) for name, kind in types.items())])
        self._batch = pa.RecordBatch.from_pylist
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self._bytes = 0

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += len(row["context"]) + len(row["text"]) + len(row["trace"])
        if self._bytes >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._writer.write_batch(self._batch(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._write()
        finally:
            self._writer.close()


def _read_rows(path: Path) -> Iterator[StoredTrace]:
    for where, row in read_table(path, ("key", "metadata", "trace")):
        yield trace_from_row(row, where)


def _read_native(path: Path) -> Iterator[StoredTrace]:
    return read_traces(path, path.stem)


def _read_folder(folder: Path) -> Iterator[StoredTrace]:
    for file in trace_files([folder]):
        yield from read_traces(file, file.relative_to(folder).with_suffix("").as_posix())


_WRITERS: dict[str, Callable[[BinaryIO], _RowWriter]] = {".parquet": _Parquet, ".jsonl": _JsonLines}
_READERS: dict[str, Callable[[Path], Iterator[StoredTrace]]] = {
    ".parquet": _read_rows,
    ".jsonl": _read_rows,
    STORE: _read_native,
    TRACE: _read_native,
}


def _kind(path: Path, known: Collection[str]) -> str:
    if path.suffix not in known:
        raise ValueError(f"{path}: the name must end in {' or '.join(known)}")
    return path.suffix


def _kind_to_read(path: Path, known: Collection[str]) -> str:
    """As `_kind`, also for compressed JSON lines and for standard input."""
    return ".jsonl" if ".jsonl" in known and is_jsonl(path) else _kind(path, known)


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A path to write a store to, renamed to `path`, or to what that links to, when that is done."""
    _check_new(path)
    target = Path(os.path.realpath(path))
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        _check_new(path)
        partial.rename(target)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def _check_new(path: Path) -> None:
    """Raise FileExistsError for a file or folder, whose content would be lost; a FIFO or device has none."""
    if path.is_file() or path.is_dir():
        raise FileExistsError(17, "is there already, and never overwritten", str(path))
