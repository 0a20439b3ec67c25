"""Programs to evaluate on: JSON lines in the form of CruxEval."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

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
    """A program, the arguments of a call of its function `f`, and what is known of the result."""

    id: str
    """Occurs once in a data set."""
    code: str
    """A module that defines `f`."""
    input: str
    """The text between the parentheses of the call."""
    output: str | None = None
    """The `repr` of the result."""
    ends: bool | None = None
    """Whether the call ends within the budget of steps, for `evaluate_termination`."""

    @property
    def call(self) -> str:
        """The call as an expression."""
        return f"f({self.input})"


def read_problems(
    path: str | os.PathLike[str], *, limit: int | None = None, required: Sequence[str] = ("output",)
) -> list[Problem]:
    """Read the first `limit` problems of a file (None: all), one JSON object a line.

    `code` and `input` must be there and the fields of `required`; `id` is the line's number from 1 where it is missing.
    Other fields and blank lines are ignored.

    Raises ValueError that names the file, the line and the field, also for an `id` that occurs twice and for a file
    without problems; OSError when it cannot be read.
    """
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, row in read_rows(path):
        if limit is not None and len(problems) >= limit:
            break
        where = f"{os.fspath(path)}, line {number}"
        for field in ("code", "input", *required):
            if field not in row:
                raise ValueError(f"{where}: {field!r} is missing")
        for field, types in _FIELDS.items():
            # A bool is an int to isinstance, and no id.
            if field in row and type(row[field]) not in types:
                raise ValueError(f"{where}: {field!r} must be {_KINDS[field]}, got {json.dumps(row[field])[:60]}")
        id = str(row.get("id", number))
        if id in lines:
            raise ValueError(f"{where}: 'id' {id!r} is that of line {lines[id]} too")
        lines[id] = number
        problems.append(Problem(id, row["code"], row["input"], row.get("output"), row.get("ends")))
    if not problems:
        raise ValueError(f"{os.fspath(path)}: no problems in it")
    return problems
