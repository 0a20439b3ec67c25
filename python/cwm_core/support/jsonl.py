"""Read files of JSON objects, one a line, that others wrote: plain, compressed, or on standard input."""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
"""What the names of such files end in."""

STDIN = "-"
"""The path that stands for standard input."""

_Damage = tuple[type[Exception], ...]


def is_jsonl(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a file of JSON lines, compressed or not, or standard input."""
    return os.fspath(path) == STDIN or os.fspath(path).endswith(ENDINGS)


def loads(text: str | bytes, **options: Any) -> Any:
    """Parse JSON as `json.loads` does.

    Raises:
        ValueError: The text is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, **options)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def read_rows(
    path: str | os.PathLike[str], *, loads: Callable[[bytes], Any] = loads, max_line_bytes: int = sys.maxsize - 1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their line numbers, from 1. Blank lines and a byte order mark are skipped.

    Args:
        path: The file, `-` for standard input. gzip and Zstandard are recognized by the content, whatever the name.
        loads: Parses a line.
        max_line_bytes: The longest line to read.

    Raises:
        ValueError: A line is not a JSON object or too long, with its number; or the compressed data is damaged.
        OSError: The file cannot be read.
        ModuleNotFoundError: The file is Zstandard, and no package that reads it is installed.
    """
    for number, line in read_lines(path, max_line_bytes=max_line_bytes):
        try:
            row = loads(line)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            kind = _KINDS.get(type(row), "a number")
            raise ValueError(f"{os.fspath(path)}, line {number}: not a JSON object, but {kind}")
        yield number, row


def read_lines(path: str | os.PathLike[str], *, max_line_bytes: int = sys.maxsize - 1) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers, as `read_rows`, each with its line end.

    Raises:
        ValueError, OSError, ModuleNotFoundError: As `read_rows`.
    """
    number = 0
    with _opened(path) as (file, damage):
        while True:
            try:
                line = file.readline(max_line_bytes + 1)
            except damage as error:
                raise ValueError(
                    f"{os.fspath(path)}: the compressed data is cut or damaged after line {number}: {error}"
                ) from None
            if not line:
                return
            number += 1
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise ValueError(f"{os.fspath(path)}: expected UTF-8, got UTF-16; convert the file")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > max_line_bytes:
                raise ValueError(f"{os.fspath(path)}, line {number}: more than {max_line_bytes} bytes")
            if line.strip():
                yield number, line


_KINDS = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, _Damage]]:
    """The decompressed bytes, and the errors by which the decompression says that they are damaged."""
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
    # A frame, or one to be skipped, as parallel compressors write before the data.
    if start == b"\x28\xb5\x2f\xfd" or (start[1:] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        zstd = _zstd(name)
        return cast(BinaryIO, zstd.ZstdFile(file)), (EOFError, zstd.ZstdError)
    return file, ()


def _zstd(name: str) -> Any:
    """Import the module of Python 3.14 that reads Zstandard, or the package that brings it to earlier versions."""
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
