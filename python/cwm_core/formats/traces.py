"""Export trace stores to Parquet and JSONL, and import them.

`export_traces` writes one row of a Parquet file, or one line of a JSONL file, for each trace:

| column | type | content |
| --- | --- | --- |
| `key` | string or null | key of the trace in the store |
| `source` | string or null | `source` of the metadata if it is a string |
| `license` | string or null | `license` of the metadata if it is a string |
| `outcome` | string | `outcome` of the metadata if it is a string, else `cwm_core.trace.store.outcome(trace)` |
| `frames` | int64 | number of frames |
| `context` | string | source text shown in the trace |
| `text` | string | `Trace.to_text()` |
| `metadata` | string | all metadata, as a JSON object |
| `trace` | binary, base64 in JSON | `Trace.to_bytes()`, which unlike the text is lossless |

`import_traces` reads `key`, `metadata`, and `trace`. The other columns are for readers of the file.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cwm_core._native import DamagedFileError, Trace
from cwm_core.support.arguments import reject_single_string
from cwm_core.support.files import StrPath, files_in, replacing
from cwm_core.support.jsonl import is_jsonl, loads, type_of_json
from cwm_core.support.tables import read_table
from cwm_core.support.text import well_formed
from cwm_core.trace import StoredTrace, TraceReader, TraceWriter
from cwm_core.trace.store import outcome

TRACE = ".cwmtrace"
"""Ending of the name of a file with a single trace."""
STORE = ".cwmtraces"
"""Ending of the name of a trace store."""

Row = dict[str, Any]
Progress = Callable[[int], object]
"""Callback that receives the number of traces done."""

# Limits of a Parquet row group, which is the amount of data in memory.
_GROUP_BYTES, _GROUP_ROWS = 1 << 26, 10_000


def export_traces(
    store: str | os.PathLike[str], target: str | os.PathLike[str], progress: Progress | None = None
) -> int:
    """Write all traces of a store to a Parquet or JSONL file.

    The file appears once it is complete. A symbolic link is followed. A FIFO or device is written directly.

    Args:
        store: The trace store.
        target: The file to write, named `*.parquet` or `*.jsonl`.
        progress: Called after each trace with the number of traces done.

    Returns:
        The number of traces.

    Raises:
        FileExistsError: The target exists.
        OSError: A file cannot be read or written.
        DamagedFileError: The store is damaged.
        ValueError: The file extension of the target is not supported.
        ModuleNotFoundError: The target is a Parquet file, and pyarrow is not installed.
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
        _check_new(target)  # again, because another process may have created it
    return done


def import_traces(
    sources: Sequence[str | os.PathLike[str]], store: str | os.PathLike[str], progress: Progress | None = None
) -> int:
    """Write the traces of files and folders into a new store.

    The store appears once it is complete.

    Args:
        sources: Files that `export_traces` wrote, stores, single `.cwmtrace` files, and folders. A folder stands for
            all stores and single traces in it. A single trace from a folder gets its path relative to the folder,
            without the ending, as its key, and the name of the folder that holds the file as its `source`.
        store: The store to write, named `*.cwmtraces`.
        progress: Called after each trace with the number of traces done.

    Returns:
        The number of traces.

    Raises:
        FileExistsError: The store exists.
        OSError: A file cannot be read or written.
        DamagedFileError: A source is damaged.
        ValueError: A key occurs twice, or a file extension is not supported.
        TypeError: `sources` is a single string.
        ModuleNotFoundError: A source is a Parquet file, and pyarrow is not installed.
    """
    target = Path(store)
    _kind(target, (STORE,))
    if target.exists() and not target.is_file():
        raise FileExistsError(
            17, "expected a regular file, because a store cannot be a device, FIFO, or folder", str(target)
        )
    done = 0
    with _appearing(target) as partial, TraceWriter(partial) as writer:
        for source in map(Path, reject_single_string(sources, "sources")):
            for entry in _read_folder(source) if source.is_dir() else _READERS[_kind_to_read(source, _READERS)](source):
                try:
                    writer.add_as_is(entry.trace, entry.key, entry.metadata)
                except ValueError as error:  # such as a duplicate key
                    raise ValueError(f"{source}: {error}") from None
                done += 1
                if progress:
                    progress(done)
    return done


