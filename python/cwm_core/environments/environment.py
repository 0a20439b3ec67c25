"""Tasks, and the environment that a model acts in: text actions in, text observations and a reward out."""

import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from .. import sandbox
from . import files
from .shell import Shell
from .tools import ActionError, Call, parse_action, parse_create, parse_edit

FILES = Path(files.__file__).read_text(encoding="utf-8")
SHELL_LIMITS = sandbox.Limits(
    seconds=2400.0, cpu_seconds=600, memory_bytes=4 << 30, processes=512, file_bytes=1 << 30, output_bytes=1 << 16
)


@dataclass(frozen=True)
class Task:
    """A repository to work on.

    `test_command` runs with bash at the root of a fresh copy of `folder` with the submitted diff applied; exit code
    0 is success. `protected` are paths in the repository (its tests) that are put back as they were before that.
    """

    folder: Path
    prompt: str
    test_command: str
    protected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One turn: what the model wrote, what it was told, the command's exit code if one ran, and seconds spent."""

    action: str
    observation: str
    exit_code: int | None
    seconds: float


@dataclass(frozen=True)
class Transition:
    """What follows an action.

    `info` holds `role` (of the observation's message), `exit_code` and, at the end, `test`: why the reward is what
    it is.
    """

    observation: str
    reward: float
    done: bool
    info: dict[str, Any] = field(default_factory=dict)


