"""Sizes and checksums of the files in a folder, which distinguish an intact folder from a damaged one.

Checksums are CRC-32: they detect disk and network errors, not attacks.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .._native import DamagedFileError
from ..model.weights.huggingface import is_plain_name

FILE = "manifest.json"


class Entry(NamedTuple):
    """Expected size and checksum of a file."""

    size: int
    crc32: int


Entries = dict[str, Entry]


def entries(files: Iterable[Path]) -> Entries:
    """Return the entries of `files` by name."""
    return {file.name: _entry(file) for file in files}


def write(folder: Path, format: int, files: Entries) -> None:
    """Write the manifest of `folder` with the version of its format and its `files`."""
    content = {"format": format, "files": {name: entry._asdict() for name, entry in sorted(files.items())}}
    write_synced(folder / FILE, json.dumps(content, indent=1).encode())


def read(folder: Path, format: int) -> Entries:
    """Return the entries that `write` wrote.

    Raises:
        OSError: The manifest cannot be read.
        DamagedFileError: The manifest is malformed or of another format version.
    """
    file = folder / FILE
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != format:
            raise ValueError(f"the format is {content['format']!r}, expected {format}")
        files = {name: Entry(**entry) for name, entry in content["files"].items()}
        if not all(is_plain_name(name) for name in files):
            raise ValueError("a name is not the name of a file directly in the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{file}: {error}") from None
    return files


def check(folder: Path, files: Entries) -> None:
    """Compare `files` with the folder.

    Raises:
        OSError: A file cannot be read.
        DamagedFileError: The size or checksum of a file differs.
    """
    for name, expected in files.items():
        size = (folder / name).stat().st_size
        if size != expected.size:
            raise DamagedFileError(f"{folder / name} has {size} bytes, expected {expected.size}")
        if _entry(folder / name) != expected:
            raise DamagedFileError(f"{folder / name} has another checksum than when it was written")


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _entry(file: Path) -> Entry:
    size = crc32 = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            size += len(block)
            crc32 = zlib.crc32(block, crc32)
    return Entry(size, crc32)
