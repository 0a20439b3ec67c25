"""The process in a recording sandbox: it forks a child for each run. `sandbox.py` is its client.

The interpreter runs with `-s -S -P`: isolated but for PYTHONHASHSEED, and without `site`, which differs between
environments and doubles the cost of a fork. The last argument holds the settings as JSON.

A request on standard input is four bytes with the length of its JSON, then the JSON: a list of runs that share a
child, or an object that names a module to preload. An answer on standard output is two lengths, then the JSON of its
header and the trace. This process runs no code of a run. It does run the module that it preloads, and then serves only
samples of that module.

A child shares the sandbox with this process and can end it, which the client notices. The child cannot read or change
this process, which is not dumpable and so cannot be traced. Nothing that a child leaves behind outlives its run.
"""

from __future__ import annotations

import _frozen_importlib
import contextlib
import ctypes
import gc
import importlib
import json
import linecache
import os
import resource
import select
import signal
import site
import struct
import sys
import time
from types import ModuleType
from typing import Any, NoReturn

from ..trace import recorder
from .effects import Effects
from .failures import CLOCK, FailureKind, RunFailure

LENGTH = struct.Struct("<I")
SHARED_FOLDERS = ("/tmp", "/dev/shm")
IPC_LISTS = ("/proc/sysvipc/msg", "/proc/sysvipc/sem", "/proc/sysvipc/shm")
PROGRAM = "main.py"
LIMITED = (resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)
PR_SET_DUMPABLE = 4  # linux/prctl.h
WATCH_SECONDS = 0.5  # between checks whether a child has ended
MAX_WORD, MAX_EFFECTS = 100, 20  # limits on what a program reports about itself

Header = dict[str, Any]
"""`reason`: text of the failure, or None. `effects`: names of the effects seen."""


def main() -> None:
    """Serve requests with the settings of the last argument until standard input ends."""
    SandboxServer(json.loads(sys.argv[-1])).serve()


