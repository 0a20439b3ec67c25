"""Read JSON, and JSON Lines: files with one JSON object per line, plain or compressed, or standard input."""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from cwm_core._native import DamagedFileError

ENDINGS = tuple(name + packed for name in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst"))
"""Endings of the names of JSON Lines files, in any case."""

STDIN = "-"
"""Path that means standard input."""

_Damage = tuple[type[Exception], ...]


def is_jsonl(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a JSON Lines file, compressed or not, or standard input."""
    return os.fspath(path) == STDIN or os.fspath(path).lower().endswith(ENDINGS)


def loads(text: str | bytes, **options: Any) -> Any:
    """Parse JSON like `json.loads`, but raise ValueError for deep nesting.

    Args:
        text: The JSON text.
        options: Options of `json.loads`.

    Raises:
        ValueError: The text is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, **options)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        DamagedFileError: The file does not hold a JSON object.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        text = file.read()
    try:
        value = loads(text.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise DamagedFileError(f"{os.fspath(path)} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{os.fspath(path)}: expected a JSON object, got {type_of_json(value)}")
    return value


def read_rows(
    path: str | os.PathLike[str], *, loads: Callable[[bytes], Any] = loads, max_line_bytes: int = sys.maxsize - 1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a file with their line numbers, which start at 1.

    Blank lines and a byte order mark are skipped. The content, not the name, shows whether a file is compressed with
    gzip or Zstandard.

    Args:
        path: The file, or `-` for standard input.
        loads: Function that parses a line.
        max_line_bytes: Length of the longest line to accept.

    Raises:
        DamagedFileError: A line is too long or not a JSON object, or the compressed data is damaged. The message names
            the line.
        OSError: The file cannot be read.
        ModuleNotFoundError: The file is compressed with Zstandard, and no package that reads it is installed.
    """
    for number, line in read_lines(path, max_line_bytes=max_line_bytes):
        try:
            row = loads(line)
        except ValueError as error:
            # The text of the error would name a second line number.
            reason = f"{error.msg} at column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
            raise DamagedFileError(f"{os.fspath(path)}, line {number}: not JSON: {reason}") from None
        if not isinstance(row, dict):
            raise DamagedFileError(f"{os.fspath(path)}, line {number}: not a JSON object, but {type_of_json(row)}")
        yield number, row


def read_lines(path: str | os.PathLike[str], *, max_line_bytes: int = sys.maxsize - 1) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, with their numbers and their line ends.

    Args:
        path: As in `read_rows`.
        max_line_bytes: As in `read_rows`.

    Raises:
        DamagedFileError: A line is too long, the file is UTF-16, or the compressed data is damaged.
        OSError: The file cannot be read.
        ModuleNotFoundError: The file is compressed with Zstandard, and no package that reads it is installed.
    """
    number = 0
    with _opened(path) as (file, damage):
        while True:
            try:
                line = file.readline(max_line_bytes + 1)
            except damage as error:
                raise DamagedFileError(
                    f"{os.fspath(path)}: the compressed data is cut or damaged after line {number}: {error}"
                ) from None
            if not line:
                return
            number += 1
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DamagedFileError(f"{os.fspath(path)}: expected UTF-8, got UTF-16; convert the file")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > max_line_bytes:
                raise DamagedFileError(f"{os.fspath(path)}, line {number}: more than {max_line_bytes} bytes")
            if line.strip():
                yield number, line


def type_of_json(value: object) -> str:
    """Return the name of the type of a JSON value with its article, for error messages: "a list", "null"."""
    return _TYPES.get(type(value), "a number")


_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", bytes: "bytes", type(None): "null"}


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, _Damage]]:
    """Open the decompressed file. Yields the file and the exceptions that its decompressor raises for damaged data."""
    if os.fspath(path) == STDIN:
        if sys.stdin is None:
            raise OSError(9, "standard input is closed", STDIN)
        yield _decompressed(sys.stdin.buffer, STDIN)
        return
    with open(path, "rb") as file:
        yield _decompressed(file, os.fspath(path))


def _decompressed(file: Any, name: str) -> tuple[BinaryIO, _Damage]:
    start = file.peek(4)[:4]
    if start.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file)), (EOFError, zlib.error, gzip.BadGzipFile)
    # Parallel compressors write a skippable frame before the first data frame.
    if start == b"\x28\xb5\x2f\xfd" or (start[1:] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        zstd = _zstd(name)
        return cast(BinaryIO, zstd.ZstdFile(file)), (EOFError, zstd.ZstdError)
    return file, ()


def _zstd(name: str) -> Any:
    """Import the Zstandard module of Python 3.14, or its backport for earlier versions."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is compressed with Zstandard, which needs backports.zstd: "
            "run pip install '.[zstd]' in a checkout of cwm-core",
            name="backports.zstd",
        ) from None
    return zstd
