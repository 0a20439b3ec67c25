"""A shell in a machine that keeps its state between commands and survives what they do."""

import re
import secrets
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from . import process, supervisor

# Interactive, because only then does an interrupt bring bash back to its next line instead of ending it. Its error
# stream, once moved to descriptor 3, carries exit codes, so that no command's output can be taken for one; a mark on
# descriptor 4, its output as it was in the beginning, says where a command's output ends. Only commands write there:
# what the shell itself writes between them, under `set -x`, `set -v`, traps and PROMPT_COMMAND, goes nowhere.
ARGV = ("bash", "--norc", "--noprofile", "--noediting", "-i")
# Job control has bash say which signal ended a program, in the words that everyone knows.
SETUP = "PS1= PS2= PROMPT_COMMAND=; set +o history; set +H; set -m; exec 3>&2 4>&1 >/dev/null 2>&1\n"
INTERRUPT_SECONDS = 1.0  # that a command has to end after each stage of interrupting it
# Said by an interactive bash without a terminal wherever a program was ended by a signal.
NO_TERMINAL = re.compile(rb"^bash: \[\d+: \d+ \(-?\d+\)\] tcsetattr: .*\n", re.MULTILINE)
STATE_SECONDS = 30.0
STATE_BYTES = 8 << 20
ANSWER_BYTES = 32 << 10  # kept of what comes with exit codes: more than the longest quoted path
# Aliases and options come last: `set -e` would end the shell at the first variable that cannot be set again. Options
# are named because a bash without line editing ends at ``set +o emacs``.
OPTIONS = (
    "allexport errexit errtrace functrace ignoreeof keyword noclobber noglob nounset physical pipefail verbose xtrace"
)
STATE = (
    "{ declare -p; shopt -p; declare -f; declare -xF; trap -p; "
    'printf \'builtin cd -- %q; OLDPWD=%q\\n\' "$PWD" "${OLDPWD-}"; alias -p; '
    f"shopt -po {OPTIONS}; }} 2>/dev/null"
)


class Program(Protocol):
    """The running bash that a shell talks to: a `sandbox.Process`, or one in a container."""

    @property
    def ended(self) -> bool:
        """Whether it has ended and `exchange` saw it."""
        ...

    def exchange(
        self,
        data: bytes,
        on_stdout: Callable[[bytes], Any],
        on_stderr: Callable[[bytes], Any],
        *,
        seconds: float,
        until: Callable[[], bool],
    ) -> None:
        """Write `data` and hand on what comes back until `until()`, the program's end, or `seconds` have passed."""
        ...

    def order(self, order: bytes) -> None:
        """Interrupt it and all that it started (`supervisor.INTERRUPT`), or kill all but it (`KILL_OTHERS`)."""
        ...

    def outcome(self) -> dict[str, Any] | None:
        """exit_code, signal and exceeded once `ended`; None where they are not known."""
        ...

    def close(self) -> None:
        """End it and all that it started."""
        ...


@dataclass(frozen=True)
class ShellResult:
    """What a command did.

    `output` is what it wrote, capped; `exit_code` is None when the shell itself ended. `restarted` says why a new
    shell had to be started: working directory and variables are those of a fresh one, files are kept. `folder` is the
    working directory afterwards, quoted for a shell; None where it is that of a fresh shell.
    """

    output: bytes
    exit_code: int | None
    timed_out: bool
    restarted: str | None
    seconds: float
    folder: str | None = None


class Shell:
    """A persistent bash. Working directory and variables survive between calls and interrupts.

    What `exec` does to the shell's own standard streams lasts until the end of the command.
    """

    def __init__(self, start: Callable[[], Program], *, output_bytes: int = 1 << 16) -> None:
        """Start it; `start` runs `ARGV` where commands are to run, and again whenever the shell was lost.

        `output_bytes` is what is kept of a command's output unless `run` is told another number. Raises what `start`
        raises.
        """
        self._start, self._output_bytes = start, output_bytes
        self._restart()

    def _restart(self) -> None:
        self._program = self._start()
        self._pending = SETUP.encode()

    def run(
        self, command: str, *, seconds: float, output_bytes: int | None = None, keep_shell: bool = True
    ) -> ShellResult:
        """Run commands, for at most `seconds`; then they and background processes are interrupted, then killed.

        Without `keep_shell` a command that takes longer than `seconds`, or writes more than `output_bytes`, ends
        the shell with everything in it. Raises `sandbox.SandboxError` where no new shell can be started.
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
        """What `restore` brings back: working directory, variables, functions, aliases, traps and options.

        Not among it are processes and open files. Raises `sandbox.SandboxError` where the shell does not say.
        """
        result = self.run(STATE, seconds=STATE_SECONDS, output_bytes=STATE_BYTES)
        if result.exit_code is None or result.timed_out or len(result.output) > STATE_BYTES:
            raise process.SandboxError("the shell's state could not be read: it hangs, or takes more than 8 MiB")
        return result.output

    def restore(self, state: bytes) -> None:
        """Take on what `state` of another shell said; a folder or a variable that cannot be set here is left out."""
        script = state.decode(errors="surrogateescape")
        self._pending += f"eval {shlex.quote(script)} </dev/null >/dev/null 2>&1 3>&- 4>&-\n".encode(
            errors="surrogateescape"
        )

    def close(self) -> None:
        """End the shell and every process started from it."""
        self._program.close()


class _Output:
    """What a command writes up to its mark, and what background processes may add after it; the mark is left out."""

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
        """Whether some of it had to be left out."""
        return bool(self._kept.left_out)

    def value(self) -> bytes:
        """The bytes kept."""
        self._kept.add(self._held)
        self._held = b""
        return self._kept.value()


def _reason(program: Program, timed_out: bool) -> str:
    """Why a shell gave no answer."""
    if not program.ended:
        return "it did not react to being interrupted" if timed_out else "its sandbox was ended"
    outcome = program.outcome()
    if outcome is None:
        return "its sandbox was ended"
    if outcome["exceeded"]:
        return f"the limit {outcome['exceeded']} was exceeded"
    if outcome["signal"]:
        return f"it was ended by signal {outcome['signal']}"
    return f"it exited with code {outcome['exit_code']}"
