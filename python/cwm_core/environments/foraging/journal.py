"""Record the outcomes of `forage`, so that an interrupted run can resume."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...support.files import sync


class Journal:
    """Records by id in a JSON Lines file, whose first line has the settings.

    A record is on disk when `add` returns. An incomplete last line is dropped.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open or create the file. Raise ValueError if it has other settings or a damaged line."""
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
                raise ValueError(f"{path}, line {number}: expected a record of foraging") from None
            if number == 1 and record != settings:
                names = [name for name in {**settings, **record} if record.get(name) != settings.get(name)]
                raise ValueError(f"{path} belongs to a run with a different {names[0]}; choose another folder")
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def get(self, id: str) -> dict[str, Any] | None:
        """Return the record of an id, or None."""
        return self._records.get(id)

    def add(self, id: str, record: Mapping[str, Any]) -> None:
        """Add a record. Call it from one thread at a time."""
        self._records[id] = {"id": id, **record}
        self._write(self._records[id])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
