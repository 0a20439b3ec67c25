"""Read the problems of an evaluation: JSON lines in the format of CruxEval."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from .._native import DamagedFileError
from ..support.jsonl import read_rows

_FIELDS: dict[str, tuple[type, ...]] = {
    "code": (str,),
    "input": (str,),
    "output": (str,),
    "id": (str, int),
    "ends": (bool,),
}
_KINDS = {"code": "a string", "input": "a string", "output": "a string", "id": "a string", "ends": "true or false"}


@dataclass(frozen=True)
class Problem:
    """A program, the arguments of a call of its function `f`, and the known facts about the result."""

    id: str
    """Unique id in the data set."""
    code: str
    """Source of a module that defines `f`."""
    input: str
    """Text between the parentheses of the call."""
    output: str | None = None
    """`repr` of the result; None if it is unknown."""
    ends: bool | None = None
    """True if the call ends within the limit of frames, for `evaluate_termination`; None if it is unknown."""

    @property
    def call(self) -> str:
        """Return the call as an expression."""
        return f"f({self.input})"


def read_problems(
    path: str | os.PathLike[str], *, limit: int | None = None, required: Sequence[str] = ("output",)
) -> list[Problem]:
    """Read problems from a file with one JSON object per line.

    Unknown fields and blank lines are ignored. A missing `id` is the line number, from 1.

    Args:
        path: The file.
        limit: Number of problems to read; None reads all.
        required: Fields that every problem needs besides `code` and `input`.

    Raises:
        DamagedFileError: A field is missing or has the wrong type, an `id` is not unique, or there are no problems. The
            message names file, line and field.
        OSError: The file cannot be read.
    """
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, row in read_rows(path):
        if limit is not None and len(problems) >= limit:
            break
        where = f"{os.fspath(path)}, line {number}"
        for field in ("code", "input", *required):
            if field not in row:
                raise DamagedFileError(f"{where}: {field!r} is missing")
        for field, types in _FIELDS.items():
            # isinstance would accept a bool as an int.
            if field in row and type(row[field]) not in types:
                raise DamagedFileError(f"{where}: {field!r} must be {_KINDS[field]}, got {json.dumps(row[field])[:60]}")
        id = str(row.get("id", number))
        if id in lines:
            raise DamagedFileError(f"{where}: 'id' {id!r} is already used in line {lines[id]}")
        lines[id] = number
        problems.append(Problem(id, row["code"], row["input"], row.get("output"), row.get("ends")))
    if not problems:
        raise DamagedFileError(f"{os.fspath(path)}: the file has no problems")
    return problems
