"""Machines of this machine: copied work trees in a sandbox, no Docker needed."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from ... import sandbox
from .. import files
from ..shell import Shell
from ..tasks import Task

FILES = Path(files.__file__).read_text(encoding="utf-8")
LIMITS = sandbox.Limits(
    seconds=2400.0, cpu_seconds=600, memory_bytes=4 << 30, processes=512, file_bytes=1 << 30, output_bytes=1 << 16
)
FILE_SECONDS = 60.0


class SandboxBackend:
    """Opens machines over copies of tasks' folders."""

    def __init__(
        self,
        kind: sandbox.Backend = "bubblewrap",
        *,
        limits: sandbox.Limits = LIMITS,
        readable: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Choose a backend of `sandbox`; `readable` paths (of interpreters, say) are shown read-only to commands."""
        self.kind, self.limits, self.readable = kind, limits, tuple(readable)

    def open(self, task: Task) -> "SandboxMachine":
        """A fresh copy of the task's folder, its `patch` applied; see `Backend.open`."""
        if task.folder is None:
            raise ValueError(f"task {task.name} has no folder: the sandbox cannot open Docker images")
        machine = SandboxMachine(self, task.folder)
        try:
            if task.patch:
                diff = task.patch.encode(errors="surrogateescape")
                result = machine.run("git apply --whitespace=nowarn -", stdin=diff, seconds=FILE_SECONDS)
                if result.exit_code != 0:
                    raise ValueError(f"the patch of task {task.name} does not apply: {result.stderr.decode()[-500:]}")
        except BaseException:
            machine.close()
            raise
        return machine


class SandboxMachine:
    """A copy of a folder, which commands may write in a sandbox; see `Machine`."""

    def __init__(self, backend: SandboxBackend, folder: str | os.PathLike[str]) -> None:
        """Copy the folder."""
        self._backend = backend
        self._shells: list[Shell] = []
        self.root = os.path.realpath(tempfile.mkdtemp(prefix="cwm-"))
        try:
            shutil.copytree(folder, self.root, symlinks=True, dirs_exist_ok=True)
        except BaseException:
            self.close()
            raise

    def shell(self) -> Shell:
        """See `Machine.shell`."""
        b = self._backend
        self._shells.append(Shell(self.root, limits=b.limits, backend=b.kind, readable=b.readable))
        return self._shells[-1]

    def run(self, command: str, *, stdin: bytes = b"", seconds: float) -> sandbox.Completed:
        """See `Machine.run`."""
        b = self._backend
        limits = replace(b.limits, seconds=min(seconds, b.limits.seconds))
        argv = ["bash", "-c", command]
        return sandbox.run(argv, stdin=stdin, limits=limits, folder=self.root, backend=b.kind, readable=b.readable)

    def file(self, tool: str, path: str, **arguments: str) -> tuple[bool, str]:
        """See `Machine.file`."""
        stdin = json.dumps({"tool": tool, "path": path, **arguments}).encode()
        limits = replace(self._backend.limits, seconds=FILE_SECONDS, output_bytes=4 * files.MAX_DIFF_BYTES)
        result = sandbox.run_python(FILES, stdin=stdin, limits=limits, folder=self.root, backend=self._backend.kind)
        if result.exit_code not in (0, 1) or not result.stdout:
            end = f"limit {result.exceeded}" if result.exceeded else f"exit code {result.exit_code or result.signal}"
            return False, f"{tool} failed ({end}): {result.stderr.decode(errors='replace')[-500:]}"
        return result.exit_code == 0, result.stdout.decode(errors="surrogateescape")

    def clone(self) -> Self:
        """See `Machine.clone`."""
        return type(self)(self._backend, self.root)

    def close(self) -> None:
        """See `Machine.close`."""
        for shell in self._shells:
            shell.close()
        self._shells.clear()
        sandbox.remove_tree(self.root)
