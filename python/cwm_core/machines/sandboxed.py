"""Run machines as copies of folders in a sandbox of this host, without Docker."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from . import files, process
from .protocol import Workspace, apply_patch, outside_of_repositories
from .shell import ARGV, Shell

LIMITS = process.Limits(
    seconds=2400.0, cpu_seconds=600, memory_bytes=4 << 30, processes=512, file_bytes=1 << 30, output_bytes=1 << 16
)


class SandboxBackend:
    """Opens machines on copies of the tasks' folders."""

    def __init__(
        self,
        sandbox: process.Sandbox = "bubblewrap",
        *,
        limits: process.Limits = LIMITS,
        readable: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Choose the kind of sandbox. Commands can read the paths `readable`, such as those of interpreters."""
        self.sandbox, self.limits, self.readable = sandbox, limits, tuple(readable)

    def open(self, task: Workspace) -> "SandboxMachine":
        """Copy the task's folder and apply its `patch`; see `Backend.open`."""
        if task.folder is None:
            raise ValueError(f"task {task.name} has no folder: the sandbox cannot open Docker images")
        machine = SandboxMachine(self, task.folder)
        try:
            apply_patch(machine, task)
        except BaseException:
            machine.close()
            raise
        return machine


class SandboxMachine:
    """A copy of a folder, in which sandboxed commands can write; see `Machine`."""

    def __init__(self, backend: SandboxBackend, folder: str | os.PathLike[str]) -> None:
        """Copy the folder."""
        self._backend = backend
        self._shells: list[Shell] = []
        self.root = os.path.realpath(tempfile.mkdtemp(prefix="cwm-"))
        self._env = outside_of_repositories(self.root)
        try:
            shutil.copytree(folder, self.root, symlinks=True, dirs_exist_ok=True)
        except BaseException:
            self.close()
            raise

    def shell(self) -> Shell:
        """See `Machine.shell`."""
        b = self._backend

        def start() -> process.Process:
            return process.Process(
                ARGV, folder=self.root, limits=b.limits, sandbox=b.sandbox, env=self._env, readable=b.readable
            )

        self._shells.append(Shell(start, output_bytes=b.limits.output_bytes))
        return self._shells[-1]

    def run(
        self, command: str, *, stdin: bytes = b"", seconds: float, output_bytes: int | None = None
    ) -> process.Completed:
        """See `Machine.run`."""
        b = self._backend
        kept = b.limits.output_bytes if output_bytes is None else output_bytes
        limits = replace(b.limits, seconds=min(seconds, b.limits.seconds), output_bytes=kept)
        argv = ["bash", "-c", command]
        return process.run(
            argv,
            stdin=stdin,
            limits=limits,
            folder=self.root,
            sandbox=b.sandbox,
            env=self._env,
            readable=b.readable,
        )

    def file(self, tool: str, path: str, **arguments: str | None) -> tuple[bool, str]:
        """See `Machine.file`."""
        return files.use(self.run, self.root, tool, path, **arguments)

    def clone(self) -> Self:
        """See `Machine.clone`."""
        return type(self)(self._backend, self.root)

    def close(self) -> None:
        """See `Machine.close`."""
        for shell in self._shells:
            shell.close()
        self._shells.clear()
        process.remove_tree(self.root)
