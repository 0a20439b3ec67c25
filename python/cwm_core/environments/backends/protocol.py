"""What an environment and a reward need of the place where commands run."""

from typing import Protocol, Self

from ... import sandbox
from ..shell import Shell
from ..tasks import Task


class Machine(Protocol):
    """One task's repository, and the processes that work on it."""

    root: str
    """The repository's path as commands see it."""

    def shell(self) -> Shell:
        """A new persistent shell at `root`; `close` ends it."""
        ...

    def run(self, command: str, *, stdin: bytes = b"", seconds: float) -> sandbox.Completed:
        """Run a bash command of its own at `root`, and end every process that it started."""
        ...

    def file(self, tool: str, path: str, **arguments: str) -> tuple[bool, str]:
        """Run a file tool of `files.py`: whether it was done, and what it said (for submit, the diff)."""
        ...

    def clone(self) -> Self:
        """A machine of its own with a copy of the files as they are now; processes are not copied."""
        ...

    def close(self) -> None:
        """End its processes and remove its files. Safe to call again."""
        ...


class Backend(Protocol):
    """Opens machines."""

    def open(self, task: Task) -> Machine:
        """A fresh machine with the task's repository, its `patch` applied.

        Raises `sandbox.SandboxError` where that is not possible here, ValueError for a task that this backend cannot
        open or whose patch does not apply, OSError when the folder cannot be copied.
        """
        ...
