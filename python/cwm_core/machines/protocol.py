"""Define what environments and rewards need of a machine."""

import posixpath
from pathlib import Path
from typing import Protocol, Self

from . import process
from .applying import apply_diff
from .shell import Shell

PATCH_SECONDS = 60.0


class Workspace(Protocol):
    """A repository to open on a machine, and a patch to apply to it. Tasks of environments are workspaces."""

    @property
    def name(self) -> str:
        """Name of the workspace, for error messages."""
        ...

    @property
    def folder(self) -> Path | None:
        """Folder of the repository on this host, which is copied."""
        ...

    @property
    def image(self) -> str | None:
        """Docker image that holds the repository, or into which `folder` is copied."""
        ...

    @property
    def workdir(self) -> str | None:
        """Folder of the repository in `image`."""
        ...

    @property
    def patch(self) -> str:
        """Diff to apply when the machine opens; may be empty."""
        ...


class Machine(Protocol):
    """A copy of a repository and the processes that work on it. Use it from one thread at a time."""

    root: str
    """Path of the repository, as commands see it."""

    def shell(self) -> Shell:
        """Start a persistent shell in `root`. `close` ends it."""
        ...

    def run(
        self, command: str, *, stdin: bytes = b"", seconds: float, output_bytes: int | None = None
    ) -> process.Completed:
        """Run a bash command in `root`, then end every process that it started.

        Args:
            command: The command.
            stdin: Its standard input.
            seconds: Time limit, in seconds.
            output_bytes: Bytes of each output stream to keep. Defaults to the backend's limit.
        """
        ...

    def file(self, tool: str, path: str, **arguments: str | None) -> tuple[bool, str]:
        """Use a file tool and return whether it succeeded, and its text; see `files.use`."""
        ...

    def clone(self) -> Self:
        """Return a new machine with a copy of the current repository. Processes are not copied."""
        ...

    def close(self) -> None:
        """End all processes and remove all files. Closing again has no effect."""
        ...


class Backend(Protocol):
    """Opens machines. To add a backend, implement `open`, and the methods of `Machine` for its result."""

    def open(self, task: Workspace) -> Machine:
        """Open a fresh machine with the task's repository, and apply the task's `patch`.

        Raises:
            SandboxError: This host cannot run the machine.
            ValueError: The backend cannot open such a task, or its patch does not apply.
            OSError: The folder cannot be copied.
        """
        ...


def outside_of_repositories(root: str) -> dict[str, str]:
    """Return the environment variables that keep git from using a repository in a parent folder of `root`."""
    return {"GIT_CEILING_DIRECTORIES": posixpath.dirname(root)}


def apply_patch(machine: Machine, task: Workspace) -> None:
    """Apply the task's `patch`, if it has one. Raise ValueError if it does not apply."""
    if not task.patch:
        return
    done = apply_diff(machine, task.patch, seconds=PATCH_SECONDS)
    if done.exit_code != 0:
        said = done.stderr[-500:].decode(errors="replace")
        raise ValueError(f"the patch of task {task.name} does not apply: {said}")
