"""Files of JSON objects, one a line, that others wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers, from 1; empty lines are passed over.

    Raises ValueError that names the line of anything else, OSError when the file cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{os.fspath(path)}, line {number}: not a JSON object")
            yield number, row