class Environment:
    """A copy of a task's repository behind the tools bash, edit, create and submit; a context manager.

    An episode ends with a message without a tool call, after `max_turns`, or when the sandbox's time
    (`limits.seconds`) is spent. The reward comes then, 0 until: 1.0 if the submitted diff passes the task's tests in
    a fresh sandbox, else 0.0. `trajectory` holds every step, ready for ``dataclasses.asdict`` and JSON.

    The defaults of turns and times are those of the Code World Model report's software engineering environment.
    """

    def __init__(
        self,
        *,
        backend: sandbox.Backend = "bubblewrap",
        limits: sandbox.Limits = SHELL_LIMITS,
        command_seconds: float = 120.0,
        max_turns: int = 128,
        readable: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Set up; `readable` paths (of interpreters, say) are shown read-only to commands and tests."""
        self._backend, self._limits, self._readable = backend, limits, readable
        self._command_seconds, self._max_turns = command_seconds, max_turns
        self._task: Task | None = None
        self._folder: str | None = None
        self._shell: Shell | None = None
        self.trajectory: list[Step] = []

    def start(self, task: Task) -> str:
        """Begin an episode: the first observation, which is the task's prompt. Ends an earlier episode.

        Raises `sandbox.SandboxError` where the backend is not possible, OSError when the folder cannot be copied.
        """
        self.close()
        self._folder = tempfile.mkdtemp(prefix="cwm-")
        try:
            shutil.copytree(task.folder, self._folder, symlinks=True, dirs_exist_ok=True)
            self._shell = Shell(self._folder, limits=self._limits, backend=self._backend, readable=self._readable)
        except BaseException:
            self.close()
            raise
        self._task, self._diff, self._done = task, None, False
        self._deadline = time.monotonic() + self._limits.seconds
        self.trajectory = []
        return task.prompt

    def step(self, action_text: str) -> Transition:
        """Do what a message asks for. Raises RuntimeError before `start` and after the episode's end."""
        if self._shell is None or self._done:
            raise RuntimeError("no episode is running: call start(task) first")
        started = time.monotonic()
        call, exit_code = None, None
        try:
            call = parse_action(action_text)
            said, exit_code = self._call(call) if call else ("", None)
            role = f"tool: {call.tool}" if call else "user"
        except ActionError as error:
            said, role, call = str(error), "user", Call("", "")
        left = self._max_turns - len(self.trajectory) - 1
        self._done = call is None or left <= 0 or time.monotonic() >= self._deadline
        seconds = max(self._deadline - time.monotonic(), 0.0)
        budget = f"<budget>\n{left} turns and {seconds:.0f} seconds are left\n</budget>"
        observation = f"<output>\n{said}\n</output>\n{budget}" if call else ""
        self.trajectory.append(Step(action_text, observation, exit_code, time.monotonic() - started))
        info: dict[str, Any] = {"role": role, "exit_code": exit_code}
        reward = 0.0
        if self._done:
            self._shell.close()
            reward, info["test"] = self._reward()
        return Transition(observation, reward, self._done, info)

    def _call(self, call: Call) -> tuple[str, int | None]:
        """Run a tool: what the model is told, and the exit code if it was a command."""
        if call.tool == "bash":
            return self._bash(call.content)
        if call.tool == "edit":
            edit = parse_edit(call.content)
            return self._file("edit", edit.path, search=edit.search, replace=edit.replace)[1], None
        if call.tool == "create":
            path, content = parse_create(call.content)
            return self._file("create", path, content=content)[1], None
        done, said = self._file("submit", call.content.strip())
        if not done:
            return said, None
        self._diff = said.encode(errors="surrogateescape")
        return "Submitted. Submit again to replace it; a message without a tool call ends the work.", None

    def _bash(self, command: str) -> tuple[str, int | None]:
        seconds = max(min(self._command_seconds, self._deadline - time.monotonic()), 0.0)
        result = self._shell.run(command, seconds=seconds)
        notes = [result.output.decode(errors="backslashreplace").removesuffix("\n")]
        if result.timed_out:
            notes.append(f"[interrupted after {seconds:.3g} seconds, the time limit of a command]")
        if result.restarted:
            lost = f"the shell was lost: {result.restarted}"
            notes.append(f"[{lost}; a new one starts in {self._folder}, without earlier variables]")
        elif result.exit_code:
            notes.append(f"[exit code {result.exit_code}]")
        return "\n".join(note for note in notes if note), result.exit_code

    def _file(self, tool: str, path: str, **request: str) -> tuple[bool, str]:
        """Run a file tool in the sandbox: whether it was done, and what it said (for submit, the diff)."""
        stdin = json.dumps({"tool": tool, "path": path, **request}).encode()
        limits = replace(self._limits, seconds=self._command_seconds, output_bytes=4 * files.MAX_DIFF_BYTES)
        result = sandbox.run_python(FILES, stdin=stdin, limits=limits, folder=self._folder, backend=self._backend)
        if result.exit_code not in (0, 1) or not result.stdout:
            end = f"limit {result.exceeded}" if result.exceeded else f"exit code {result.exit_code or result.signal}"
            return False, f"{tool} failed ({end}): {result.stderr.decode(errors='replace')[-500:]}"
        return result.exit_code == 0, result.stdout.decode(errors="surrogateescape")

    def _reward(self) -> tuple[float, str]:
        """Reward of the submitted diff, and why."""
        if self._diff is None:
            return 0.0, "nothing was submitted"
        folder = tempfile.mkdtemp(prefix="cwm-")
        try:
            shutil.copytree(self._task.folder, folder, symlinks=True, dirs_exist_ok=True)
            original = os.path.realpath(self._task.folder)
            # In the sandbox, since a diff may hold links that lead out of the tree.
            put_back = "".join(
                f"rm -rf -- {there} && {{ test ! -e {here} || cp -a --parents -- {name} {root}; }}\n"
                for name, here, there, root in (
                    map(shlex.quote, (p, f"{original}/{p}", f"{folder}/{p}", folder)) for p in self._task.protected
                )
            )
            steps = {
                "the diff does not apply": "git apply --whitespace=nowarn -",
                "the protected paths could not be put back": f"set -e; cd {shlex.quote(original)}\n{put_back}",
                "the tests failed": self._task.test_command,
            }
            for failure, command in steps.items():
                result = sandbox.run(
                    ["bash", "-c", command],
                    stdin=self._diff if command.startswith("git apply") else b"",
                    limits=replace(self._limits, seconds=self._command_seconds),
                    folder=folder,
                    backend=self._backend,
                    readable=(*self._readable, original),
                )
                if result.exit_code != 0:
                    end = f"limit {result.exceeded}" if result.exceeded else f"exit code {result.exit_code}"
                    tail = (result.stdout + result.stderr)[-2000:].decode(errors="backslashreplace")
                    return 0.0, f"{failure} ({end}): {tail}"
            return 1.0, "the tests passed"
        finally:
            sandbox.remove_tree(folder)

    def close(self) -> None:
        """End the episode's processes and remove its work tree. Safe to call again."""
        if self._shell is not None:
            self._shell.close()
            self._shell = None
        if self._folder is not None:
            sandbox.remove_tree(self._folder)
            self._folder = None

    def __enter__(self) -> Self:
        """The environment itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()
