"""An append-only file of lines, usually JSON, from which an interrupted run resumes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, Self

from .._native import DamagedFileError
from .files import WITHOUT_LOCKS, sync
from .jsonl import loads

logger = logging.getLogger(__name__)

_BLOCK = 1 << 16


class LogReader:
    """The complete lines of a log, which another process may be writing.

    A line is complete once it ends. What a crash left of a last line is skipped with a warning.

    Attributes:
        path: The file.
        whole_bytes: Offset of the end of the last complete line.
        torn_bytes: Number of bytes after it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Find the end of the last complete line. Raise OSError if the file cannot be read."""
        self.path = os.fspath(path)
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            self.whole_bytes = _end_of_lines(file, size)
        self.torn_bytes = size - self.whole_bytes
        if self.torn_bytes:
            logger.warning("%s: skipped an incomplete record in the last %d bytes", self.path, self.torn_bytes)

    def lines(self, max_bytes: int = sys.maxsize - 1) -> Iterator[tuple[int, bytes]]:
        """Yield the offset and the bytes of each line, with its line end.

        A line of more than `max_bytes` is cut there, and the rest of it is the next line.
        """
        at = 0
        with open(self.path, "rb") as file:
            while at < self.whole_bytes and (line := file.readline(min(max_bytes, self.whole_bytes - at))):
                yield at, line
                at += len(line)


class ResumableLog:
    """A log that a run appends to and a later run reads first; a context manager.

    An incomplete last line is removed before the first line is appended, so that a file that is not a log, which
    reading reports as damaged, stays as it is. One writer at a time has the file, unless its file system has no locks.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True, expected: str = "JSON") -> None:
        """Open a file and create it if it does not exist.

        Args:
            path: The file.
            durable: Wait after each line until it is on disk. Without this, a crash of the machine can lose lines, but
                a crash of the process cannot.
            expected: Description of a row, for messages about damaged lines.

        Raises:
            BlockingIOError: Another process writes to the file.
            OSError: The file cannot be written.
        """
        self._path, self._durable, self._expected = os.fspath(path), durable, expected
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, "another process writes to this file", self._path) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            self._reader = LogReader(path)
            if durable:
                sync(os.path.dirname(os.path.abspath(path)))
        except BaseException:
            self._file.close()
            raise

    def lines(self, max_bytes: int = sys.maxsize - 1) -> Iterator[tuple[int, bytes]]:
        """Yield the lines in the file, as `LogReader.lines` does."""
        return self._reader.lines(max_bytes)

    def rows(self) -> Iterator[Any]:
        """Yield the rows in the file, in order.

        Raises:
            DamagedFileError: A line is not JSON.
        """
        for number, (_, line) in enumerate(self.lines(), 1):
            try:
                yield loads(line)
            except ValueError as error:
                raise DamagedFileError(f"{self._path}, line {number}: not {self._expected}: {error}") from None

    def append(self, row: Any) -> None:
        """Append a row as JSON; see `append_line`."""
        self.append_line(json.dumps(row).encode())

    def append_line(self, line: bytes) -> None:
        """Append a line and hand it to the operating system, and to the disk if the log is durable.

        Args:
            line: The line, without a line end.

        Raises:
            OSError: The line cannot be written. The complete lines in the file stay as they were.
        """
        self._cut()
        rest = memoryview(line + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._flush()
        except BaseException:
            self._file.truncate(self._reader.whole_bytes)
            raise
        self._reader.whole_bytes += len(line) + 1

    def keep(self, count: int) -> None:
        """Remove all lines but the first `count`."""
        self._reader.whole_bytes = sum(len(line) for _, line in islice(self.lines(), count))
        self._cut()
        self._flush()

    def _cut(self) -> None:
        """Remove what is behind the last complete line."""
        if os.fstat(self._file.fileno()).st_size > self._reader.whole_bytes:
            self._file.truncate(self._reader.whole_bytes)

    def _flush(self) -> None:
        if self._durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file. Calling it again does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the log."""
        self.close()


def _end_of_lines(file: BinaryIO, size: int) -> int:
    """Return the offset after the last line end; 0 if there is none."""
    at = size
    while at > 0:
        start = max(at - _BLOCK, 0)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0
