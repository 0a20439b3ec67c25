"""What an agent is asked to do, and which tests tell whether it did."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..support.files import replacing
from ..support.jsonl import loads, read_lines


@dataclass(frozen=True)
class Task:
    """A repository to work on, a request, and the tests that decide.

    The repository is `folder`, copied for each episode, or the folder `workdir` of the Docker image `image`. Diffs
    are as `git apply` reads them; a byte that is not UTF-8 stands as a surrogate (``errors="surrogateescape"``).
    """

    name: str
    """Unique among tasks, and a valid file name."""
    prompt: str
    folder: Path | None = None
    image: str | None = None
    """None: the backend's own image, with `folder` copied into it."""
    workdir: str | None = None
    patch: str = ""
    """Applied before the agent starts: what broke the repository."""
    test_command: str = "python -m pytest -q"
    """Run with bash at the root of a fresh repository with `patch` and the submitted diff applied. Where tests are
    named, or where it says "pytest", it is pytest's command, and success is what its report says; else exit code 0 is
    success, which code under test can bring about by ending the process."""
    test_files: tuple[str, ...] | None = None
    """Appended to `test_command`. None: the files that the named tests are in; (): nothing, so that the command is the
    one that found the tests, and pytest finds the same root and configuration."""
    test_patch: str = ""
    """A diff of tests that the agent does not see: applied after the submitted one."""
    fail_to_pass: tuple[str, ...] = ()
    """pytest's names of tests that fail before, and must pass after."""
    pass_to_pass: tuple[str, ...] = ()
    """Tests that pass before, and must go on to."""
    protected: tuple[str, ...] = ()
    """Paths in the repository, such as its tests, that no submission changes, besides those that none may change
    anyway (`protection.Rules`)."""
    solution: str = ""
    """A diff that solves it."""
    kind: str = ""
    """How it was made, such as "swap-arguments" or "issue-fix"."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it is from: repository, commit, licence, seed."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self) | {"folder": None if self.folder is None else os.fspath(self.folder)})

    @classmethod
    def from_json(cls, line: str | bytes) -> "Task":
        """Read what `to_json` wrote. Raises ValueError that names a missing, unknown or mistyped field."""
        values = loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"a task is a JSON object, not {type(values).__name__}")
        if unknown := values.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"a task has no field {min(unknown)!r}")
        for name in ("fail_to_pass", "pass_to_pass", "protected"):
            if not isinstance(values.get(name, []), list) or not all(isinstance(x, str) for x in values.get(name, [])):
                raise ValueError(f"a task's {name} is a list of strings")
            values[name] = tuple(values.get(name, ()))
        for name in {"name", "prompt"} | {f.name for f in fields(cls) if f.type is str} & values.keys():
            if not isinstance(values.get(name), str):
                raise ValueError(f"a task's {name} is a string")
        if values.get("test_files") is not None:
            if not isinstance(values["test_files"], list) or not all(isinstance(x, str) for x in values["test_files"]):
                raise ValueError("a task's test_files is a list of strings or null")
            values["test_files"] = tuple(values["test_files"])
        folder = values.get("folder")
        return cls(**values | {"folder": None if folder is None else Path(folder)})


def write_tasks(path: str | os.PathLike[str], tasks: Iterable[Task]) -> None:
    """Write tasks as JSONL, all of them or none. Raises as `support.files.replacing`."""
    with replacing(path) as file:
        file.writelines(f"{task.to_json()}\n".encode() for task in tasks)


def read_tasks(path: str | os.PathLike[str]) -> Iterator[Task]:
    """Read a file of JSON lines, as `read_rows` takes it. Raises ValueError that names the line."""
    for number, line in read_lines(path):
        try:
            yield Task.from_json(line)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
