"""Start a program in a sandbox, exchange bytes with it, and end it."""

import ast
import contextlib
import functools
import marshal
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import CodeType
from typing import Any, Literal, Self

from .._native import CwmError
from . import bubblewrap, supervisor

Sandbox = Literal["bubblewrap", "process"]

# Runs the code that `_supervisor_code` compiled; compiling it at every start would take milliseconds.
SUPERVISOR = """
import marshal, sys
code, settings = marshal.loads(bytes.fromhex(sys.argv[1]))
names = {"__name__": "supervisor"}
exec(code, names)
names["main"](settings, sys.argv[2:])
"""
PIPE_BYTES = 1 << 20  # maximum size of an unprivileged pipe (/proc/sys/fs/pipe-max-size)
GRACE = 10.0  # seconds for a supervisor to start, and to end its processes, before it is killed


class SandboxError(CwmError, RuntimeError):
    """The sandbox failed or cannot run here, independently of the program."""


@dataclass(frozen=True)
class Limits:
    """Limits of a run.

    A run ends when all of its processes together exceed `seconds`, `memory_bytes`, `processes`, or `disk_bytes`. The
    number of files is not limited.
    """

    seconds: float = 10.0
    """Wall-clock time, in seconds."""
    cpu_seconds: int = 10
    """Processor time of each process, in seconds."""
    memory_bytes: int = 1 << 30
    """Resident memory of all processes together, and private writable memory of each."""
    processes: int = 256
    """Number of processes and threads."""
    file_bytes: int = 64 << 20
    """Size of each file that a process writes."""
    disk_bytes: int = 1 << 30
    """Size of the folder."""
    output_bytes: int = 1 << 20
    """Bytes of each output stream to keep."""


class ExceededLimit(StrEnum):
    """The field of `Limits` that ended a run."""

    SECONDS = "seconds"
    MEMORY_BYTES = "memory_bytes"
    PROCESSES = "processes"
    DISK_BYTES = "disk_bytes"


@dataclass(frozen=True)
class ProgramEnd:
    """How a program ended."""

    exit_code: int | None
    """Exit code, or None if a signal ended the program."""
    signal: int | None
    """Number of the signal that ended the program, or None."""
    exceeded: ExceededLimit | None
    """Limit that ended the program, or None."""
    seconds: float
    """Duration, in seconds."""


@dataclass(frozen=True)
class Completed:
    """Outcome of a run."""

    exit_code: int | None
    """Exit code, or None if a signal ended the program."""
    signal: int | None
    """Number of the signal that ended the program, or None."""
    stdout: bytes
    """Standard output, without its middle if it is too long."""
    stderr: bytes
    """Standard error, without its middle if it is too long."""
    exceeded: ExceededLimit | None
    """Limit that ended the run, or None. A process that exceeds a limit of its own gets a signal (SIGXCPU, SIGXFSZ) or
    a failed allocation instead."""
    truncated: bool
    """Whether part of the output was dropped."""
    seconds: float
    """Duration, in seconds."""

    @property
    def timed_out(self) -> bool:
        """Whether the limit of wall-clock time ended the run."""
        return self.exceeded == ExceededLimit.SECONDS


