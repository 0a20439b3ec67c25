"""Watch what a call does beyond computing: input and output, reading clocks, drawing random numbers.

`Effects` watches in the process that runs the call, with two hooks of the interpreter, and replaces nothing:

- An audit hook sees input and output, processes, threads, and calls of `id`. It costs next to nothing.
- With `clocks=True`, a profile function sees calls of clocks and sources of randomness, which have no audit events. It
  makes a recording take two to three times as long, so use it for the second of two recordings. The program could
  notice `sys.getprofile`, and that recursion reaches its limit one call earlier.

An effect counts if the program's own frames cause it, directly or through what they call. Bookkeeping of the standard
library does not count: see `_is_bookkeeping`.

The following are not seen. Comparing two recordings finds those that show in the trace.

- A clock or generator that C code calls, such as `map(time.time, ...)` or a compiled extension such as NumPy.
- Clocks that another thread reads.
- Queries about files that do not open them, such as `os.stat` and `os.path.exists`.
- Reading `os.environ`, and output to the standard streams.

This is not a sandbox: a program can hide what it does.
"""

from __future__ import annotations

import _thread
import datetime
import os
import random
import sys
from collections.abc import Callable, Collection
from enum import StrEnum
from types import FrameType, TracebackType
from typing import Any

from .._native import is_recorder_at_work
from ..trace.recorder import Recorder


class Effect(StrEnum):
    """Side effect of a call. The values are the words in files and on the command line."""

    FILE = "file"
    NETWORK = "network"
    PROCESS = "process"
    ENVIRONMENT = "environment"
    INPUT = "input"
    THREAD = "thread"
    NATIVE_CODE = "native code"
    ID = "id"
    """The address of an object was read."""
    RANDOM = "random"
    """The global generator of `random` was used, seeded or not."""
    CLOCK = "clock"
    ENTROPY = "entropy"
    MACHINE = "machine"
    """Process ids, users, the name of the host, or the current folder were read."""