def read_traces(file: StrPath, key: str | None = None) -> Iterator[StoredTrace]:
    """Yield the traces of a store, or the trace of a `.cwmtrace` file.

    Args:
        file: The store or single trace.
        key: Key of a single trace. The metadata of a single trace is its `outcome` and, as `source`, the name of the
            folder that holds the file.

    Raises:
        DamagedFileError: The file is damaged.
        OSError: The file cannot be read.
    """
    file = Path(file)
    if file.suffix.lower() == STORE:
        yield from TraceReader(file).entries()
    else:
        trace = Trace.load(file)
        yield StoredTrace(key, {"source": well_formed(file.resolve().parent.name), "outcome": outcome(trace)}, trace)


def trace_from_row(row: Row, where: str) -> StoredTrace:
    """Return the trace in a row that `export_traces` wrote.

    Args:
        row: Values by column.
        where: Place of the row, for error messages.

    Raises:
        DamagedFileError: The row has no trace, or a value is invalid.
    """
    try:
        key, metadata = row.get("key"), loads(row.get("metadata") or "{}")
        if not (key is None or isinstance(key, str)) or not isinstance(metadata, dict):
            raise ValueError("expected key to be a string or null and metadata to be a JSON object")
        trace = row["trace"]
        data = base64.b64decode(trace, validate=True) if isinstance(trace, str) else trace
        if not isinstance(data, bytes):
            raise ValueError(f"expected 'trace' to be a stored trace in Base64, got {type_of_json(data)}")
        return StoredTrace(key, metadata, Trace.from_bytes(data))
    except KeyError:
        raise DamagedFileError(
            f"{where}: no column 'trace'; only files that `cwm export` wrote can be imported"
        ) from None
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"{where}: {error}") from None


def trace_files(paths: Iterable[StrPath]) -> Iterator[Path]:
    """Yield the paths, with each folder replaced by all stores and single traces in it.

    Raises:
        FileNotFoundError: A folder contains no traces.
    """
    for path in map(Path, paths):
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
        "license": text("license"),
        "outcome": text("outcome") or outcome(trace),
        "frames": len(trace),
        "context": trace.context,
        "text": trace.to_text(),
        "metadata": json.dumps(metadata),
        "trace": trace.to_bytes(),
    }


def _is_unicode(text: str) -> bool:
    """Return whether UTF-8 can express the text: it has no surrogates."""
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
        """Do nothing: `replacing` closes the file."""


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        # Large types, because a text may be longer than 2 GiB.
        text, binary = pa.large_string(), pa.large_binary()
        types = {
            "outcome": text,
            "frames": pa.int64(),
            "context": text,
            "text": text,
            "metadata": text,
            "trace": binary,
        }
        nullable = [pa.field(name, text) for name in ("key", "source", "license")]
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
    return read_traces(path, well_formed(path.stem))


def _read_folder(folder: Path) -> Iterator[StoredTrace]:
    for file in trace_files([folder]):
        yield from read_traces(file, well_formed(file.relative_to(folder).with_suffix("").as_posix()))


_WRITERS: dict[str, Callable[[BinaryIO], _RowWriter]] = {".parquet": _Parquet, ".jsonl": _JsonLines}
_READERS: dict[str, Callable[[Path], Iterator[StoredTrace]]] = {
    ".parquet": _read_rows,
    ".jsonl": _read_rows,
    STORE: _read_native,
    TRACE: _read_native,
}


def _kind(path: Path, known: Collection[str]) -> str:
    if path.suffix.lower() not in known:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(known)}")
    return path.suffix.lower()


def _kind_to_read(path: Path, known: Collection[str]) -> str:
    """Return the kind of a file to read, which unlike `_kind` includes compressed JSONL and standard input."""
    return ".jsonl" if ".jsonl" in known and is_jsonl(path) else _kind(path, known)


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a store to. At the end, rename it to `path`, or to the target of that link."""
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
    """Raise FileExistsError for a file or folder, but not for a FIFO or device, which has no content to lose."""
    if path.is_file() or path.is_dir():
        raise FileExistsError(
            17, "exists already and is never overwritten; remove it, or choose another output", str(path)
        )