class SandboxServer:
    """Serves recording requests until its input ends."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Move input and output out of reach of children, and prepare what every run needs."""
        self.settings = settings
        self.requests, self.answers = os.dup(0), os.dup(1)
        self.null = os.open(os.devnull, os.O_RDWR)
        for standard in range(2):
            os.dup2(self.null, standard)
        # Killing every other process is right only in the process namespace of a sandbox.
        self.is_isolated = os.readlink("/proc/self/ns/pid") != settings["pid_namespace"]
        self.prctl = ctypes.CDLL(None).prctl
        self.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        # Children inherit the handlers; setting them in each child would take as long as the fork.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.path += settings["paths"]
        show_modules_by_name()
        self.recorder: Any = recorder.Recorder
        site.setquit()  # programs use exit(), which comes from `site`
        sys.argv, sys.stdin = [""], open(0, encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
        self.recorder().record_source("def f(x):\n    return [x]\n", "f(1)").to_bytes()  # fill caches before forking
        gc.collect()
        gc.freeze()  # keeps the pages that children share

    def serve(self) -> None:
        """Report that the server is ready, and answer each request in turn."""
        self.answer(header_without_trace("ready"), b"")
        with os.fdopen(self.requests, "rb", closefd=False) as requests:
            while head := requests.read(LENGTH.size):
                message = json.loads(requests.read(LENGTH.unpack(head)[0]))
                if isinstance(message, list):
                    self.run(message)
                else:
                    self.answer(self.preload(message["preload"]), b"")

    def run(self, runs: list[dict[str, Any]]) -> None:
        """Answer runs that share a child. Those that the child does not reach share the next child."""
        while runs:
            started = time.monotonic()
            answers = self.run_child(runs)
            seconds = (time.monotonic() - started) / len(answers)
            for header, trace in answers:
                self.answer(header | {"seconds": seconds}, trace)
            runs = runs[len(answers) :]

    def answer(self, header: Header, trace: bytes) -> None:
        """Write one answer."""
        text = json.dumps(header).encode()
        write(self.answers, LENGTH.pack(len(text)) + LENGTH.pack(len(trace)) + text + trace)

    def preload(self, name: str) -> Header:
        """Import a module that later runs call into, and read its source for the recordings."""
        try:
            file = importlib.import_module(name).__file__ or ""
            linecache.getlines(file)
        except BaseException as error:
            return header_without_trace(f"it raised {type(error).__name__}")
        # The paths come after the standard library, which this process needs.
        paths = tuple(os.path.join(path, "") for path in self.settings["paths"])
        if paths and not file.startswith(paths) and not os.path.realpath(file).startswith(paths):
            return header_without_trace("another module has its name")
        gc.collect()
        gc.freeze()
        return {"reason": None, "effects": []}

    def run_child(self, runs: list[dict[str, Any]]) -> list[tuple[Header, bytes]]:
        """Record runs in a new process, remove what they leave, and return the answers of the first ones.

        The limits of the first run hold for the whole process. A run that ends the process has no answer unless it is
        the first one, because an earlier run may be the cause.

        Returns:
            At least one answer.
        """
        read, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            record_runs(self, runs, write_end)
        os.close(write_end)
        max_bytes = runs[0]["answer_bytes"]
        output, status = watch(child, read, runs[0]["seconds"], max_bytes)
        os.close(read)
        self.clean_up(child, has_ended=status is not None)
        failure = failure_of(status, is_too_large=len(output) > max_bytes)
        if failure is None or len(runs) > 1:
            answers = parse_answers(output, len(runs))
            if answers:
                return answers
        return [(header_without_trace(str(failure or FailureKind.NO_RESULT)), b"")]

    def clean_up(self, child: int, *, has_ended: bool) -> None:
        """Kill every process and remove every file that the child left.

        If something cannot be undone, this process ends, and the client starts a new sandbox.
        """
        with contextlib.suppress(ProcessLookupError):
            if self.is_isolated:
                os.kill(-1, signal.SIGKILL)  # every process but this one and process 1
            else:
                os.killpg(child, signal.SIGKILL)
        if not has_ended:
            os.waitpid(child, 0)
        os.chdir("/")
        for folder in SHARED_FOLDERS if self.is_isolated else (self.settings["folder"],):
            wipe(folder)
        for path, target in self.settings["entries"]:
            restore(path, target)
        if self.is_isolated and any(has_entries(path) for path in IPC_LISTS):
            raise RuntimeError("System V IPC objects were left")


def show_modules_by_name() -> None:
    """Leave the path out of the `repr` of a module, because it belongs to this machine."""
    _frozen_importlib._module_repr = (  # type: ignore[attr-defined]  # the function that `repr` calls
        lambda module: f"<module {vars(module).get('__name__', '?')!r}>"
    )


def record_runs(server: SandboxServer, runs: list[dict[str, Any]], answers: int) -> NoReturn:
    """Record the runs in the child, write an answer after each, and exit immediately."""
    try:
        os.setsid()
        os.dup2(server.null, 2)
        os.close(server.requests)
        os.close(server.answers)
        server.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        for kind, wanted in zip(LIMITED, runs[0]["limits"], strict=True):
            hard = resource.getrlimit(kind)[1]
            value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (value, value))
        work = "/tmp/work" if server.is_isolated else os.path.join(server.settings["folder"], "work")
        os.mkdir(work)
        os.chdir(work)
        process = os.getpid()
        for run in runs:
            data = record_run(server, run)
            if os.getpid() != process:  # a process that the program forked
                break
            write(answers, LENGTH.pack(len(data)) + data)
    finally:
        os._exit(0)


def record_run(server: SandboxServer, run: dict[str, Any]) -> bytes:
    """Record a run and return the JSON of the header, a newline, and the stored trace."""
    recorder = server.recorder(**run["options"])
    failure, effects = FailureKind.NO_TRACE, None
    if run["stdin"]:
        provide_stdin(run["stdin"])
    try:
        own = prepare(run)
        if run["effects"] != "none":
            effects = Effects(clocks=run["effects"] == "all", own=own)
        with effects or contextlib.nullcontext():
            record(recorder, run)
    except SyntaxError:
        failure = FailureKind.DOES_NOT_COMPILE
    except BaseException:
        failure = FailureKind.RAISED_BEFORE_CALL
    header = {"reason": None, "effects": sorted(effects.names) if effects else []}
    if recorder.last is None:
        return json.dumps(header | {"reason": failure}).encode() + b"\n"
    trace: bytes = recorder.last.to_bytes()
    return json.dumps(header).encode() + b"\n" + trace