# Effects by the beginning of the name of an audit event: https://docs.python.org/3/library/audit_events.html.
_EVENTS: dict[str, Effect] = {
    "open": Effect.FILE,
    "os.": Effect.FILE,
    "shutil.": Effect.FILE,
    "tempfile.": Effect.FILE,
    "glob.": Effect.FILE,
    "pathlib.": Effect.FILE,
    "fcntl.": Effect.FILE,
    "mmap.": Effect.FILE,
    "sqlite3.": Effect.FILE,
    "socket.": Effect.NETWORK,
    "urllib.": Effect.NETWORK,
    "http.": Effect.NETWORK,
    "ftplib.": Effect.NETWORK,
    "imaplib.": Effect.NETWORK,
    "poplib.": Effect.NETWORK,
    "smtplib.": Effect.NETWORK,
    "telnetlib.": Effect.NETWORK,
    "nntplib.": Effect.NETWORK,
    "subprocess.": Effect.PROCESS,
    "os.system": Effect.PROCESS,
    "os.exec": Effect.PROCESS,
    "os.fork": Effect.PROCESS,
    "os.forkpty": Effect.PROCESS,
    "os.posix_spawn": Effect.PROCESS,
    "os.spawn": Effect.PROCESS,
    "os.kill": Effect.PROCESS,
    "os.killpg": Effect.PROCESS,
    "os.putenv": Effect.ENVIRONMENT,
    "os.unsetenv": Effect.ENVIRONMENT,
    "pty.": Effect.PROCESS,
    "signal.": Effect.PROCESS,
    "resource.": Effect.PROCESS,
    "syslog.": Effect.FILE,
    "webbrowser.": Effect.PROCESS,
    "builtins.input": Effect.INPUT,
    "builtins.id": Effect.ID,
    "ctypes.": Effect.NATIVE_CODE,
    "_thread.": Effect.THREAD,
    "time.sleep": Effect.CLOCK,
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
_MACHINE = {
    "posix": (
        "cpu_count", "getcwd", "getcwdb", "getgroups", "getloadavg", "getlogin", "getpgid", "getpid", "getppid",
        "getsid", "getuid", "geteuid", "getgid", "getegid", "sched_getaffinity", "statvfs", "sysconf", "uname",
    ),
    "pwd": ("getpwall", "getpwnam", "getpwuid"),
    "grp": ("getgrall", "getgrgid", "getgrnam"),
    "_socket": ("gethostname",),
    "_thread": ("get_ident", "get_native_id"),
    "resource": ("getrlimit", "getrusage"),
}  # fmt: skip
_THREADS = {"_thread": ("start_new_thread", "start_joinable_thread")}  # audited from Python 3.12 on
_DATES = frozenset({"now", "utcnow", "today"})
_IMPORT_SYSTEM = ("<frozen importlib", "<frozen zipimport")
_RECORDER = os.path.join(os.path.dirname(Recorder.record_file.__code__.co_filename), "")
_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
_INSTALLED = ("site-packages", "dist-packages")
# Modules of the standard library that read the clock for their own work and do not return it.
_KEEP_TIME = (
    "asyncio/",
    "concurrent/futures/",
    "logging/",
    "selectors.py",
    "threading.py",
    "_strptime.py",
    "calendar.py",
)
# Modules that ask for the process or thread to distinguish their own objects.
_KEEP_IDENTITY = (
    "asyncio/", "concurrent/futures/", "functools.py", "logging/", "queue.py", "random.py", "reprlib.py", "tempfile.py",
    "threading.py", "weakref.py", "_weakrefset.py",
)  # fmt: skip
_STREAMS: dict[int | str, Effect | None] = {
    0: Effect.INPUT, 1: None, 2: None, "/dev/stdin": Effect.INPUT, "/dev/stdout": None, "/dev/stderr": None,
}  # fmt: skip
"""Effects of opening the standard streams; None for output, which does not count."""

_watching: Effects | None = None
_hooked = False


class Effects:
    """Detects the effects of code that runs in the `with` block.

    Effects of other threads count too. The body of another module that is imported does not count, unless it reaches
    the network or starts a process. On Python 3.11, threads that end before the block does are seen only with `clocks`.

    The interpreter cannot remove an audit hook, so the hook stays in the process and does nothing outside the block.
    Only one block can watch at a time.

    Attributes:
        names: The effects seen. `CLOCK`, `ENTROPY`, and `MACHINE` are seen only with `clocks`.
    """

    def __init__(self, *, clocks: bool = False, own: Collection[str] | None = None) -> None:
        """Prepare to watch.

        Args:
            clocks: Watch the thread of the block with a profile function too, which sees clocks and sources of
                randomness.
            own: Files, as in `co_filename`, whose frames are the program's own. By default, all files but those of the
                standard library and of installed packages.
        """
        self.names: set[Effect] = set()
        self._clocks = clocks
        self._own = None if own is None else frozenset(own)

    def add(self, name: Effect, frame: FrameType | None) -> None:
        """Count an effect if the program's own frames cause it.

        Args:
            name: The effect.
            frame: The innermost Python frame.
        """
        if name is Effect.ID:  # what called code does with addresses does not matter to the program
            counts = frame is not None and self._is_own(frame)
        else:
            counts = not self._is_anothers(name, frame) and not _is_bookkeeping(name, frame)
        if counts:
            self.names.add(name)

    def _is_own(self, frame: FrameType) -> bool:
        file = frame.f_code.co_filename
        if self._own is not None:
            return file in self._own
        return not (_is_library(frame) or _is_installed(file) or file.startswith(_RECORDER))

    def _is_anothers(self, name: Effect, frame: FrameType | None) -> bool:
        """Return whether the cause is the recorder, the import system, or the body of an imported module."""
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(_RECORDER) or (
                file.startswith(_IMPORT_SYSTEM) and name not in (Effect.NETWORK, Effect.PROCESS)
            ):
                return True
            if self._is_own(frame):
                return False
            frame = frame.f_back
        return False

    def __enter__(self) -> Effects:
        """Start to watch.

        Raises:
            RuntimeError: Another block watches, or, with `clocks`, another profile function is set.
        """
        global _watching, _hooked  # noqa: PLW0603  # an audit hook lasts as long as the process
        if _watching is not None:
            raise RuntimeError("effects are watched already")
        if self._clocks and sys.getprofile() is not None:
            raise RuntimeError("another profile function is set")
        if not _hooked:
            sys.addaudithook(_audit)
            _hooked = True
        self._random_state = random.getstate()
        self._threads = _thread._count()  # importing `threading` would run code in each child of a sandbox
        _watching = self
        if self._clocks:
            sys.setprofile(_profile_function(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching."""
        global _watching  # noqa: PLW0603
        if self._clocks:
            sys.setprofile(None)
        _watching = None
        if random.getstate() != self._random_state:
            self.names.add(Effect.RANDOM)
        if _thread._count() > self._threads:
            self.names.add(Effect.THREAD)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None or not (name := _EVENTS.get(event) or _EVENTS.get(event[: event.find(".") + 1])):
        return
    if is_recorder_at_work():  # the recorder, not the program, called this `__repr__`
        return
    effects = _watching
    if event == "open" and type(arguments[0]) in (int, str) and arguments[0] in _STREAMS:
        name = _STREAMS[arguments[0]]
    try:
        frame = sys._getframe(1)  # its own audit event is not one of those above
    except ValueError:  # no Python frame
        frame = None
    if name is not None:
        effects.add(name, frame)


def _is_bookkeeping(name: Effect, frame: FrameType | None) -> bool:
    """Return whether the standard library causes an effect for work whose result does not depend on it.

    Event loops, locks, logs, and calendars read the clock for other code of the library. An event loop wakes itself
    through a pair of sockets. Sources are read to show lines in tracebacks and warnings.
    """
    inner = []
    while frame is not None and _is_library(frame):
        inner.append((frame.f_code.co_filename.removeprefix(_LIBRARY), frame.f_code.co_name))
        frame = frame.f_back
    files = [file for file, _ in inner]
    if name is Effect.CLOCK:
        return len(inner) > 1 and files[0].startswith(_KEEP_TIME) and files[1].startswith((*_KEEP_TIME, "<frozen"))
    if name is Effect.MACHINE:  # locks keep their thread, logs name the process
        return bool(files) and files[0].startswith(_KEEP_IDENTITY)
    if name is Effect.NETWORK:
        return ("asyncio/selector_events.py", "_make_self_pipe") in inner
    return name is Effect.FILE and "linecache.py" in files[:-1] and files[-1] != "linecache.py"


def _is_library(frame: FrameType) -> bool:
    """Return whether a frame is of the standard library."""
    file = frame.f_code.co_filename
    return file.startswith("<frozen ") or (file.startswith(_LIBRARY) and not _is_installed(file))


def _is_installed(file: str) -> bool:
    return any(folder in file for folder in _INSTALLED)


def _profile_function(seen: Effects) -> Callable[[FrameType, str, Any], None]:
    """Return a function for `sys.setprofile` that detects effects of calls to C functions."""
    effects: dict[Any, Effect] = {}
    for table, effect in (
        (_CLOCKS, Effect.CLOCK),
        (_ENTROPY, Effect.ENTROPY),
        (_MACHINE, Effect.MACHINE),
        (_THREADS, Effect.THREAD),
    ):
        for module, functions in table.items():
            found = sys.modules.get(module)
            effects |= {getattr(found, name): effect for name in functions if hasattr(found, name)}
    seed = random.Random.seed.__code__

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        # Hashing a builtin or comparing it runs no code of the program.
        if (effect := effects.get(called)) is not None:
            seen.add(effect, frame)
        elif called.__name__ in _DATES and _is_subclass(getattr(called, "__self__", None), datetime.date):
            seen.add(Effect.CLOCK, frame)
        elif frame.f_code is seed and called.__name__ == "seed" and frame.f_locals.get("a") is None:
            seen.add(Effect.ENTROPY, frame)  # a generator without a seed takes one from the system

    return look


def _is_subclass(value: object, base: type) -> bool:
    """Do what `issubclass` does, without running code of the program's class."""
    return issubclass(type(value), type) and base in type.__dict__["__mro__"].__get__(value)
