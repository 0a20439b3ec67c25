"""The environment that a model acts in: text actions in, text observations and a reward out."""

import time
from dataclasses import dataclass, field
from typing import Any, Self

from .backends import Backend, Machine, SandboxBackend
from .rewards import judge
from .shell import Shell
from .tasks import Task
from .tools import ActionError, Call, parse_action, parse_create, parse_edit


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

    An episode ends with a message without a tool call, after `max_turns`, or when its `seconds` are
    spent. The reward comes then, 0 until: 1.0 if the submitted diff passes the task's tests in
    a fresh sandbox, else 0.0. `trajectory` holds every step, ready for ``dataclasses.asdict`` and JSON.

    The defaults of turns and times are those of the Code World Model report's software engineering environment.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        seconds: float = 2400.0,
        command_seconds: float = 120.0,
        max_turns: int = 128,
    ) -> None:
        """Set up; `backend` None is `SandboxBackend()`, `seconds` are an episode's."""
        self._backend = SandboxBackend() if backend is None else backend
        self._seconds, self._command_seconds, self._max_turns = seconds, command_seconds, max_turns
        self._task: Task | None = None
        self._machine: Machine | None = None
        self._shell: Shell | None = None
        self.trajectory: list[Step] = []

    def start(self, task: Task) -> str:
        """Begin an episode: the first observation, which is the task's prompt. Ends an earlier episode.

        Raises as `Backend.open`.
        """
        self.close()
        try:
            self._machine = self._backend.open(task)
            self._shell = self._machine.shell()
        except BaseException:
            self.close()
            raise
        self._task, self._diff, self._done = task, None, False
        self._deadline = time.monotonic() + self._seconds
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
            verdict = judge(self._task, self._diff, self._backend, seconds=self._command_seconds)
            reward, info["test"] = verdict.value, verdict.reason
        return Transition(observation, reward, self._done, info)

    def _call(self, call: Call) -> tuple[str, int | None]:
        """Run a tool: what the model is told, and the exit code if it was a command."""
        if call.tool == "bash":
            return self._bash(call.content)
        if call.tool == "edit":
            edit = parse_edit(call.content)
            return self._machine.file("edit", edit.path, search=edit.search, replace=edit.replace)[1], None
        if call.tool == "create":
            path, content = parse_create(call.content)
            return self._machine.file("create", path, content=content)[1], None
        done, said = self._machine.file("submit", call.content.strip())
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
            notes.append(f"[{lost}; a new one starts in {self._machine.root}, without earlier variables]")
        elif result.exit_code:
            notes.append(f"[exit code {result.exit_code}]")
        return "\n".join(note for note in notes if note), result.exit_code

    def close(self) -> None:
        """End the episode's processes and remove its work tree. Safe to call again."""
        if self._machine is not None:
            self._machine.close()
            self._machine = self._shell = None

    def __enter__(self) -> Self:
        """The environment itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()