class HeadTail:
    """The first and the last `limit` / 2 bytes of a stream of any length."""

    def __init__(self, limit: int) -> None:
        """Keep about `limit` bytes."""
        self._half = max(limit // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        """Append to the stream."""
        self._total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    @property
    def left_out(self) -> int:
        """Number of dropped bytes between head and tail."""
        return max(self._total - 2 * self._half, 0)

    def value(self) -> bytes:
        """Return the kept bytes, with a line that states the number of dropped bytes in their place."""
        if not self.left_out:
            return bytes(self._head + self._tail)
        return bytes(self._head) + b"\n[... %d bytes left out ...]\n" % self.left_out + bytes(self._tail[-self._half :])


class Process:
    """A running program in a sandbox; a context manager that ends the program and all of its processes."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        folder: str | os.PathLike[str] | None,
        limits: Limits,
        sandbox: Sandbox = "bubblewrap",
        env: Mapping[str, str] | None = None,
        readable: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Start a program.

        Args:
            argv: The program and its arguments.
            folder: Working directory. None, under bubblewrap only, is the sandbox's /tmp.
            limits: Limits of the run.
            sandbox: The kind of sandbox.
            env: Environment variables to add to a minimal environment.
            readable: Paths to show read-only.

        Raises:
            SandboxError: This host cannot run the sandbox.
            ValueError: There is no such sandbox, or it needs a folder.
            NotADirectoryError: `folder` is not a directory.
        """
        where = os.path.realpath(folder) if folder is not None else None
        if where is None and sandbox == "process":
            raise ValueError("the process sandbox needs a folder to work in")
        if where is not None and not os.path.isdir(where):
            raise NotADirectoryError(f"sandbox folder {where} is not a directory")
        prefix = _prefix(sandbox, where, limits, readable)
        with contextlib.ExitStack() as stack:
            control_read, control_write = (stack.enter_context(os.fdopen(fd, m, 0)) for fd, m in _pipe())
            report_read, report_write = (stack.enter_context(os.fdopen(fd, m, 0)) for fd, m in _pipe())
            settings = asdict(limits) | {"control": control_read.fileno(), "report": report_write.fileno()}
            order = marshal.dumps((_supervisor_code(), settings)).hex()
            code = [bubblewrap.interpreter(), "-I", "-S", "-c", SUPERVISOR, order]
            with _urgent():
                self._popen = subprocess.Popen(
                    [*prefix, *code, *argv],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    cwd=where,
                    env=_environment(where, sandbox) | dict(env or {}),
                    pass_fds=(control_read.fileno(), report_write.fileno()),
                    start_new_session=True,
                )
            control_read.close()
            report_write.close()
            self._files = stack.pop_all()
        self._control, self._report = control_write, report_read
        self._report_text, self._ended = b"", False
        stdin, stdout, stderr = self._popen.stdin, self._popen.stdout, self._popen.stderr
        assert stdin is not None and stdout is not None and stderr is not None  # all three are pipes
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)

    def exchange(
        self,
        data: bytes,
        on_stdout: Callable[[bytes], Any],
        on_stderr: Callable[[bytes], Any],
        *,
        seconds: float,
        until: Callable[[], bool] = lambda: False,
        close_stdin: bool = False,
    ) -> memoryview:
        """Write `data` and pass on output until `until()` is true, the program ends, or `seconds` have passed.

        Returns:
            The part of `data` that was not written.
        """
        pending = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._report, selectors.EVENT_READ)
            for stream, sink in ((self._stdout, on_stdout), (self._stderr, on_stderr)):
                selector.register(stream, selectors.EVENT_READ, sink)
            if not self._stdin.closed:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            for key, _ in events(selector, seconds, lambda: self._ended or until()):
                if key.fileobj is self._stdin:
                    pending = self._write(pending)
                    if not pending:
                        selector.unregister(self._stdin)
                        if close_stdin:
                            self._stdin.close()
                elif key.fileobj is self._report:
                    chunk = os.read(self._report.fileno(), 4096)
                    self._report_text += chunk
                    self._ended = not chunk
                elif chunk := _read(key.fd):
                    key.data(chunk)
                else:
                    selector.unregister(key.fileobj)
        # Read the rest of the output from the pipes, once: a process that keeps writing must not keep this reading.
        on_stdout(_read(self._stdout.fileno()))
        on_stderr(_read(self._stderr.fileno()))
        return pending

    def _write(self, pending: memoryview) -> memoryview:
        """Write what fits, and return the rest. If the program closed its input, the rest is discarded."""
        try:
            return pending[os.write(self._stdin.fileno(), pending[:PIPE_BYTES]) :] if pending else pending
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            return pending[:0]

    def order(self, order: bytes) -> None:
        """Send `supervisor.INTERRUPT` or `supervisor.KILL_OTHERS` to the supervisor. No effect after the end."""
        with contextlib.suppress(BrokenPipeError):
            self._control.write(order)

    @property
    def ended(self) -> bool:
        """Whether `exchange` has seen the program end."""
        return self._ended

    def outcome(self) -> ProgramEnd | None:
        """Return how the program ended once `ended` is true, else None."""
        lines = self._report_text.decode().splitlines()
        if len(lines) != 2:
            return None
        exit_code, number, exceeded, seconds = ast.literal_eval(lines[1])
        return ProgramEnd(exit_code, number, exceeded and ExceededLimit(exceeded), seconds)

    def close(self) -> None:
        """End the program and every process that it started. Closing again has no effect."""
        with contextlib.suppress(OSError, ValueError):
            self._control.write(b"x")  # closing is not enough if a fork of this process holds a copy of the pipe
        self._files.close()
        try:
            self._popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        finally:
            for stream in (self._stdin, self._stdout, self._stderr):
                stream.close()
        if self._popen.returncode and (started := re.match(rb"\d+\n", self._report_text)):
            with contextlib.suppress(OSError):  # a program outside a namespace can kill its supervisor
                os.killpg(int(started[0]), signal.SIGKILL)

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


