"""Run commands in a persistent shell, which keeps its state between commands and survives them."""

import re
import secrets
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from . import process, supervisor

# Interactive, because only then does an interrupt return bash to its next line instead of ending it. Descriptor 3, the
# original standard error, carries exit codes, so that no output of a command can look like one. Descriptor 4, the
# original standard output, carries the output of commands and a mark at its end. Output of the shell itself between
# commands, under `set -x`, `set -v`, traps, and PROMPT_COMMAND, is discarded.
ARGV = ("bash", "--norc", "--noprofile", "--noediting", "-i")
# With job control, bash reports which signal ended a program.
SETUP = "PS1= PS2= PROMPT_COMMAND=; set +o history; set +H; set -m; exec 3>&2 4>&1 >/dev/null 2>&1\n"
INTERRUPT_SECONDS = 1.0  # seconds for a command to end after an interrupt, and again after a kill
# Printed by an interactive bash without a terminal after a signal ended a program.
NO_TERMINAL = re.compile(rb"^bash: \[\d+: \d+ \(-?\d+\)\] tcsetattr: .*\n", re.MULTILINE)
STATE_SECONDS = 30.0
STATE_BYTES = 8 << 20
ANSWER_BYTES = 32 << 10  # kept of descriptor 3: more than an exit code and the longest quoted path
# Aliases and options come last, because `set -e` would end the shell at the first read-only variable. Options are
# listed by name, because a bash without line editing ends at `set +o emacs`.
OPTIONS = (
    "allexport errexit errtrace functrace ignoreeof keyword noclobber noglob nounset physical pipefail verbose xtrace"
)
STATE = (
    "{ declare -p; shopt -p; declare -f; declare -xF; trap -p; "
    'printf \'builtin cd -- %q; OLDPWD=%q\\n\' "$PWD" "${OLDPWD-}"; alias -p; '
    f"shopt -po {OPTIONS}; }} 2>/dev/null"
)


class ShellProgram(Protocol):
    """The running bash of a shell: a `Process`, or an equivalent in a container."""

    @property
    def ended(self) -> bool:
        """Whether `exchange` has seen the shell end."""
        ...

    def exchange(
        self,
        data: bytes,
        on_stdout: Callable[[bytes], Any],
        on_stderr: Callable[[bytes], Any],
        *,
        seconds: float,
        until: Callable[[], bool],
    ) -> object:
        """Write `data` and pass on output until `until()` is true, the program ends, or `seconds` have passed."""
        ...

    def order(self, order: bytes) -> None:
        """Interrupt all processes (`supervisor.INTERRUPT`), or kill all but the shell (`KILL_OTHERS`)."""
        ...

    def outcome(self) -> process.ProgramEnd | None:
        """Return how the program ended once `ended` is true; None if it is unknown."""
        ...

    def close(self) -> None:
        """End the program and all processes that it started."""
        ...


@dataclass(frozen=True)
class ShellResult:
    """Result of a command."""

    output: bytes
    """Output, without its middle if it is too long."""
    exit_code: int | None
    """Exit code; None if the shell itself ended."""
    timed_out: bool
    """Whether the command exceeded its time limit."""
    restarted: str | None
    """Reason that a new shell was started, without the old working directory and variables; else None."""
    seconds: float
    """Duration, in seconds."""
    folder: str | None = None
    """Working directory after the command, quoted for a shell; None if the shell is new."""


