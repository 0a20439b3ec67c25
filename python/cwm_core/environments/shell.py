"""A shell in a sandbox that keeps its state between commands and survives what they do."""

import os
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import sandbox
from ..sandbox import supervisor

# Interactive, because only then does an interrupt bring bash back to its next line instead of ending it. Its error
# stream, once moved to descriptor 3, carries exit codes, so that no command's output can be taken for one.
ARGV = ("bash", "--norc", "--noprofile", "--noediting", "-i")
SETUP = "PS1= PS2= PROMPT_COMMAND=; set +o history; set +H; exec 3>&2 2>&1\n"
INTERRUPT_SECONDS = 1.0  # that a command has to end after each stage of interrupting it


@dataclass(frozen=True)
class ShellResult:
    """What a command did.

    `output` is what it wrote, capped; `exit_code` is None when the shell itself ended. `restarted` says why a new
    shell had to be started: working directory and variables are those of a fresh one, files are kept.
    """

    output: bytes
    exit_code: int | None
    timed_out: bool
    restarted: str | None
    seconds: float


class Shell:
    """A persistent bash in `folder`. Working directory and variables survive between calls and interrupts.

    `limits.seconds` bounds the life of each underlying shell, `limits.output_bytes` the output of each command.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        limits: sandbox.Limits,
        backend: sandbox.Backend = "bubblewrap",
        env: Mapping[str, str] | None = None,
        readable: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Start it. Raises what `sandbox.Process` raises."""
        self._folder, self._limits, self._backend = Path(folder), limits, backend
        self._env, self._readable = dict(env or {}), readable
        self._start()

    def _start(self) -> None:
        self._process = sandbox.Process(
            ARGV,
            folder=self._folder,
            limits=self._limits,
            backend=self._backend,
            env=self._env,
            readable=self._readable,
        )
        self._pending = SETUP.encode()

    def run(self, command: str, *, seconds: float) -> ShellResult:
        """Run commands, for at most `seconds`; then they and background processes are interrupted, then killed."""
        started = time.monotonic()
        output, answers = sandbox.HeadTail(self._limits.output_bytes), bytearray()
        nonce = secrets.token_hex(8)
        answer = re.compile(rb"%s (\d+)\n" % nonce.encode())

        def collect(chunk: bytes) -> None:
            answers.extend(chunk)
            del answers[:-4096]

        def answered() -> bool:
            return answer.search(answers) is not None

        quoted = shlex.quote(command.replace("\0", ""))
        script = f"eval {quoted} </dev/null 3>&-\nprintf '{nonce} %d\\n' \"$?\" >&3\n"
        data, self._pending = self._pending + script.encode(errors="replace"), b""
        timed_out = False
        self._process.exchange(data, output.add, collect, seconds=seconds, until=answered)
        for order in (supervisor.INTERRUPT, supervisor.KILL_OTHERS):
            if answered() or self._process.ended:
                break
            timed_out = True
            self._process.order(order)
            self._process.exchange(b"", output.add, collect, seconds=INTERRUPT_SECONDS, until=answered)
        restarted = exit_code = None
        if match := answer.search(answers):
            exit_code = int(match[1])
        else:
            restarted = self._reason(timed_out)
            self._process.close()
            self._start()
        return ShellResult(output.value(), exit_code, timed_out, restarted, time.monotonic() - started)

    def _reason(self, timed_out: bool) -> str:
        outcome = self._process.outcome()
        if outcome is None:
            return "it did not react to being interrupted" if timed_out else "its sandbox was ended"
        if outcome["exceeded"]:
            return f"the limit {outcome['exceeded']} = {getattr(self._limits, outcome['exceeded'])} was exceeded"
        if outcome["signal"]:
            return f"it was ended by signal {outcome['signal']}"
        return f"it exited with code {outcome['exit_code']}"

    def close(self) -> None:
        """End the shell and every process started from it."""
        self._process.close()
