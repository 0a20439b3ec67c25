"""Many traces in one file, with a key and metadata each: ``TraceWriter`` and ``TraceReader``.

with cwm.TraceWriter("functions.cwmtraces") as writer:
    writer.add(cwm.record(function, 3), key="function/3", source="my-corpus", licence="MIT")
reader = cwm.TraceReader("functions.cwmtraces")
reader[0], reader["function/3"], reader.metadata(0)
for trace in reader:
    ...

The file is described in ``docs/reference/trace-store.md``.
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
from cwm_core._native import Trace

__all__ = ["StoredTrace", "TraceReader", "TraceWriter"]

Path = str | os.PathLike[str]


class StoredTrace(NamedTuple):
    """A trace of a store with what is kept beside it; ``key`` is None where it was added without one."""

    key: str | None
    metadata: dict[str, Any]
    trace: Trace


class TraceWriter:
    """Adds traces to a store file. One writer at a time has the file; it never changes what the file holds.

    Traces reach the file in blocks of about 64 KiB before compression. What was written survives the end of the
    process at any moment; ``flush`` and ``close`` also make it survive the end of the machine. ``close`` adds the index
    by which a store is opened at once. Leaving the ``with`` block closes the writer, by an exception as well: what was
    added stays. In a forked process the writer cannot be used.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        """Make a new store, or with ``append`` go on with one; it is made if it is not there.

        A write that was cut short, as when a writer was killed, leaves a torn tail behind whole blocks: ``append`` cuts
        it and ``cut_bytes`` says how much that was.

        Raises FileExistsError for a file that is there without ``append``, BlockingIOError while another writer has it,
        OSError if it cannot be written, ValueError if it is no store of this version or is damaged before its end.
        """
        self._native = _native.TraceWriter(path, append)
        self._versions = {"python": platform.python_version(), "cwm_core": _native.VERSION}

    @property
    def cut_bytes(self) -> int:
        """Bytes of a torn tail that opening the file cut; 0 for a file that was whole."""
        return self._native.cut_bytes

    def __len__(self) -> int:
        """The number of traces, those that were in the file included."""
        return len(self._native)

    def add(self, trace: Trace, /, key: str | None = None, **metadata: Any) -> int:
        """Add a trace and return its index.

        ``key``: unique in the file. ``metadata``: any values that JSON has; customary names are ``source`` and
        ``licence``. Added unless given: ``outcome``, as `outcome` says; ``python``, the version this runs on;
        ``cwm_core``, the version of this library.

        Raises ValueError for a key that is in the file already, TypeError or ValueError for metadata that JSON does not
        have, OSError if a block could not be written. Such a trace is not added; after an OSError the file holds all
        whole blocks, and the writer can go on when there is room again.
        """
        described = metadata | {n: v for n, v in self._versions.items() if n not in metadata}
        described.setdefault("outcome", outcome(trace))
        return self.add_as_is(trace, key, described)

    def add_as_is(self, trace: Trace, key: str | None, metadata: dict[str, Any]) -> int:
        """``add`` without filling in anything: for a trace that comes from another store."""
        return self._native.add(trace, key, json.dumps(metadata, allow_nan=False, separators=(",", ":")))

    def flush(self) -> None:
        """Write what was added, and wait until the disk has it. Raises OSError if that fails; nothing is lost then."""
        self._native.flush()

    def close(self) -> None:
        """Flush, write the index and let go of the file. The second call does nothing. Raises OSError as `flush`."""
        self._native.close()

    def __enter__(self) -> TraceWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer."""
        self.close()


class TraceReader:
    """The traces of a store file, in the order they were added: by index, by key, or one after the other.

    It shows the file as it was when it was opened; a writer may add to it meanwhile. Opening a store that was closed
    takes the same time whatever its size. Of one that was not, the blocks are walked; ``torn_bytes`` says what a write
    that was cut short has left after the last whole one. Threads may share a reader, forked processes too, and it can
    be pickled, as a path.

    Reading checks what it reads: damage is a ValueError that names the file and the byte, never a wrong trace.
    """

    def __init__(self, path: Path) -> None:
        """Open a store. Raises OSError if it cannot be read and ValueError if it is none of this version."""
        self._native = _native.TraceReader(path)
        self.path = os.path.abspath(os.fsdecode(path))

    @property
    def torn_bytes(self) -> int:
        """Bytes after the last whole block, of a write that was cut short or is under way; 0 for a closed store."""
        return self._native.torn_bytes

    def __len__(self) -> int:
        """The number of traces."""
        return len(self._native)

    def __getitem__(self, which: SupportsIndex | str) -> Trace:
        """Return the trace at an index, negative ones from the end, or with a key.

        Raises IndexError or KeyError where there is none.
        """
        return self._native.trace(self._index(which))

    def get(self, key: str) -> Trace | None:
        """Return the trace with a key, or None where there is none."""
        index = self._native.find(key)
        return None if index is None else self._native.trace(index)

    def __contains__(self, key: object) -> bool:
        """Whether there is a trace with this key."""
        return isinstance(key, str) and self._native.find(key) is not None

    def metadata(self, which: SupportsIndex | str) -> dict[str, Any]:
        """Return the metadata of a trace, found as by ``reader[which]``; the trace itself is not read."""
        block, place = self._place(which)
        return _json_object(block.metadata(place))

    def key(self, index: SupportsIndex) -> str | None:
        """Return the key of the trace at an index, None where it has none. Raises IndexError where there is none."""
        block, place = self._place(index)
        return block.key(place)

    def __iter__(self) -> Iterator[Trace]:
        """Go through the traces, of which a block at a time is in memory."""
        for block in self._blocks():
            for place in range(len(block)):
                yield block.trace(place)

    def keys(self) -> Iterator[str | None]:
        """Go through the keys in the order of the traces, None where a trace has none."""
        for block in self._blocks():
            for place in range(len(block)):
                yield block.key(place)

    def entries(self) -> Iterator[StoredTrace]:
        """Go through the traces with their keys and metadata, as ``iter`` does."""
        for block in self._blocks():
            for place in range(len(block)):
                yield StoredTrace(block.key(place), _json_object(block.metadata(place)), block.trace(place))

    def verify(self) -> None:
        """Read the whole file and check every checksum, trace and key. Raises ValueError at the first damage.

        A torn tail is no damage, nor is what happened to an index that a later one replaced.
        """
        self._native.verify()

    def _blocks(self) -> Iterator[_native.TraceBlock]:
        index = 0
        while index < len(self._native):
            block = self._native.block(index)
            yield block
            index = block.first + len(block)

    def _place(self, which: SupportsIndex | str) -> tuple[_native.TraceBlock, int]:
        index = self._index(which)
        block = self._native.block(index)
        return block, index - block.first

    def _index(self, which: SupportsIndex | str) -> int:
        if isinstance(which, str):
            found = self._native.find(which)
            if found is None:
                raise KeyError(which)
            return found
        index = operator.index(which)
        wrapped = index + len(self) if index < 0 else index
        if not 0 <= wrapped < len(self):
            raise IndexError(f"trace {index} of a store of {len(self)}")
        return wrapped

    def __reduce__(self) -> tuple[type[TraceReader], tuple[str]]:
        """Pickle the path; unpickling opens the file as it is then."""
        return TraceReader, (self.path,)

    def __repr__(self) -> str:
        """The path and the number of traces."""
        torn = f", {self.torn_bytes:,} torn bytes" if self.torn_bytes else ""
        return f"<TraceReader of {len(self):,} traces in {self.path!r}{torn}>"


def outcome(trace: Trace) -> str:
    """Return how a program ended: "truncated" (at a limit), "returned", "raised", or "unknown" (a partial parse)."""
    if trace.truncated is not None:
        return "truncated"
    if trace.exception is not None:
        return "raised"
    return "unknown" if trace.result is None else "returned"


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"metadata is no JSON object: {text[:100]}")
    return value
