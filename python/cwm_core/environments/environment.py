"""Run episodes: take actions as text, and return observations as text and a reward."""

import contextlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from ..machines import Backend, Machine, SandboxBackend
from ..machines.shell import Shell
from .history import forget_history
from .profile import DEFAULT, Profile
from .rewards import RewardFunction, judge
from .submissions import apply_submission
from .tasks import Task
from .tools import ActionError, Call, Tool, parse_action, parse_create, parse_edit, tools_by_name

HOW_TO_DIFF = (
    "It must apply to the repository as it was at the start. "
    "`git add -A && git diff --cached $(git rev-list --max-parents=0 HEAD) > PATH` writes such a diff."
)
# Control characters that a terminal obeys: C0 without tab and line ends, delete, and C1.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class EpisodeStep:
    """A turn of an episode."""

    action: str
    """Message of the agent."""
    observation: str
    """Answer to the message."""
    exit_code: int | None
    """Exit code of the command, or None if no command ran."""
    seconds: float
    """Duration, in seconds."""


@dataclass(frozen=True)
class Transition:
    """Result of an action."""

    observation: str
    """Answer to the action."""
    reward: float
    """Reward at the end of the episode; 0 before."""
    done: bool
    """Whether the episode has ended."""
    role: str = "user"
    """Role of the observation's message: `tool: NAME`, or `user` if no tool was called."""
    exit_code: int | None = None
    """Exit code of the command, or None if no command ran."""
    malformed: bool = False
    """Whether the action was malformed."""
    reason: str = ""
    """Reason of the reward at the end of the episode; empty before."""


@dataclass
class _Episode:
    """State of an episode."""

    task: Task
    machine: Machine
    shell: Shell
    deadline: float
    tokens: int
    diff: bytes | None = None
    done: bool = False
    folder: str | None = None
    """Working directory of the shell, quoted; None means the root of the repository."""


