"""Trace stores: many traces in one file, each with a key and metadata.

    with cwm.TraceWriter("functions.cwmtraces") as writer:
        writer.add(cwm.record(function, 3), key="function/3", source="my-corpus", license="MIT")
    with cwm.TraceReader("functions.cwmtraces") as reader:
        reader[0], reader["function/3"], reader.metadata(0)
        for trace in reader:
            ...

`docs/reference/trace-store.md` describes the file.
"""

from __future__ import annotations

import json
import operator
import os
import platform
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, SupportsIndex

from cwm_core import _native
from cwm_core._native import DamagedFileError, Trace

from .kinds import TraceOutcome

__all__ = ["StoredTrace", "TraceReader", "TraceWriter"]


class StoredTrace(NamedTuple):
    """A trace of a store, with its key and metadata."""

    key: str | None
    """Key in the store; None if the trace was added without one."""
    metadata: dict[str, Any]
    """Metadata of the trace."""
    trace: Trace
    """The trace itself."""


class TraceWriter:
    """Appends traces to a store file.

    Only one writer at a time can have a file open. It never changes existing data.

    The writer compresses traces in blocks of about 64 KiB. Written blocks survive the end of the process at any time;
    after `flush` or `close`, they also survive a machine failure. `close` adds the index that makes opening fast.
    Leaving the `with` block closes the writer and keeps the added traces, also after an exception. A forked process
    cannot use the writer of its parent.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        """Create a store.

        An interrupted write, for example of a process that was killed, leaves an incomplete block at the end of the
        file. With `append`, the writer removes it and reports its size as `cut_bytes`.

        Args:
            path: File to write.
            append: Append to an existing file, or create it if it does not exist.

        Raises:
            FileExistsError: The file exists, and `append` is False.
            BlockingIOError: Another writer has the file open.
            OSError: The file cannot be written.
            DamagedFileError: The file is not a store of this version, or is damaged before its end.
        """
        self._native = _native.TraceWriter(path, append)
        self._path = os.fspath(path)
        self._versions = {"python": platform.python_version(), "cwm_core": _native.VERSION}

    @property
    def cut_bytes(self) -> int:
        """Bytes of an incomplete block that opening the file removed; 0 for an intact file."""
        return self._native.cut_bytes

    def __len__(self) -> int:
        """Return the number of traces in the file, including those from earlier sessions."""
        return len(self._native)

    def add(self, trace: Trace, /, key: str | None = None, **metadata: Any) -> int:
        """Append a trace.

        If an error is raised, the trace is not added. After an OSError, the file still has all complete blocks, and
        you can continue once there is disk space.

        Args:
            trace: Trace to add.
            key: Name that is unique in the file.
            **metadata: JSON values; customary names are `source` and `license`. The writer adds these unless given:
                `outcome`, a `TraceOutcome`; `python`, the version of the running interpreter; and `cwm_core`, the
                version of this library.

        Returns:
            The index of the trace.

        Raises:
            ValueError: The file already has the key, the key contains a lone surrogate, or the metadata contains a
                value that JSON cannot represent.
            TypeError: The key is not a string, or the metadata contains a type that JSON cannot represent.
            OSError: A block could not be written.
        """
        described = metadata | {n: v for n, v in self._versions.items() if n not in metadata}
        described.setdefault("outcome", outcome(trace))
        return self.add_as_is(trace, key, described)

    def add_as_is(self, trace: Trace, key: str | None, metadata: dict[str, Any]) -> int:
        """Append a trace with exactly this metadata, as when copying from another store. See `add`."""
        if not isinstance(key, str | None):
            raise TypeError(f"key: expected a string or None, got {key!r}")
        if key is not None and any("\ud800" <= character <= "\udfff" for character in key):
            raise ValueError(f"key {key!r} contains a lone surrogate, which is not a character")
        return self._native.add(trace, key, json.dumps(metadata, allow_nan=False, separators=(",", ":")))

    def flush(self) -> None:
        """Write the added traces to disk.

        Raises:
            OSError: Writing failed. No added trace is lost; try again.
        """
        self._native.flush()

    def close(self) -> None:
        """Flush, write the index, and close the file. Does nothing if the writer is closed already.

        Raises:
            OSError: Writing failed.
        """
        self._native.close()

    def __enter__(self) -> TraceWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer."""
        self.close()

    def __repr__(self) -> str:
        """Return the path and the number of traces."""
        return f"<TraceWriter of {len(self):,} traces in {self._path!r}>"


