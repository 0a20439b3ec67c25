"""Sizes and checksums of a folder's files, which tell a whole folder from a damaged one; writing that survives a crash.

The checksums are CRC-32: they find what disks and networks do to files, not what an enemy does.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..model.weights.huggingface import is_plain_name

FILE = "manifest.json"


class Entry(NamedTuple):
    """What a file must be."""

    size: int
    crc32: int


Entries = dict[str, Entry]


def entries(files: Iterable[Path]) -> Entries:
    """What `files` are, by their names."""
    return {file.name: _entry(file) for file in files}


def write(folder: Path, format: int, files: Entries) -> None:
    """Note that `folder`, of this version of its format, has `files`."""
    content = {"format": format, "files": {name: entry._asdict() for name, entry in sorted(files.items())}}
    write_synced(folder / FILE, json.dumps(content, indent=1).encode())


def read(folder: Path, format: int) -> Entries:
    """What `write` noted; raises OSError or ValueError, naming the file, if that cannot be known."""
    file = folder / FILE
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != format:
            raise ValueError(f"the format is {content['format']!r}, expected {format}")
        files = {name: Entry(**entry) for name, entry in content["files"].items()}
        if not all(is_plain_name(name) for name in files):
            raise ValueError("a name is not that of a file directly in the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from None
    return files


def check(folder: Path, files: Entries) -> None:
    """Raise OSError for a file that cannot be read, ValueError for one that is not what it was; both name it."""
    for name, expected in files.items():
        size = (folder / name).stat().st_size
        if size != expected.size:
            raise ValueError(f"{folder / name} has {size} bytes, expected {expected.size}")
        if _entry(folder / name) != expected:
            raise ValueError(f"{folder / name} has another checksum than when it was written")


def write_synced(file: Path, content: bytes) -> None:
    """Write a file that is on disk when this returns."""
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
