"""Record many untrusted programs: one sandbox, and in it a newly forked process for each program."""

from __future__ import annotations

import itertools
import json
import os
import struct
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from .. import machines
from ..trace import Trace, call_context, source_context
from ._sandbox_server import LENGTH
from .effects import Effect
from .failures import CLOCK, FailureKind, RunFailure

LIMITS = machines.Limits(
    seconds=5.0, cpu_seconds=5, memory_bytes=512 << 20, processes=32, file_bytes=16 << 20, output_bytes=16 << 20
)
"""Default limits of one run. `output_bytes` limits the size of the stored trace."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Variables that keep libraries from starting a thread for each processor, which the limit on processes forbids."""

_PACKAGE = Path(__file__).parents[1]
_MAX_TRACE_BYTES = 64 << 20  # of a recording, in the process of the run and unpacked in this process
_IN_FLIGHT = 16  # runs that are sent ahead, so that the sandbox does not wait for this process
_SERVER_MEMORY = 256 << 20  # bytes for the server in the sandbox
_START_SECONDS = 60.0  # for a sandbox to start and to import
_FOREVER = 10 * 365 * 86400  # seconds
_LOG_BYTES = 2000  # kept of what a sandbox writes to standard error
_GRACE = 10.0  # seconds beyond the limit for the server to end a run and report it

# `random` registers a function that seeds it after each fork, which takes longer than the fork. A program that draws
# from it unseeded does not give two equal recordings, so it is dropped anyway. The package is importable only while the
# server imports it: runs must not find what is installed beside it.
_START = f"""
import os, sys
sys.path.append({str(_PACKAGE.parent)!r})
register, os.register_at_fork = os.register_at_fork, lambda **_: None
import random
os.register_at_fork = register
from cwm_core.corpus._sandbox_server import main
sys.path.pop()
main()
"""


@dataclass(frozen=True)
class Run:
    """A program to record."""

    code: str
    """Source text."""
    call: str | None = None
    """Expression to record, as in `record_source`; None for the whole program, as in `Recorder.record_file`."""
    module: str | None = None
    """Module of a package to record the call in, as in `Recorder.record_call`; `code` is then its source."""
    stdin: str = ""
    """Standard input."""
    effects: Literal["none", "io", "all"] = "none"
    """Effects to watch: none, those with audit events, or clocks and randomness too."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `Recorder`."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run: a trace, maybe cut at a limit of the recorder, or a failure."""

    trace: Trace | None
    """The recording; None if the run failed."""
    failure: RunFailure | None
    """Failure that prevented a trace."""
    effects: frozenset[Effect]
    """Effects seen, if they were watched."""
    seconds: float
    """Wall clock time from the fork to the end of all its processes, or the share of this run; 0 if the sandbox
    ended."""

    @property
    def reason(self) -> str | None:
        """Text of the failure, as in the counts on disk."""
        return None if self.failure is None else str(self.failure)

    @property
    def by_clock(self) -> bool:
        """Whether a time limit ended the run, so that another run may end differently."""
        return self.failure is not None and self.failure.by_clock


