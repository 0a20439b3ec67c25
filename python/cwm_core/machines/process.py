"""Starting a program in a sandbox, exchanging bytes with it, ending it."""

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
from pathlib import Path
from types import CodeType
from typing import Any, Literal, Self

from . import bubblewrap, supervisor

Sandbox = Literal["bubblewrap", "process"]

# Runs what `_supervisor_code` compiled: compiling it at every start would cost milliseconds.
SUPERVISOR = """
import marshal, sys
code, settings = marshal.loads(bytes.fromhex(sys.argv[1]))
names = {"__name__": "supervisor"}
exec(code, names)
names["main"](settings, sys.argv[2:])
"""
PIPE_BYTES = 1 << 20  # the most a pipe can hold without privilege (/proc/sys/fs/pipe-max-size)
GRACE = 10.0  # seconds that a supervisor has to start, and to end what it started, before it is given up


class SandboxError(RuntimeError):
    """The sandbox itself failed or was refused; says nothing about the program."""


@dataclass(frozen=True)
class Limits:
    """What a run may use.

    `seconds` (wall clock), `memory_bytes` (resident), `processes` (with threads) and `disk_bytes` (of the folder) bound
    all processes together and end the run; `cpu_seconds`, `memory_bytes` (private and writable) and `file_bytes` bound
    each process. `output_bytes` is what is kept of each stream. The number of files in the folder is not bounded.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    processes: int = 256
    file_bytes: int = 64 << 20
    disk_bytes: int = 1 << 30
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Completed:
    """How a run ended.

    Either `exit_code` or `signal` is set. `exceeded` names the limit that ended it: "seconds", "memory_bytes",
    "processes", "disk_bytes"; a process over its own limits sees that itself (SIGXCPU, SIGXFSZ, failing allocations).
    """

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    exceeded: str | None
    truncated: bool
    seconds: float

    @property
    def timed_out(self) -> bool:
        """Whether the wall clock limit ended it."""
        return self.exceeded == "seconds"


class HeadTail:
    """Bytes of a stream of any length: its first and its last `limit` / 2."""

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
        """Number of bytes between head and tail that were dropped."""
        return max(self._total - 2 * self._half, 0)

    def value(self) -> bytes:
        """The bytes kept, with a line that says how many are missing where they are."""
        if not self.left_out:
            return bytes(self._head + self._tail)
        return bytes(self._head) + b"\n[... %d bytes left out ...]\n" % self.left_out + bytes(self._tail[-self._half :])


class Process:
    """A running program in a sandbox; a context manager that ends it and all its processes.

    Raises `SandboxError` when the sandbox is not possible on this machine, ValueError for an unknown sandbox or one
    that needs a folder, and NotADirectoryError for a missing folder.
    """

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
        """Start `argv` in `folder`; None, under bubblewrap only, is the sandbox's own /tmp.

        `env` is added to a minimal environment; `readable` paths are shown read-only.
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
        self._stdin, self._stdout, self._stderr = self._popen.stdin, self._popen.stdout, self._popen.stderr
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
        """Write `data` and hand on what comes back until `until()`, the program's end, or `seconds` have passed.

        Gives what of `data` was not written by then.
        """
        deadline = time.monotonic() + seconds
        pending = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._report, selectors.EVENT_READ)
            for stream, sink in ((self._stdout, on_stdout), (self._stderr, on_stderr)):
                selector.register(stream, selectors.EVENT_READ, sink)
            if not self._stdin.closed:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            while not self._ended and not until() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
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
        # What was written before the end still lies in the pipes, and no more than a pipe holds: a process that
        # goes on writing must not keep this reading.
        on_stdout(_read(self._stdout.fileno()))
        on_stderr(_read(self._stderr.fileno()))
        return pending

    def _write(self, pending: memoryview) -> memoryview:
        """Write what fits; the rest. A program that closed its input gets no more of it."""
        try:
            return pending[os.write(self._stdin.fileno(), pending[:PIPE_BYTES]) :] if pending else pending
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            return pending[:0]

    def order(self, order: bytes) -> None:
        """Send the supervisor an order (`supervisor.INTERRUPT`, `supervisor.KILL_OTHERS`); no effect after the end."""
        with contextlib.suppress(BrokenPipeError):
            self._control.write(order)

    @property
    def ended(self) -> bool:
        """Whether the program has ended and `exchange` saw it."""
        return self._ended

    def outcome(self) -> dict[str, Any] | None:
        """exit_code, signal, exceeded and seconds once the program has ended and `exchange` saw it, else None."""
        lines = self._report_text.decode().splitlines()
        if len(lines) != 2:
            return None
        return dict(zip(("exit_code", "signal", "exceeded", "seconds"), ast.literal_eval(lines[1]), strict=True))

    def close(self) -> None:
        """End the program and every process that it started. Safe to call again."""
        with contextlib.suppress(OSError, ValueError):
            self._control.write(b"x")  # closing would do, were no copy of the pipe held by a fork of this process
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
        """The process itself."""
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
    """Start a supervisor that no fork bomb can starve, where this process may (root); it starts programs as usual."""
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
            "but does not isolate; choose it only for programs you would run without a sandbox"
        )
    return bubblewrap.command(folder, scratch_bytes=limits.file_bytes, readable=readable)


def _environment(folder: str | None, sandbox: str) -> dict[str, str]:
    """Variables of a sandboxed program; nothing of this process's own, which may hold keys."""
    home = "/tmp" if sandbox == "bubblewrap" else folder  # the former is private, and keeps caches out of the folder
    path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": home, "LANG": "C.UTF-8"}


def _pipe() -> Iterator[tuple[int, str]]:
    return zip(os.pipe(), ("rb", "wb"), strict=True)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, PIPE_BYTES)
    except BlockingIOError:
        return b""


def remove_tree(folder: str | os.PathLike[str]) -> None:
    """Remove a folder that a hostile program filled: any depth, any permissions, links not followed."""
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
    """Run a program to its end or to a limit, and end every process that it started.

    It runs in `folder`, or in a fresh one that is removed afterwards; that is all that it can write under
    bubblewrap, besides its private /tmp. `env` is added to a minimal environment (PATH, HOME, LANG); `readable`
    paths are shown read-only besides the system's programs and this interpreter. A program that cannot be executed
    ends with exit code 127 and the reason in `stderr`.

    Raises `SandboxError` when the sandbox is not possible on this machine or broke down.
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
    return Completed(stdout=stdout.value(), stderr=stderr.value(), truncated=truncated, **outcome)


def run_python(code: str, *arguments: str, **options: Any) -> Completed:
    """Run Python source in a fresh isolated interpreter (``-I``); `options` are those of `run`."""
    return run([sys.executable, "-I", "-c", code, *arguments], **options)