class Environment:
    """A copy of a task's repository behind the tools bash, edit, create, and submit; a context manager.

    An episode ends at a message without a tool call, or when its turns, seconds, or context run out. The reward at the
    end is 1.0 if the submitted diff passes the task's tests on a fresh machine, else 0.0.

    Attributes:
        trajectory: The steps of the episode, which `dataclasses.asdict` turns into JSON types.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        profile: Profile = DEFAULT,
        *,
        count_tokens: Callable[[str], int] | None = None,
        tools: Iterable[Tool] = (),
        reward: RewardFunction = judge,
        **changes: Any,
    ) -> None:
        """Set up an environment without an episode.

        Args:
            backend: Opens the machines; None is `SandboxBackend()`.
            profile: Limits of an episode.
            count_tokens: Returns the number of tokens of a text. Without it, the length of the context is not limited.
            tools: Tools in addition to the built-in ones.
            reward: Judges the submitted diff.
            **changes: Fields of `profile` to replace, such as `max_turns=20`.

        Raises:
            TypeError: `profile` has no such field.
            ValueError: As `tools_by_name`.
        """
        self._tools, self._reward = tools_by_name(tools), reward
        self._backend = SandboxBackend() if backend is None else backend
        self._profile = replace(profile, **changes)
        self._count_tokens = count_tokens
        self._episode: _Episode | None = None
        self.trajectory: list[EpisodeStep] = []

    def start(self, task: Task) -> str:
        """Start an episode, ending an earlier one, and return the first observation, which is the task's prompt.

        The agent gets a git repository with one commit, because its history would show the solution.

        Raises:
            SandboxError: This host cannot run the machine.
            ValueError: The backend cannot open the task, or git fails.
            OSError: The task's folder cannot be copied.
        """
        self.close()
        machine = self._backend.open(task)
        try:
            forget_history(machine)
            deadline = time.monotonic() + self._profile.seconds
            self._episode = _Episode(task, machine, machine.shell(), deadline, self._tokens(task.prompt))
        except BaseException:
            machine.close()
            raise
        self.trajectory = []
        return task.prompt

    def clone(self) -> "Environment":
        """Return a new environment that continues from the current state of the episode.

        The copy has the same turns, time left, submission, and trajectory. It has a copy of the repository (and, in a
        container, of /tmp), and a shell with the same working directory, variables, functions, aliases, traps, and
        options. Processes and open files are not copied. With `SandboxBackend`, the repository has a new path, to which
        the working directory and variables change, but absolute paths in files do not.

        Raises:
            RuntimeError: No episode is running.
            SandboxError: The shell or the machine failed.
        """
        episode = self._running()
        state = episode.shell.state()
        machine = episode.machine.clone()
        try:
            shell = machine.shell()
            shell.restore(state.replace(episode.machine.root.encode(), machine.root.encode()))
        except BaseException:
            machine.close()
            raise
        other = Environment(
            self._backend,
            self._profile,
            count_tokens=self._count_tokens,
            tools=self._tools.values(),
            reward=self._reward,
        )
        folder = episode.folder and episode.folder.replace(episode.machine.root, machine.root)
        other._episode = replace(episode, machine=machine, shell=shell, folder=folder)
        other.trajectory = list(self.trajectory)
        return other

    def step(self, action_text: str) -> Transition:
        """Carry out the tool call of a message.

        Raises:
            RuntimeError: No episode is running.
            SandboxError: The machine was lost.
        """
        episode, profile = self._running(), self._profile
        started = time.monotonic()
        call, exit_code, malformed = None, None, False
        try:
            call = parse_action(action_text, self._tools)
            said, exit_code = self._call(episode, call) if call else ("", None)
        except ActionError as error:
            said, malformed = str(error), True
        left = profile.max_turns - len(self.trajectory) - 1
        seconds = max(episode.deadline - time.monotonic(), 0.0)
        observation = self._observation(said, f"{left} turns and {seconds:.0f} seconds are left")
        if call is None and not malformed:
            observation = ""
        episode.tokens += self._tokens(action_text) + self._tokens(observation)
        spent = left <= 0 or seconds <= 0 or episode.tokens >= profile.context_tokens
        episode.done = spent or (profile.malformed_ends if malformed else call is None)
        self.trajectory.append(EpisodeStep(action_text, observation, exit_code, time.monotonic() - started))
        role = f"tool: {call.tool}" if call and not malformed else "user"
        reward, reason = 0.0, ""
        if episode.done:
            episode.shell.close()
            verdict = self._reward(episode.task, episode.diff, self._backend, seconds=profile.command_seconds)
            reward, reason = verdict.value, verdict.reason
        return Transition(observation, reward, episode.done, role, exit_code, malformed, reason)

    def _running(self) -> _Episode:
        if self._episode is None or self._episode.done:
            raise RuntimeError("no episode is running: call start(task) first")
        return self._episode

    def _call(self, episode: _Episode, call: Call) -> tuple[str, int | None]:
        """Use a tool; return the text for the model, and the exit code of a command."""
        if call.tool == "bash":
            return self._bash(episode, call.content)
        if tool := self._tools.get(call.tool):
            try:
                return _shown(tool(episode.machine, call.content)), None
            except ValueError as error:
                return _shown(str(error)), None
        said = self._use_file(episode, call)
        root = episode.machine.root
        if episode.folder not in (None, root):
            said += f"\n[paths count from the repository's root, {root}; the shell is in {episode.folder}]"
        return said, None

    def _use_file(self, episode: _Episode, call: Call) -> str:
        machine = episode.machine
        if call.tool == "edit":
            edit = parse_edit(call.content)
            return machine.file("edit", edit.path, search=edit.search, replace=edit.replace)[1]
        if call.tool == "create":
            path, content = parse_create(call.content)
            return machine.file("create", path, content=content)[1]
        done, said = machine.file("submit", call.content.strip())
        if not done:
            return said
        episode.diff = said.encode(errors="surrogateescape")
        return self._submitted(episode.task, episode.diff)

    def _submitted(self, task: Task, diff: bytes) -> str:
        """Return the answer to a submission: whether it applies to a fresh machine, and which changes are ignored."""
        with contextlib.closing(self._backend.open(task)) as machine:
            applied = apply_submission(machine, task, diff, seconds=self._profile.command_seconds)
        parts = ["Submitted. Submit again to replace it; a message without a tool call ends the work."]
        if applied.problem:
            parts.append(f"It cannot be judged: {_shown(applied.problem.strip())}\n{HOW_TO_DIFF}")
        if applied.ignored:
            parts.append(f"Changes that do not count: {_shown(applied.notes())}.")
        return "\n".join(parts)

    def _bash(self, episode: _Episode, command: str) -> tuple[str, int | None]:
        profile = self._profile
        seconds = max(min(profile.command_seconds, episode.deadline - time.monotonic()), 0.0)
        result = episode.shell.run(
            command, seconds=seconds, output_bytes=profile.output_bytes, keep_shell=profile.keep_shell
        )
        notes = [_shown(result.output.decode(errors="backslashreplace").removesuffix("\n"))]
        if result.timed_out and not result.restarted:
            notes.append(f"[interrupted after {seconds:.3g} seconds, the time limit of a command]")
        if result.restarted:
            lost = f"the shell was lost: {result.restarted}"
            notes.append(f"[{lost}; a new one starts in {episode.machine.root}, without earlier variables]")
        elif result.exit_code:
            notes.append(f"[exit code {result.exit_code}]")
        episode.folder = result.folder
        return "\n".join(note for note in notes if note), result.exit_code

    def _observation(self, said: str, budget: str) -> str:
        """Return the observation, without the middle of `said` if it would be too long."""
        limit, kept = self._profile.observation_tokens, len(said)
        count = self._count_tokens or (lambda text: len(text.encode(errors="replace")))
        part = said
        while True:
            observation = f"<output>\n{part}\n</output>\n<budget>\n{budget}\n</budget>"
            tokens = count(observation)
            if tokens <= limit or kept == 0:
                return observation
            kept = kept * min(limit, tokens - 1) // tokens * 15 // 16
            head, tail = said[: kept - kept // 2], said[len(said) - kept // 2 :]
            part = f"{head}\n[... {len(said) - kept} characters left out ...]\n{tail}"

    def _tokens(self, text: str) -> int:
        return self._count_tokens(text) if self._count_tokens else 0

    def close(self) -> None:
        """End the episode's processes and remove its files. Closing again has no effect."""
        if self._episode is not None:
            self._episode.machine.close()
            self._episode = None

    def __enter__(self) -> Self:
        """Return the environment."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


def _shown(text: str) -> str:
    """Return text with control characters as escapes, so that terminals do not obey them."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
