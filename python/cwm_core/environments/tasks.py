"""Define tasks of agents, and read and write files of tasks."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .._native import DamagedFileError
from ..support.files import replacing
from ..support.jsonl import loads, read_lines


@dataclass(frozen=True)
class Task:
    """A repository, a request, and the tests that decide the reward.

    The repository is `folder`, which is copied for each episode, or the folder `workdir` of the Docker image `image`.
    Diffs have the format of `git apply`, with surrogates for bytes that are not UTF-8 (`errors="surrogateescape"`).
    """

    name: str
    """Unique name, which is also a valid file name."""
    prompt: str
    """Request to the agent."""
    folder: Path | None = None
    """Folder of the repository on this host."""
    image: str | None = None
    """Docker image. If None, `folder` is copied into the backend's image."""
    workdir: str | None = None
    """Folder of the repository in the image."""
    patch: str = ""
    """Diff to apply before the agent starts, such as the change that broke the repository."""
    test_command: str = "python -m pytest -q"
    """Bash command that runs in the root of a fresh repository with `patch` and the submitted diff applied. If tests
    are named, or the command contains "pytest", the report of pytest decides. Otherwise, exit code 0 is success, which
    code under test can forge by ending the process."""
    test_files: tuple[str, ...] | None = None
    """Arguments to append to `test_command`. If None, the files of the named tests. An empty tuple keeps the command
    that found the tests, so that pytest uses the same root and configuration."""
    test_patch: str = ""
    """Diff of tests that the agent does not see, applied after the submitted diff."""
    fail_to_pass: tuple[str, ...] = ()
    """Names of tests (pytest's node ids) that fail before the submission and must pass after it."""
    pass_to_pass: tuple[str, ...] = ()
    """Names of tests that pass before the submission and must still pass after it."""
    protected: tuple[str, ...] = ()
    """Paths in the repository that no submission may change, such as tests, in addition to those that
    `protection.Rules` refuse anyway."""
    solution: str = ""
    """Diff that solves the task."""
    kind: str = ""
    """How the task was made, such as "swap-arguments" or "issue-fix"."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin, such as repository, commit, license, and seed."""

    def to_json(self) -> str:
        """Return the task as one line of JSON."""
        return json.dumps(asdict(self) | {"folder": None if self.folder is None else os.fspath(self.folder)})

    @classmethod
    def from_json(cls, line: str | bytes) -> "Task":
        """Read a task from the JSON of `to_json`. Raise ValueError that names a missing, unknown, or mistyped field."""
        values = loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"a task must be a JSON object, got {type(values).__name__}")
        if unknown := values.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"a task has no field {min(unknown)!r}")
        for name in ("fail_to_pass", "pass_to_pass", "protected"):
            if not isinstance(values.get(name, []), list) or not all(isinstance(x, str) for x in values.get(name, [])):
                raise ValueError(f"a task's {name} must be a list of strings")
            values[name] = tuple(values.get(name, ()))
        for name in {"name", "prompt"} | {f.name for f in fields(cls) if f.type is str} & values.keys():
            if not isinstance(values.get(name), str):
                raise ValueError(f"a task's {name} must be a string")
        if values.get("test_files") is not None:
            if not isinstance(values["test_files"], list) or not all(isinstance(x, str) for x in values["test_files"]):
                raise ValueError("a task's test_files must be a list of strings or null")
            values["test_files"] = tuple(values["test_files"])
        folder = values.get("folder")
        return cls(**values | {"folder": None if folder is None else Path(folder)})


def write_tasks(path: str | os.PathLike[str], tasks: Iterable[Task]) -> None:
    """Write tasks to a JSON Lines file, all or none. Raise as `support.files.replacing`."""
    with replacing(path) as file:
        file.writelines(f"{task.to_json()}\n".encode() for task in tasks)


def read_tasks(path: str | os.PathLike[str]) -> Iterator[Task]:
    """Read tasks from a JSON Lines file. Raise DamagedFileError that names an invalid line."""
    for number, line in read_lines(path):
        try:
            yield Task.from_json(line)
        except ValueError as error:
            raise DamagedFileError(f"{os.fspath(path)}, line {number}: {error}") from None