class RecordingSandbox:
    """A sandbox that records one program after the other; a context manager.

    A program cannot reach the processes or files of another program, or the network. A program that brings down its
    sandbox, such as a fork bomb, costs a new sandbox but no other result.
    """

    _arguments: tuple[str, ...] = ("-c", _START)

    def __init__(
        self,
        *,
        limits: machines.Limits = LIMITS,
        sandbox: machines.Sandbox = "bubblewrap",
        hash_seed: int = 0,
        paths: Sequence[str] = (),
        preload: str | None = None,
    ) -> None:
        """Start the sandbox.

        Args:
            limits: Limits of each run.
            sandbox: Kind of isolation.
            hash_seed: Value of PYTHONHASHSEED.
            paths: Folders that programs can import from, besides those of the standard library. A module whose name the
                standard library has cannot be imported from them.
            preload: Module to import before any program runs. Its code runs in the parent of all programs and can
                change their results, so record only programs of that module.

        Raises:
            SandboxError: The sandbox does not work on this machine.
            ImportError: The module to preload cannot be imported.
        """
        self._limits, self._sandbox, self._hash_seed = limits, sandbox, hash_seed
        self._paths, self._preload = tuple(paths), preload
        self._process: machines.Process | None = None
        self._folder = tempfile.mkdtemp(prefix="cwm-") if sandbox == "process" else None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        limits = replace(
            self._limits,
            seconds=_FOREVER,
            cpu_seconds=_FOREVER,
            memory_bytes=self._limits.memory_bytes + _SERVER_MEMORY,
            processes=self._limits.processes + 1,
        )
        readable = [str(_PACKAGE), *self._paths]
        settings = {
            "pid_namespace": os.readlink("/proc/self/ns/pid"),
            "folder": self._folder,
            "paths": [os.path.realpath(path) for path in self._paths],
            "entries": machines.scratch_entries(readable) if self._sandbox == "bubblewrap" else [],
        }
        self._received, self._unsent, self._is_ready = bytearray(), b"", False
        self._log = machines.HeadTail(_LOG_BYTES)
        self._process = machines.Process(
            [sys.executable, "-s", "-S", "-P", *self._arguments, json.dumps(settings)],
            folder=self._folder,
            limits=limits,
            sandbox=self._sandbox,
            env={"PYTHONHASHSEED": str(self._hash_seed), **ONE_THREAD},
            readable=readable,
        )
        if self._preload is not None:
            self._await_ready()
            answers = self._exchange(_framed({"preload": self._preload}), _START_SECONDS)
            reason = answers[0][0]["reason"] if answers else str(self._failure())
            if reason is not None:
                raise ImportError(f"cannot import {self._preload} in the sandbox: {reason}", name=self._preload)

    def _await_ready(self) -> None:
        """Wait until the server takes requests: a server that cannot start says nothing about any program."""
        if self._is_ready:
            return
        if not self._exchange(b"", _START_SECONDS):
            failure, log = self._failure(), self._log.value().decode(errors="replace").strip()
            raise machines.SandboxError(
                f"{sys.executable} does not start recording in the {self._sandbox} sandbox ({failure}); "
                f"its output: {log or 'none'}"
            )
        self._is_ready = True

    def run(self, runs: Iterable[Run], *, runs_per_process: int = 1) -> Iterator[RunResult]:
        """Record programs and yield results in their order. A few programs are recorded ahead.

        Args:
            runs: The programs.
            runs_per_process: Number of programs that share a process, one after the other, which costs them much less.
                Use more than one only to try programs out: a program finds what earlier ones left in modules. The
                limits hold for the whole process. A program that ends the process is tried again in a new one.

        Raises:
            SandboxError: The sandbox does not start. What programs do never raises.
        """
        waiting = iter(runs)
        pending: deque[Run] = deque()
        sent = 0
        while True:
            while len(pending) < _IN_FLIGHT and (run := next(waiting, None)) is not None:
                pending.append(run)
            if not pending:
                return
            unsent = [self._request(run) for run in itertools.islice(pending, sent, None)]
            groups = (unsent[i : i + runs_per_process] for i in range(0, len(unsent), runs_per_process))
            self._await_ready()
            sent = len(pending)
            answers = self._exchange(b"".join(map(_framed, groups)), self._limits.seconds + _GRACE)
            for header, trace in answers:
                yield _result(pending.popleft(), header, trace)
            sent -= len(answers)
            if not answers:
                failure = self._failure()
                self._restart()
                if runs_per_process == 1:
                    pending.popleft()
                    yield RunResult(None, failure, frozenset(), 0.0)
                runs_per_process = 1  # shows which of the programs ended the sandbox
                sent = 0

    def _request(self, run: Run) -> dict[str, Any]:
        limits = self._limits
        return {
            "code": run.code if run.module is None else "",
            "call": run.call,
            "module": run.module,
            "stdin": run.stdin,
            "effects": run.effects,
            "options": {"max_bytes": _MAX_TRACE_BYTES} | run.options,
            "seconds": limits.seconds,
            "answer_bytes": limits.output_bytes,
            "limits": [limits.cpu_seconds, limits.memory_bytes, limits.file_bytes],
        }

    @property
    def _running(self) -> machines.Process:
        if self._process is None:
            raise ValueError("the recording sandbox is closed")
        return self._process

    def _exchange(self, data: bytes, seconds: float) -> list[tuple[dict[str, Any], bytes]]:
        """Send requests and return complete answers as soon as there is one; none if the sandbox ended or is stuck."""
        self._unsent = bytes(
            self._running.exchange(
                self._unsent + data,
                self._received.extend,
                self._log.add,
                seconds=seconds,
                until=lambda: _is_complete(self._received),
            )
        )
        answers = []
        while _is_complete(self._received):
            answers.append(_take(self._received))
        return answers

    def _failure(self) -> RunFailure:
        """Return why the sandbox gave no answer."""
        outcome = self._running.outcome()
        if outcome is not None and outcome.exceeded:
            return RunFailure(FailureKind.LIMIT, outcome.exceeded)
        return RunFailure(FailureKind.SANDBOX_ENDED) if self._running.ended else CLOCK

    def _restart(self) -> None:
        self._running.close()
        self._process = None
        self._start()

    def close(self) -> None:
        """End the sandbox and everything in it. Calling it again does nothing."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._folder is not None:
            machines.remove_tree(self._folder)

    def __enter__(self) -> Self:
        """Return the sandbox."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the sandbox."""
        self.close()


def _framed(message: Any) -> bytes:
    text = json.dumps(message).encode()
    return LENGTH.pack(len(text)) + text


def _is_complete(received: bytearray) -> bool:
    """Return whether the bytes begin with a complete answer."""
    head = 2 * LENGTH.size
    return len(received) >= head and len(received) >= head + sum(struct.unpack_from("<II", received))


def _take(received: bytearray) -> tuple[dict[str, Any], bytes]:
    """Remove the first answer and return its header and trace."""
    header, trace = struct.unpack_from("<II", received)
    start = 2 * LENGTH.size
    text, data = bytes(received[start : start + header]), bytes(received[start + header : start + header + trace])
    del received[: start + header + trace]
    return json.loads(text), data


def _result(run: Run, header: dict[str, Any], data: bytes) -> RunResult:
    """Return the result of a run. A program can forge its own trace and effects, but those of no other program."""
    failure, trace = None if header["reason"] is None else RunFailure.parse(header["reason"]), None
    effects: frozenset[Effect] = frozenset()
    try:
        effects = frozenset(map(Effect, header["effects"]))
        if failure is None:
            failure, trace = _read_trace(run, data)
    except ValueError:
        failure = RunFailure(FailureKind.DAMAGED_TRACE)
    return RunResult(trace, failure, effects, header["seconds"])


def _read_trace(run: Run, data: bytes) -> tuple[RunFailure | None, Trace | None]:
    # The header of a stored trace states the length that `from_bytes` unpacks at most.
    if int.from_bytes(data[12:20], "little") > 2 * _MAX_TRACE_BYTES:
        return RunFailure(FailureKind.TOO_LARGE), None
    trace = Trace.from_bytes(data)
    if run.call is not None:
        context = source_context if run.module is None else call_context
        if trace.context != context(run.code, run.call):
            return RunFailure(FailureKind.DAMAGED_TRACE), None
    return None, trace
