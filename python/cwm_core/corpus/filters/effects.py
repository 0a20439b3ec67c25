"""What a call does beyond computing: input and output, reading clocks, drawing random numbers.

`Effects` watches in the process that runs the call, with two hooks of the interpreter, and replaces nothing:

- an audit hook, which costs next to nothing, for input and output, processes, threads and `id`;
- with ``clocks=True``, a profile function for calls of clocks and sources of randomness, which have no audit events.
  A recording takes two to three times as long with it, so let it watch the second of two. What the program could see
  of it: `sys.getprofile`, and that recursion reaches its limit one call earlier.

Not seen: a clock or generator that C code calls by itself (``map(time.time, ...)``, a compiled extension such as
NumPy's), clocks that another thread reads, files that are only asked about (`os.stat`, `os.path.exists`), reading
`os.environ`, output to the standard streams. Comparing two recordings finds what of it shows in the trace. It is no
sandbox either: a program that wants to hide what it does can.
"""

from __future__ import annotations

import _thread
import datetime
import random
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from ..._native import is_recorder_at_work
from ...trace.recorder import Recorder
from ..sample import Drop, Sample

# Audit events (https://docs.python.org/3/library/audit_events.html) by their beginnings, and the effect they show.
_EVENTS = {
    "open": "file",
    "os.": "file",
    "shutil.": "file",
    "tempfile.": "file",
    "glob.": "file",
    "pathlib.": "file",
    "fcntl.": "file",
    "mmap.": "file",
    "sqlite3.": "file",
    "socket.": "network",
    "urllib.": "network",
    "http.": "network",
    "ftplib.": "network",
    "imaplib.": "network",
    "poplib.": "network",
    "smtplib.": "network",
    "telnetlib.": "network",
    "nntplib.": "network",
    "subprocess.": "process",
    "os.system": "process",
    "os.exec": "process",
    "os.fork": "process",
    "os.forkpty": "process",
    "os.posix_spawn": "process",
    "os.spawn": "process",
    "os.kill": "process",
    "os.killpg": "process",
    "os.putenv": "environment",
    "os.unsetenv": "environment",
    "pty.": "process",
    "signal.": "process",
    "resource.": "process",
    "syslog.": "file",
    "webbrowser.": "process",
    "builtins.input": "input",
    "builtins.id": "id",
    "ctypes.": "native code",
    "_thread.": "thread",
    "time.sleep": "clock",
}

_CLOCKS = {
    "time": (
        "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time",
        "process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns", "localtime", "gmtime",
        "ctime", "asctime", "strftime", "sleep",
    ),
    "posix": ("times",),
}  # fmt: skip
_ENTROPY = {"posix": ("urandom", "getrandom"), "_uuid": ("generate_time_safe",)}
_THREADS = {"_thread": ("start_new_thread", "start_joinable_thread")}  # audited from Python 3.12 on
_DATES = frozenset({"now", "utcnow", "today"})
_NOT_THE_PROGRAM = ("<frozen importlib", "<frozen zipimport", Recorder.record_file.__code__.co_filename)

_watching: Effects | None = None
_hooked = False


class Effects:
    """Watches what runs in the ``with`` block; `names` are the effects seen, also by other threads.

    Names: ``"file"``, ``"network"``, ``"process"``, ``"environment"``, ``"input"``, ``"thread"``, ``"native code"``,
    ``"id"`` (an object's address was read), ``"random"`` (the global generator of `random` was used, seeded or not),
    and with `clocks` ``"clock"`` and ``"entropy"``. What the import system does to import a module is none; what a
    module's body does is. On Python 3.11 threads that end before the block does are seen with `clocks` alone.

    The audit hook stays in the process, asleep outside the block, since the interpreter takes none back. One block
    watches at a time.
    """

    def __init__(self, *, clocks: bool = False) -> None:
        """With `clocks` a profile function watches the thread of the block; see the module."""
        self.names: set[str] = set()
        self._clocks = clocks

    def __enter__(self) -> Effects:
        """Begin. Raises RuntimeError where another block watches, or with `clocks` another profile function is set."""
        global _watching, _hooked  # noqa: PLW0603  # an audit hook is for the life of the process
        if _watching is not None:
            raise RuntimeError("effects are watched already")
        if self._clocks and sys.getprofile() is not None:
            raise RuntimeError("another profile function is set")
        if not _hooked:
            sys.addaudithook(_audit)
            _hooked = True
        self._random_state = random.getstate()
        self._threads = _thread._count()  # `threading` would run code of its own in each child of a worker
        _watching = self
        if self._clocks:
            sys.setprofile(_profile_function(self.names))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        global _watching  # noqa: PLW0603
        if self._clocks:
            sys.setprofile(None)
        _watching = None
        if random.getstate() != self._random_state:
            self.names.add("random")
        if _thread._count() > self._threads:
            self.names.add("thread")


@dataclass(frozen=True)
class NoEffects:
    """Drop samples with effects other than `allow`; the reason is ``"effect: NAME"``, of several the first by name."""

    allow: Collection[str] = frozenset()

    def __call__(self, sample: Sample) -> Drop | None:
        """The reason to drop the sample, or None."""
        seen = sorted(sample.effects.difference(self.allow))
        return Drop(f"effect: {seen[0]}", ", ".join(seen)) if seen else None


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if _watching is None or not (name := _EVENTS.get(event) or _EVENTS.get(event[: event.find(".") + 1])):
        return
    if is_recorder_at_work():  # it is a `__repr__` that only the recorder called
        return
    effects = _watching
    if name != "file" or not _is_import():
        effects.names.add(name)


def _is_import() -> bool:
    """Whether it is the import system's own code that opens or lists: the innermost Python code."""
    # This raises an audit event of its own, which is none of those above.
    try:
        return sys._getframe(2).f_code.co_filename.startswith(_NOT_THE_PROGRAM)
    except ValueError:  # no Python code at all
        return False


def _profile_function(names: set[str]) -> Callable[[FrameType, str, Any], None]:
    """What `sys.setprofile` is to call: looks at calls of C functions alone."""
    effects: dict[Any, str] = {}
    for table, effect in ((_CLOCKS, "clock"), (_ENTROPY, "entropy"), (_THREADS, "thread")):
        for module, functions in table.items():
            found = sys.modules.get(module)
            effects |= {getattr(found, name): effect for name in functions if hasattr(found, name)}
    seed = random.Random.seed.__code__

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        # Hashing a builtin or comparing it runs no code of the program.
        if (effect := effects.get(called)) is not None:
            names.add(effect)
        elif called.__name__ in _DATES and _is_subclass(getattr(called, "__self__", None), datetime.date):
            names.add("clock")
        elif frame.f_code is seed and called.__name__ == "seed" and frame.f_locals.get("a") is None:
            names.add("entropy")  # a generator that is not given a seed takes one from the system

    return look


def _is_subclass(value: object, base: type) -> bool:
    """As `issubclass`, without asking a value of the program what it is."""
    return issubclass(type(value), type) and base in type.__dict__["__mro__"].__get__(value)
