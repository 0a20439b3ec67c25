"""An append-only file of JSON lines from which an interrupted run resumes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

from .._native import DamagedFileError
from .files import WITHOUT_LOCKS, sync
from .jsonl import loads


class ResumableLog:
    """A file of JSON lines that a run appends to and a later run reads first; a context manager.

    Opening the file removes an incomplete last line, which a killed process leaves behind. One writer at a
    time has the file, unless its file system has no locks.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True, expected: str = "JSON") -> None:
        """Open a file and create it if it does not exist.

        Args:
            path: The file.
            durable: Wait after each row until it is on disk. Without this, a crash of the machine can lose rows, but a
                crash of the process cannot.
            expected: Description of a row, for messages about damaged lines.

        Raises:
            BlockingIOError: Another process writes to the file.
            OSError: The file cannot be written.
        """
        self._path, self._durable, self._expected = Path(path), durable, expected
        self._file = open(path, "a+b")  # noqa: SIM115
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, "another process writes to this file", os.fspath(path)) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            self._ends = self._cut()
            if durable:
                sync(self._path.absolute().parent)
        except BaseException:
            self._file.close()
            raise

    def _cut(self) -> list[int]:
        """Cut an incomplete last line, and return where each line ends."""
        self._file.seek(0)
        end, ends = 0, []
        for line in self._file:
            if line.endswith(b"\n"):
                end += len(line)
                ends.append(end)
        self._file.truncate(end)
        return ends

    def rows(self) -> Iterator[Any]:
        """Yield the rows in the file, in order.

        Raises:
            DamagedFileError: A line is not JSON.
        """
        with open(self._path, "rb") as file:
            for number, line in enumerate(islice(file, len(self._ends)), 1):
                try:
                    yield loads(line)
                except ValueError as error:
                    raise DamagedFileError(f"{self._path}, line {number}: not {self._expected}: {error}") from None

    def append(self, row: Any) -> None:
        """Append a row and hand it to the operating system, and to the disk if the log is durable.

        Raises:
            OSError: The row cannot be written.
        """
        line = json.dumps(row).encode() + b"\n"
        self._file.write(line)
        self._flush()
        self._ends.append((self._ends[-1] if self._ends else 0) + len(line))

    def keep(self, count: int) -> None:
        """Remove all rows but the first `count`."""
        del self._ends[count:]
        self._file.truncate(self._ends[-1] if self._ends else 0)
        self._flush()

    def _flush(self) -> None:
        self._file.flush()
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
