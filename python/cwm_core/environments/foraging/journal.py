"""Record the outcomes of `forage`, so that an interrupted run can resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._native import DamagedFileError
from ...support.log import ResumableLog


class Journal:
    """Records by id, each on disk before `add` returns. The first line of the file holds the settings."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open a file and create it if it does not exist.

        Raises:
            BlockingIOError: Another process writes to the file.
            ValueError: The file belongs to a run with other settings.
            DamagedFileError: A line is damaged.
        """
        self._path, self._records = path, dict[str, dict[str, Any]]()
        self._log = ResumableLog(path, expected="a record of foraging")
        try:
            self._read(json.loads(json.dumps(settings)))
        except BaseException:
            self._log.close()
            raise

    def _read(self, settings: dict[str, Any]) -> None:
        """Read the records, and write the settings to a new file."""
        number = 0
        for number, record in enumerate(self._log.rows(), 1):
            if not isinstance(record, dict) or (number > 1 and not isinstance(record.get("id"), str)):
                raise DamagedFileError(f"{self._path}, line {number}: expected a record of foraging")
            if number > 1:
                self._records[record["id"]] = record
            elif record != settings:
                names = [name for name in {**settings, **record} if record.get(name) != settings.get(name)]
                raise ValueError(f"{self._path} belongs to a run with a different {names[0]}; choose another folder")
        if number == 0:
            self._log.append(settings)

    def get(self, id: str) -> dict[str, Any] | None:
        """Return the record of an id, or None."""
        return self._records.get(id)

    def add(self, id: str, record: Mapping[str, Any]) -> None:
        """Add a record. Call it from one thread at a time."""
        self._records[id] = {"id": id, **record}
        self._log.append(self._records[id])

    def close(self) -> None:
        """Close the file."""
        self._log.close()
