"""Recording many programs that are not trusted: one sandbox a worker, a fresh forked child in it for each."""

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
from . import _sandbox_server
from ._sandbox_server import LENGTH

LIMITS = machines.Limits(
    seconds=5.0, cpu_seconds=5, memory_bytes=512 << 20, processes=32, file_bytes=16 << 20, output_bytes=16 << 20
)
"""Of one sample; `output_bytes` is what its trace may take, as stored."""

_MAX_TRACE_BYTES = 64 << 20  # of a recording, in the sample's process and unpacked in this one
_IN_FLIGHT = 16  # orders that a worker has before it: it need not wait for this side between two of them
_WORKER_MEMORY = 256 << 20  # what the worker itself may hold
# Libraries start a thread for each processor else, and meet the limit on processes.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_START_SECONDS = 60.0  # that a sandbox has to start and to import
_FOREVER = 10 * 365 * 86400  # seconds
_SAID = 2000  # bytes kept of what a sandbox writes to standard error
_GRACE = 10.0  # seconds that a worker has, beyond the limit, to end a program and say so


@dataclass(frozen=True)
class Run:
    """A program to record."""

    code: str
    call: str | None = None
    """An expression, recorded as by `record_source`; None: the whole program, as by `Recorder.record_file`."""
    module: str | None = None
    """The module of a package that the call is in, by `Recorder.record_call`; `code` is its source."""
    stdin: str = ""
    effects: Literal["none", "io", "all"] = "none"
    """What of the run's `Effects` to watch: input and output, or clocks and randomness too."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `Recorder`."""


@dataclass(frozen=True)
class RunResult:
    """What came of an order: a trace, maybe cut at a limit of the recorder, or the reason why there is none.

    Reasons: "does not compile", "raised before the call", "no trace", "ended without a result", "ended by signal N",
    "ended by exit code N", "answer too large", "no whole trace", "limit: NAME" (of `sandbox.Limits`), "ended its
    sandbox".
    """

    trace: Trace | None
    reason: str | None
    effects: frozenset[str]
    """As of `filters.effects.Effects`, where they were to be watched."""
    seconds: float
    """Wall clock, from the fork to the end of every process of it, or its share; 0 where the sandbox ended."""

    @property
    def by_clock(self) -> bool:
        """Whether a clock decided, so that another run may come out otherwise."""
        return self.reason in ("limit: seconds", "ended by signal 24")  # SIGXCPU


