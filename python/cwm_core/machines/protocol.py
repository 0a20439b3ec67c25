"""What an environment and a reward need of the place where commands run."""

import posixpath
from pathlib import Path
from typing import Protocol, Self

from . import process
from .applying import apply_diff
from .shell import Shell

PATCH_SECONDS = 60.0


class Workspace(Protocol):
    """What a backend opens: a repository, and a patch to apply to it. A task of an environment is one."""

    @property
    def name(self) -> str:
        """Names the workspace in errors."""
        ...

    @property
    def folder(self) -> Path | None:
        """The repository's folder on this machine, which is copied."""
        ...

    @property
    def image(self) -> str | None:
        """The Docker image that holds the repository, or into which `folder` is copied."""
        ...

    @property
    def workdir(self) -> str | None:
        """The repository's folder in `image`."""
        ...

    @property
    def patch(self) -> str:
        """A diff to apply before anything runs; empty for none."""
        ...


class Machine(Protocol):
    """One task's repository, and the processes that work on it. Used by one thread at a time."""

    root: str
    """The repository's path as commands see it."""

    def shell(self) -> Shell:
        """A new persistent shell at `root`; `close` ends it."""
        ...

    def run(
        self, command: str, *, stdin: bytes = b"", seconds: float, output_bytes: int | None = None
    ) -> process.Completed:
        """Run a bash command of its own at `root`, and end every process that it started.

        `output_bytes` is what is kept of each stream; None: what the backend's limits say.
        """
        ...

    def file(self, tool: str, path: str, **arguments: str | None) -> tuple[bool, str]:
        """Run a file tool of `files.py`: whether it was done, and what it said (for submit, the diff)."""
        ...

    def clone(self) -> Self:
        """A machine of its own with a copy of the repository as it is now; processes are not copied."""
        ...

    def close(self) -> None:
        """End its processes and remove its files. Safe to call again."""
        ...


class Backend(Protocol):
    """Opens machines."""

    def open(self, task: Workspace) -> Machine:
        """A fresh machine with the task's repository, its `patch` applied.

        Raises `sandbox.SandboxError` where that is not possible here, ValueError for a task that this backend cannot
        open or whose patch does not apply, OSError when the folder cannot be copied.
        """
        ...


def outside_of_repositories(root: str) -> dict[str, str]:
    """Return the variables that keep git from taking a repository around a machine's for the machine's own."""
    return {"GIT_CEILING_DIRECTORIES": posixpath.dirname(root)}


def apply_patch(machine: Machine, task: Workspace) -> None:
    """Apply the task's `patch`, if it has one. Raises ValueError where it does not apply."""
    if not task.patch:
        return
    done = apply_diff(machine, task.patch, seconds=PATCH_SECONDS)
    if done.exit_code != 0:
        said = done.stderr[-500:].decode(errors="replace")
        raise ValueError(f"the patch of task {task.name} does not apply: {said}")