@functools.cache
def _supervisor_code() -> CodeType:
    source = Path(supervisor.__file__).read_text(encoding="utf-8")
    return compile(source, supervisor.__file__, "exec", dont_inherit=True)


@contextlib.contextmanager
def _urgent() -> Iterator[None]:
    """Give the supervisor, but not its programs, real-time priority if permitted (root), against fork bombs."""
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, OSError):
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _prefix(sandbox: str, folder: str | None, limits: Limits, readable: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the command that the sandbox puts before the supervisor's."""
    if sandbox == "process":
        return []
    if sandbox != "bubblewrap":
        raise ValueError(f'unknown sandbox {sandbox!r}: choose "bubblewrap" or "process"')
    if (reason := bubblewrap.refusal()) is not None:
        raise SandboxError(
            f'the bubblewrap sandbox is not possible here: {reason}. sandbox="process" limits resources, '
            "but does not isolate; choose it only for programs that you would run without a sandbox"
        )
    return bubblewrap.command(folder, scratch_bytes=limits.file_bytes, readable=readable)


def _environment(folder: str | None, sandbox: str) -> dict[str, str]:
    """Return the environment of a sandboxed program. It omits the caller's, which may contain keys."""
    home = (
        "/tmp" if sandbox == "bubblewrap" or folder is None else folder
    )  # a private /tmp keeps caches out of the folder
    path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": home, "LANG": "C.UTF-8"}


def _pipe() -> Iterator[tuple[int, str]]:
    return zip(os.pipe(), ("rb", "wb"), strict=True)


def events(
    selector: selectors.BaseSelector, seconds: float, stopped: Callable[[], bool]
) -> Iterator[tuple[selectors.SelectorKey, int]]:
    """Yield the events of a selector until `stopped()` is true or `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not stopped() and (left := deadline - time.monotonic()) > 0:
        yield from selector.select(left)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, PIPE_BYTES)
    except BlockingIOError:
        return b""


def remove_tree(folder: str | os.PathLike[str]) -> None:
    """Remove a folder that a hostile program filled, with any depth and permissions. Links are not followed."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False)


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    limits: Limits | None = None,
    folder: str | os.PathLike[str] | None = None,
    sandbox: Sandbox = "bubblewrap",
    env: Mapping[str, str] | None = None,
    readable: Sequence[str | os.PathLike[str]] = (),
) -> Completed:
    """Run a program until it ends or exceeds a limit, then end every process that it started.

    A program that cannot be executed ends with exit code 127 and the reason in `stderr`.

    Args:
        argv: The program and its arguments.
        stdin: Its standard input.
        limits: Limits of the run. Defaults to `Limits()`.
        folder: Working directory. If None, a new folder that is removed afterwards. Under bubblewrap, the program can
            write only there and to a private /tmp.
        sandbox: The kind of sandbox.
        env: Environment variables to add to a minimal environment (PATH, HOME, LANG).
        readable: Paths to show read-only, in addition to the system's programs and this interpreter.

    Raises:
        SandboxError: This host cannot run the sandbox, or the sandbox failed.
    """
    limits = limits or Limits()
    if folder is None:
        folder = tempfile.mkdtemp(prefix="cwm-")
        try:
            return run(argv, stdin=stdin, limits=limits, folder=folder, sandbox=sandbox, env=env, readable=readable)
        finally:
            remove_tree(folder)
    stdout, stderr = HeadTail(limits.output_bytes), HeadTail(limits.output_bytes)
    with Process(argv, folder=folder, limits=limits, sandbox=sandbox, env=env, readable=readable) as process:
        process.exchange(stdin, stdout.add, stderr.add, seconds=limits.seconds + GRACE, close_stdin=True)
        outcome = process.outcome()
    if outcome is None:
        said = stderr.value()[-2000:].decode(errors="replace").strip()
        raise SandboxError(f"the {sandbox} sandbox of {argv[0]!r} ended without a report: {said or 'no message'}")
    truncated = bool(stdout.left_out or stderr.left_out)
    return Completed(stdout=stdout.value(), stderr=stderr.value(), truncated=truncated, **vars(outcome))


def run_python(code: str, *arguments: str, **options: Any) -> Completed:
    """Run Python source in a fresh isolated interpreter (`-I`). `options` are those of `run`."""
    return run([sys.executable, "-I", "-c", code, *arguments], **options)