class TraceReader:
    """Reads the traces of a store file, by index, by key, or in the order they were added.

    A reader shows the file as of the time it was opened; a writer may append at the same time. Opening a closed store
    takes the same time at any size. If the writer was not closed, the reader scans the block headers instead, and
    `torn_bytes` is the size of an incomplete block at the end. Threads and forked processes can share a reader.
    Pickling a reader pickles its path.

    All data is checked on reading: damage raises `DamagedFileError` with the file and byte, and never yields a wrong
    trace.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a store.

        Args:
            path: File to read.

        Raises:
            OSError: The file cannot be read.
            DamagedFileError: The file is not a store of this version.
        """
        self._open: _native.TraceReader | None = _native.TraceReader(path)
        self.path = os.path.abspath(os.fsdecode(path))

    @property
    def _reader(self) -> _native.TraceReader:
        if self._open is None:
            raise ValueError(f"{self.path}: the reader is closed")
        return self._open

    def close(self) -> None:
        """Close the file. Does nothing if the reader is closed already."""
        self._open = None

    def __enter__(self) -> TraceReader:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the reader."""
        self.close()

    @property
    def torn_bytes(self) -> int:
        """Bytes after the last complete block, from an interrupted or ongoing write; 0 for a closed store."""
        return self._reader.torn_bytes

    def __len__(self) -> int:
        """Return the number of traces."""
        return len(self._reader)

    def __getitem__(self, which: SupportsIndex | str) -> Trace:
        """Return the trace at an index or with a key.

        Args:
            which: Index, counted from the end if negative, or key.

        Raises:
            IndexError: There is no trace at the index.
            KeyError: There is no trace with the key.
        """
        return self._reader.trace(self._index(which))

    def get(self, key: str) -> Trace | None:
        """Return the trace with a key, or None if there is none."""
        index = self._reader.find(key)
        return None if index is None else self._reader.trace(index)

    def __contains__(self, key: object) -> bool:
        """Return whether the store has a trace with this key."""
        return isinstance(key, str) and self._reader.find(key) is not None

    def metadata(self, which: SupportsIndex | str) -> dict[str, Any]:
        """Return the metadata of a trace without reading the trace. Finds it as `reader[which]` does."""
        block, place = self._place(which)
        return _json_object(block.metadata(place))

    def key(self, index: SupportsIndex) -> str | None:
        """Return the key of the trace at an index, or None if it has none.

        Raises:
            IndexError: There is no trace at the index.
        """
        block, place = self._place(index)
        return block.key(place)

    def __iter__(self) -> Iterator[Trace]:
        """Yield the traces in order, with one block in memory at a time."""
        for block in self._blocks():
            for place in range(len(block)):
                yield block.trace(place)

    def keys(self) -> Iterator[str | None]:
        """Yield the key of each trace in order; None for a trace without one."""
        for block in self._blocks():
            for place in range(len(block)):
                yield block.key(place)

    def entries(self) -> Iterator[StoredTrace]:
        """Yield the traces in order, with their keys and metadata."""
        for block in self._blocks():
            for place in range(len(block)):
                yield StoredTrace(block.key(place), _json_object(block.metadata(place)), block.trace(place))

    def verify(self) -> None:
        """Read the whole file and check every checksum, trace, and key.

        An incomplete block at the end is not damage, and neither is a damaged index that a later one replaced.

        Raises:
            DamagedFileError: The file is damaged.
        """
        self._reader.verify()

    def _blocks(self) -> Iterator[_native.TraceBlock]:
        index = 0
        while index < len(self._reader):
            block = self._reader.block(index)
            yield block
            index = block.first + len(block)

    def _place(self, which: SupportsIndex | str) -> tuple[_native.TraceBlock, int]:
        index = self._index(which)
        block = self._reader.block(index)
        return block, index - block.first

    def _index(self, which: SupportsIndex | str) -> int:
        if isinstance(which, str):
            found = self._reader.find(which)
            if found is None:
                raise KeyError(which)
            return found
        index = operator.index(which)
        wrapped = index + len(self) if index < 0 else index
        if not 0 <= wrapped < len(self):
            raise IndexError(f"trace index {index} is out of range for a store of {len(self)} traces")
        return wrapped

    def __reduce__(self) -> tuple[type[TraceReader], tuple[str]]:
        """Pickle the path; unpickling opens the file again."""
        return TraceReader, (self.path,)

    def __repr__(self) -> str:
        """Return the path and the number of traces."""
        if self._open is None:
            return f"<TraceReader of {self.path!r}, closed>"
        torn = f", {self.torn_bytes:,} torn bytes" if self.torn_bytes else ""
        return f"<TraceReader of {len(self):,} traces in {self.path!r}{torn}>"


def outcome(trace: Trace) -> TraceOutcome:
    """Return how the recorded program ended."""
    if trace.truncated is not None:
        return TraceOutcome.TRUNCATED
    if trace.exception is not None:
        return TraceOutcome.RAISED
    return TraceOutcome.UNKNOWN if trace.result is None else TraceOutcome.RETURNED


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DamagedFileError(f"metadata: expected a JSON object, got {text[:100]}")
    return value