def prepare(run: dict[str, Any]) -> list[str]:
    """Read and write the files of a run before effects are watched.

    Returns:
        The files whose frames are the program's own.
    """
    own = [recorder._SOURCE_NAME]
    if run["call"] is None:
        with open(PROGRAM, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(run["code"])
        own.append(os.path.abspath(PROGRAM))
    elif run["module"] is not None:
        own.append(importlib.import_module(run["module"]).__file__ or "")
    linecache.getlines(own[-1])
    return own


def record(recorder: Any, run: dict[str, Any]) -> None:
    """Record a call in source text, a call in a module, or a whole program."""
    if run["call"] is None:
        recorder.record_file(PROGRAM)
    elif run["module"] is not None:
        module: ModuleType = sys.modules[run["module"]]
        recorder.record_call(module, run["call"])
    else:
        recorder.record_source(run["code"], run["call"])


def provide_stdin(text: str) -> None:
    """Make the text standard input, for descriptor 0 and for `sys.stdin`."""
    source = os.memfd_create("stdin")
    write(source, text.encode("utf-8", "surrogatepass"))
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    os.close(source)


def watch(child: int, read: int, seconds: float, max_bytes: int) -> tuple[bytes, int | None]:
    """Read what a child writes until it ends or its time is over.

    Processes that the child started may hold the pipe open. They are not waited for.

    Args:
        child: Id of the process.
        read: Descriptor to read from.
        seconds: Time limit.
        max_bytes: Maximum output. One more byte is returned to show that the child wrote more.

    Returns:
        The child's output, and its exit code as in `os.waitstatus_to_exitcode`, or None if it did not exit in time.
    """
    output = bytearray()
    deadline = time.monotonic() + seconds
    ended = os.pidfd_open(child)
    try:
        os.set_blocking(read, False)
        poll = select.poll()
        poll.register(read, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(output), None
            ready = {fd for fd, _ in poll.poll(min(left, WATCH_SECONDS) * 1000)}
            if read in ready and not read_available(read, output, max_bytes):
                poll.unregister(read)
            if ended in ready:
                read_available(read, output, max_bytes)
                return bytes(output), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(ended)


def read_available(read: int, output: bytearray, max_bytes: int) -> bool:
    """Read what is available, keeping at most `max_bytes` + 1 bytes. Return False at the end of the stream."""
    try:
        while chunk := os.read(read, 1 << 20):
            output += chunk[: max_bytes + 1 - len(output)]
    except BlockingIOError:
        return True
    return False


def failure_of(status: int | None, *, is_too_large: bool) -> RunFailure | None:
    """Return the failure of a child that ended with this status, as `watch` returns it."""
    if status is None:
        return CLOCK
    if status < 0:
        return RunFailure(FailureKind.SIGNAL, str(-status))
    if status > 0:
        return RunFailure(FailureKind.EXIT_CODE, str(status))
    return RunFailure(FailureKind.TOO_LARGE) if is_too_large else None


def parse_answers(output: bytes, max_answers: int) -> list[tuple[Header, bytes]]:
    """Return the complete answers up to the first invalid one, which an earlier run may have caused."""
    answers: list[tuple[Header, bytes]] = []
    start = 0
    while len(answers) < max_answers and len(output) >= start + LENGTH.size:
        end = start + LENGTH.size + LENGTH.unpack_from(output, start)[0]
        if len(output) < end:
            break
        answer = parse_answer(output[start + LENGTH.size : end])
        if answers and answer[0]["reason"] == FailureKind.NO_RESULT:
            break
        answers.append(answer)
        start = end
    return answers


def parse_answer(output: bytes) -> tuple[Header, bytes]:
    """Return the header, in a known form, and the trace of an answer. A program can forge what it reports."""
    line, _, trace = output.partition(b"\n")
    try:
        header = json.loads(line)
        reason, effects = header["reason"], [str(name)[:MAX_WORD] for name in header["effects"][:MAX_EFFECTS]]
        if reason is None and trace:
            return {"reason": None, "effects": effects}, trace
        return header_without_trace(str(reason)[:MAX_WORD]), b""
    except (ValueError, KeyError, TypeError, RecursionError):
        return header_without_trace(FailureKind.NO_RESULT), b""


def header_without_trace(reason: str) -> Header:
    """Return the header of an answer without a trace."""
    return {"reason": reason, "effects": []}


def wipe(folder: str) -> None:
    """Remove everything in a folder."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            try:
                os.rmdir(path)
            except OSError:  # not empty
                importlib.import_module("shutil").rmtree(path)
        else:
            os.unlink(path)


def restore(path: str, target: str | None) -> None:
    """Make a link or an empty folder that leads to what the sandbox shows; see `machines.scratch_entries`."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if target is None:
        os.makedirs(path, exist_ok=True)
    else:
        os.symlink(target, path)


def has_entries(path: str) -> bool:
    """Return whether a list in /proc has more lines than its heading."""
    try:
        with open(path) as file:
            return len(file.readlines()) > 1
    except OSError:
        return False


def write(fd: int, data: bytes) -> None:
    """Write all bytes."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
