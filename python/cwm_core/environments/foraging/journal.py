"""What an interrupted run of `forage` has found out already."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...support.files import sync


class Journal:
    """Records by id, a line of JSON each, on disk before `add` returns. The first line holds the settings.

    A file with other settings is refused; a last line that an interruption cut is dropped.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open or make it. Raises ValueError for other settings and damaged lines."""
        self._records: dict[str, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings))
        new = not path.exists()
        if not new:
            self._read(path, settings)
        self._file = path.open("ab")
        if self._file.tell() == 0:
            self._write(settings)
        if new:
            sync(path.parent)

    def _read(self, path: Path, settings: Mapping[str, Any]) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                if number > 1:
                    self._records[record["id"]] = record
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}, line {number}: not a record of foraging") from None
            if number == 1 and record != settings:
                names = [name for name in {**settings, **record} if record.get(name) != settings.get(name)]
                raise ValueError(f"{path} is of a run with another {names[0]}; choose another folder")
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def get(self, id: str) -> dict[str, Any] | None:
        """The record of an id, or None."""
        return self._records.get(id)

    def add(self, id: str, record: Mapping[str, Any]) -> None:
        """Keep a record. Not for several threads at once."""
        self._records[id] = {"id": id, **record}
        self._write(self._records[id])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