class RecordingSandbox:
    """A sandbox that records one program after the other; a context manager.

    A program cannot reach another one's process, files, or the network. One that brings down its sandbox (a fork
    bomb, say) costs a fresh sandbox, and nobody else's answer.
    """

    _script: tuple[str, ...] = (_worker.__file__,)

    def __init__(
        self,
        *,
        limits: machines.Limits = LIMITS,
        sandbox: machines.Sandbox = "bubblewrap",
        hash_seed: int = 0,
        paths: Sequence[str] = (),
        preload: str | None = None,
    ) -> None:
        """Start it. `hash_seed` is PYTHONHASHSEED.

        With `preload`, a module that can be imported from `paths` (without any, from the standard library), programs
        begin with it imported; its code has then run in their common parent, and so only speaks for itself. A module of
        `paths` whose name one of the standard library has cannot be imported.

        Raises `sandbox.SandboxError` when the sandbox is not possible here, ImportError when the module cannot be
        imported in it.
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
            memory_bytes=self._limits.memory_bytes + _WORKER_MEMORY,
            processes=self._limits.processes + 1,
        )
        readable = [str(Path(_worker.__file__).parents[1]), *self._paths]
        settings = {
            "pid_namespace": os.readlink("/proc/self/ns/pid"),
            "folder": self._folder,
            "paths": [os.path.realpath(path) for path in self._paths],
            "entries": machines.scratch_entries(readable) if self._sandbox == "bubblewrap" else [],
        }
        self._received, self._unsent, self._said, self._ready = bytearray(), b"", machines.HeadTail(_SAID), False
        self._process = machines.Process(
            [sys.executable, "-s", "-S", "-P", *self._script, json.dumps(settings)],
            folder=self._folder,
            limits=limits,
            sandbox=self._sandbox,
            env={"PYTHONHASHSEED": str(self._hash_seed), **ONE_THREAD},
            readable=readable,
        )
        if self._preload is not None:
            self._await_ready()
            order = {"preload": self._preload}
            answers = self._exchange(_framed(order), _START_SECONDS)
            reason = answers[0][0]["reason"] if answers else self._reason()
            if reason is not None:
                raise ImportError(f"cannot import {self._preload} in the sandbox: {reason}", name=self._preload)

    def _await_ready(self) -> None:
        """Wait until the worker in the sandbox takes orders: one that cannot start says nothing about any program."""
        if self._ready:
            return
        if not self._exchange(b"", _START_SECONDS):
            reason, said = self._reason(), self._said.value().decode(errors="replace").strip()
            raise machines.SandboxError(
                f"{sys.executable} does not start recording in the {self._sandbox} sandbox ({reason}); "
                f"it said: {said or 'nothing'}"
            )
        self._ready = True

    def run(self, orders: Iterable[Run], *, together: int = 1) -> Iterator[RunResult]:
        """Record programs, giving answers in their order; a few are taken ahead. Never raises for what they do.

        Raises `sandbox.SandboxError` when the sandbox does not start.

        Up to `together` of them share a child, one after the other, which costs them much less: for programs that are
        only tried, since what one leaves in its modules the next ones find. Its limits hold for all of them; one that
        ends it early is tried again as the first of the next child.
        """
        waiting = iter(orders)
        pending: deque[Run] = deque()
        sent = 0
        while True:
            while len(pending) < _IN_FLIGHT and (order := next(waiting, None)) is not None:
                pending.append(order)
            if not pending:
                return
            unsent = [self._described(order) for order in itertools.islice(pending, sent, None)]
            data = b"".join(_framed(unsent[i : i + together]) for i in range(0, len(unsent), together))
            self._await_ready()
            sent = len(pending)
            answers = self._exchange(data, self._limits.seconds + _GRACE)
            for header, trace in answers:
                yield _answer(pending.popleft(), header, trace)
            sent -= len(answers)
            if not answers:
                reason = self._reason()
                self._restart()
                if together == 1:
                    pending.popleft()
                    yield RunResult(None, reason, frozenset(), 0.0)
                together = 1  # alone, it is seen which of them it is
                sent = 0

    def _described(self, order: Run) -> dict[str, Any]:
        limits = self._limits
        return {
            "code": order.code if order.module is None else "",
            "call": order.call,
            "module": order.module,
            "stdin": order.stdin,
            "effects": order.effects,
            "options": {"max_bytes": _MAX_TRACE_BYTES} | order.options,
            "seconds": limits.seconds,
            "answer_bytes": limits.output_bytes,
            "limits": [limits.cpu_seconds, limits.memory_bytes, limits.file_bytes],
        }

    def _exchange(self, data: bytes, seconds: float) -> list[tuple[dict[str, Any], bytes]]:
        """Send orders; the answers that are complete once there is one, none if the sandbox ended or is stuck."""
        self._unsent = bytes(
            self._process.exchange(
                self._unsent + data,
                self._received.extend,
                self._said.add,
                seconds=seconds,
                until=lambda: _complete(self._received),
            )
        )
        answers = []
        while _complete(self._received):
            answers.append(_take(self._received))
        return answers

    def _reason(self) -> str:
        """Why the sandbox gave no answer."""
        outcome = self._process.outcome()
        if outcome is not None and outcome["exceeded"]:
            return f"limit: {outcome['exceeded']}"
        return "ended its sandbox" if self._process.ended else "limit: seconds"

    def _restart(self) -> None:
        self._process.close()
        self._process = None
        self._start()

    def close(self) -> None:
        """End the sandbox and everything in it. Safe to call again."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._folder is not None:
            machines.remove_tree(self._folder)

    def __enter__(self) -> Self:
        """The worker itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


def _framed(message: Any) -> bytes:
    text = json.dumps(message).encode()
    return LENGTH.pack(len(text)) + text


def _complete(received: bytearray) -> bool:
    """Whether a whole answer has come."""
    head = 2 * LENGTH.size
    return len(received) >= head and len(received) >= head + sum(struct.unpack_from("<II", received))


def _take(received: bytearray) -> tuple[dict[str, Any], bytes]:
    """Remove the first answer: its header and trace."""
    header, trace = struct.unpack_from("<II", received)
    start = 2 * LENGTH.size
    text, data = bytes(received[start : start + header]), bytes(received[start + header : start + header + trace])
    del received[: start + header + trace]
    return json.loads(text), data


def _answer(order: Run, header: dict[str, Any], data: bytes) -> RunResult:
    """What came of an order. The trace is the program's word about itself, and no more than that."""
    reason, trace = header["reason"], None
    if reason is None:
        try:
            # The length that the header of a stored trace claims is all that `from_bytes` would unpack.
            if int.from_bytes(data[12:20], "little") > 2 * _MAX_TRACE_BYTES:
                reason = "answer too large"
            else:
                trace = Trace.from_bytes(data)
        except ValueError:
            reason = "no whole trace"
    if trace is not None and order.call is not None:
        context = source_context if order.module is None else call_context
        if trace.context != context(order.code, order.call):
            trace, reason = None, "no whole trace"
    return RunResult(trace, reason, frozenset(header["effects"]), header["seconds"])
