"""Describe what a loader's order of rows depends on, and report what changed when a state does not fit."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

NO_MAX_LENGTH = 2**32 - 1
"""Value of a bucket's `max_length` in a state if it has none: more tokens than a document can have."""

SourceParts = tuple[str, float, int | None, list[tuple[int, int]]]
"""A source as the native loader describes it: name, share, epochs, and checksum and documents of each file."""


def describe_sources(parts: Iterable[SourceParts]) -> list[dict[str, Any]]:
    """Return a short description of each source, for a loader's state.

    `checksum` covers every file, in order. To see whether files were only added, compare it with the checksum of the
    first `files` files.
    """
    return [
        {
            "name": name,
            "share": share,
            "epochs": epochs,
            "files": len(files),
            "documents": sum(documents for _, documents in files),
            "checksum": _checksum(files),
        }
        for name, share, epochs, files in parts
    ]


def check_same(mine: Mapping[str, Any], parts: Iterable[SourceParts], state: Mapping[str, Any]) -> None:
    """Check that a state comes from a loader over the same data with the same options.

    Args:
        mine: Values that this loader's order depends on, under their names in a state.
        parts: This loader's sources.
        state: The state to check.

    Raises:
        ValueError: The state is from other data or options. The message says what changed.
    """
    changes = []
    for key, value in mine.items():
        if key == "vocabulary" and None in (value, state.get(key)):
            continue  # unknown: the data were written before shards had fingerprints
        if key not in state:
            changes.append(f"{key!r} is missing from the state")
        elif state[key] != value:
            then, now = _shown(key, state[key]), _shown(key, value)
            changes += _data_changes(state.get("sources"), list(parts)) if key == "data" else [f"{key} {then} -> {now}"]
    if changes:
        raise ValueError(
            f"the loader state does not fit this loader; changed (then -> now): {'; '.join(changes)}. Construct the "
            "loader with the data and options of the run to resume, or start a new run without the state"
        )


def _data_changes(then: Any, parts: list[SourceParts]) -> list[str]:
    try:
        before = {source["name"]: source for source in then}
        return _source_changes(before, parts) or ["the data"]
    except (KeyError, TypeError):  # a state without descriptions of its sources, or a damaged one
        return ["the data: files, or the names, shares or epochs of the sources"]


def _source_changes(before: dict[str, dict[str, Any]], parts: list[SourceParts]) -> list[str]:
    changes = []
    now = describe_sources(parts)
    names = [source["name"] for source in now]
    if sorted(names) == sorted(before) and names != list(before):
        changes.append(f"the order of the sources {', '.join(before)} -> {', '.join(names)}")
    changes += [f"source {name!r} was removed" for name in before if name not in names]
    for source, (name, _, _, files) in zip(now, parts, strict=True):
        if name not in before:
            changes.append(f"source {name!r} was added")
            continue
        then = before[name]
        for key in ("share", "epochs"):
            if then[key] != source[key]:
                changes.append(f"{key} of source {name!r} {then[key]} -> {source[key]}")
        if then["checksum"] != source["checksum"]:
            changes.append(_file_changes(then, source, files))
    return changes


def _file_changes(then: dict[str, Any], now: dict[str, Any], files: list[tuple[int, int]]) -> str:
    counts = ", ".join(f"{now[key] - then[key]:+} {key}" for key in ("files", "documents") if now[key] != then[key])
    is_longer = 0 < then["files"] < now["files"] and _checksum(files[: then["files"]]) == then["checksum"]
    what = "files were added" if is_longer else "the content of files"
    return f"source {now['name']!r}: {what}" + (f" ({counts})" if counts else "")


def _checksum(files: list[tuple[int, int]]) -> int:
    return zlib.crc32(b"".join(struct.pack("<IQ", *file) for file in files))


def _shown(key: str, value: Any) -> str:
    if key != "buckets":
        return repr(value)
    try:
        rows = [
            f"max_length={None if longest == NO_MAX_LENGTH else longest} seq_len={row} batch_size={size}"
            for longest, row, size in value
        ]
    except (TypeError, ValueError):
        return repr(value)
    # A single bucket holds every document, so its limit is not worth showing.
    return f"[{', '.join(rows)}]" if len(rows) > 1 else rows[0].partition(" ")[2] if rows else "[]"