class Shell:
    """A persistent bash, whose working directory and variables survive between calls and interrupts.

    Redirections of the shell itself with `exec` last until the end of the command.
    """

    def __init__(self, start: Callable[[], ShellProgram], *, output_bytes: int = 1 << 16) -> None:
        """Start the shell.

        Args:
            start: Runs `ARGV` where commands are to run; called again when the shell is lost.
            output_bytes: Bytes of a command's output to keep by default.
        """
        self._start, self._output_bytes = start, output_bytes
        self._restart()

    def _restart(self) -> None:
        self._program = self._start()
        self._pending = SETUP.encode()

    def run(
        self, command: str, *, seconds: float, output_bytes: int | None = None, keep_shell: bool = True
    ) -> ShellResult:
        """Run a command.

        After `seconds`, the command and all background processes are interrupted, and then killed.

        Args:
            command: The command, of one or more lines.
            seconds: Time limit, in seconds.
            output_bytes: Bytes of output to keep.
            keep_shell: If false, the shell ends when the command exceeds `seconds` or `output_bytes`.

        Raises:
            SandboxError: The shell ended, and a new one cannot be started.
        """
        started = time.monotonic()
        limit = self._output_bytes if output_bytes is None else output_bytes
        nonce = secrets.token_hex(8)
        output, answers = _Output(limit, nonce.encode()), bytearray()
        answer = re.compile(rb"%s (\d+) (.*)\n" % nonce.encode())

        def collect(chunk: bytes) -> None:
            answers.extend(chunk)
            del answers[:-ANSWER_BYTES]

        def answered() -> bool:
            return output.marked and answer.search(answers) is not None

        def flooded() -> bool:
            return not keep_shell and output.flooded

        quoted = shlex.quote(command.replace("\0", ""))
        answering = f'builtin printf \'{nonce} %d %q\\n\' "$?" "$PWD" >&3; builtin printf {nonce} >&4'
        script = f"eval {quoted} </dev/null >&4 2>&4 3>&- 4>&-\n{answering}\n"
        data, self._pending = self._pending + script.encode(errors="replace"), b""
        program = self._program
        program.exchange(data, output.add, collect, seconds=seconds, until=lambda: answered() or flooded())
        timed_out = not (answered() or flooded() or program.ended)
        for order in (supervisor.INTERRUPT, supervisor.KILL_OTHERS) if timed_out and keep_shell else ():
            if not answered() and not program.ended:
                program.order(order)
                program.exchange(b"", output.add, collect, seconds=INTERRUPT_SECONDS, until=answered)
        restarted = exit_code = folder = None
        if flooded():
            restarted = f"a command wrote more than {limit} bytes"
        elif match := answer.search(answers):
            exit_code, folder = int(match[1]), match[2].decode(errors="replace")
        elif timed_out and not keep_shell:
            restarted = f"a command took longer than {seconds:.3g} seconds"
        else:
            restarted = _reason(program, timed_out)
        if restarted:
            program.close()
            self._restart()
        said = NO_TERMINAL.sub(b"", output.value())
        return ShellResult(said, exit_code, timed_out, restarted, time.monotonic() - started, folder)

    def state(self) -> bytes:
        """Return the state for `restore`: working directory, variables, functions, aliases, traps, and options.

        Processes and open files are not included.

        Raises:
            SandboxError: The shell does not answer, or its state is too large.
        """
        result = self.run(STATE, seconds=STATE_SECONDS, output_bytes=STATE_BYTES)
        if result.exit_code is None or result.timed_out or len(result.output) > STATE_BYTES:
            raise process.SandboxError("the shell's state could not be read: it hangs, or takes more than 8 MiB")
        return result.output

    def restore(self, state: bytes) -> None:
        """Restore the `state` of another shell, except folders and variables that cannot be set here."""
        script = state.decode(errors="surrogateescape")
        self._pending += f"eval {shlex.quote(script)} </dev/null >/dev/null 2>&1 3>&- 4>&-\n".encode(
            errors="surrogateescape"
        )

    def close(self) -> None:
        """Kill the shell and every process that it started."""
        self._program.close()


class _Output:
    """Output of a command up to its mark, and of background processes after it, without the mark."""

    def __init__(self, limit: int, mark: bytes) -> None:
        self._kept, self._mark, self._held = process.HeadTail(limit), mark, b""
        self.marked = False

    def add(self, data: bytes) -> None:
        if not self.marked:
            before, mark, data = (self._held + data).partition(self._mark)
            self.marked = bool(mark)
            self._held = b"" if mark else before[-len(self._mark) + 1 :]
            self._kept.add(before[: len(before) - len(self._held)])
        self._kept.add(data)

    @property
    def flooded(self) -> bool:
        """Whether part of the output was dropped."""
        return bool(self._kept.left_out)

    def value(self) -> bytes:
        """Return the kept bytes."""
        self._kept.add(self._held)
        self._held = b""
        return self._kept.value()


def _reason(program: ShellProgram, timed_out: bool) -> str:
    """Return why a shell did not answer."""
    if not program.ended:
        return "it did not react to being interrupted" if timed_out else "its sandbox was ended"
    outcome = program.outcome()
    if outcome is None:
        return "its sandbox was ended"
    if outcome.exceeded:
        return f"the limit {outcome.exceeded} was exceeded"
    if outcome.signal:
        return f"it was ended by signal {outcome.signal}"
    return f"it exited with code {outcome.exit_code}"
