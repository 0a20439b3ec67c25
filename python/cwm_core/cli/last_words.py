"""Keep what was recorded when the process ends without coming back: by a signal, or by `os._exit` and its like."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module behind `signal`, which has no stub
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from .._native import before_exit

# Those that end a process unless it handles them, and that can be handled. Ctrl-C raises KeyboardInterrupt.
_DEADLY = (
    "SIGHUP", "SIGQUIT", "SIGTERM", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR",
    "SIGPOLL", "SIGSTKFLT",
)  # fmt: skip


class _Ended(BaseException):
    """Stops a program whose process was told to end while nothing could be kept."""


class _Default(int):
    """A signal handler that `signal.getsignal` shows as `SIG_DFL`, so that no program sees it."""

    call: Callable[[int], None]

    def __call__(self, number: int, _: Any) -> None:
        self.call(number)


class LastWords:
    """Calls `keep(reason)` before the process ends, once, from the recording that runs.

    `keep` raises RuntimeError where it cannot look at the recording at this moment.
    """

    def __init__(self, keep: Callable[[str], None]) -> None:
        """Watch nothing yet; `keep` is called with the reason, such as `SIGTERM` or `os._exit`."""
        self._keep = keep
        self._process = os.getpid()
        self._is_over = False
        self._pending: int | None = None
        self._numbers: list[int] = []

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that began to record, not a copy that the program forked."""
        return os.getpid() == self._process

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep what was recorded if the process is told to end inside the block."""
        handler = _Default(signal.SIG_DFL)
        handler.call = self._handle
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _DEADLY if hasattr(signal, name)]
            self._numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
        for number in self._numbers:
            _signal.signal(number, handler)  # `signal.signal` would make a plain int of it
        before_exit(self._exiting)
        try:
            yield
        finally:
            self._is_over = True  # what was recorded is kept in the usual way, and then `finish` ends the process

    def finish(self) -> None:
        """End the process if a signal said so meanwhile. Call this when the trace is kept."""
        before_exit(None)
        for number in self._numbers:
            if signal.getsignal(number) is signal.SIG_DFL:  # the program has set no handler of its own
                signal.signal(number, signal.SIG_DFL)
        if self._pending is not None:
            _die(self._pending)

    def _exiting(self, name: str) -> None:
        if self.is_own_process and not self._is_over:
            self._keep(f"os.{name}")

    def _handle(self, number: int) -> None:
        if not self.is_own_process:
            _die(number)
        if self._is_over:
            self._pending = number
            return
        try:
            self._keep(signal.Signals(number).name)
        except RuntimeError:
            self._pending = number
            raise _Ended from None
        _die(number)


def _die(number: int) -> NoReturn:
    """End this process by a signal, as if nothing had handled it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError(f"signal {number} does not end the process")
