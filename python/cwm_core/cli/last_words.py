"""Save a recording when the process is about to end by a signal, `os._exit`, or a similar function."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module behind `signal`, which has no stub
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from .._native import before_exit

# Signals that can be handled and otherwise end the process. Ctrl-C raises KeyboardInterrupt instead.
_DEADLY = (
    "SIGHUP", "SIGQUIT", "SIGTERM", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR",
    "SIGPOLL", "SIGSTKFLT", "SIGABRT",
)  # fmt: skip


def _deadly() -> set[int]:
    """Return the signals to handle on this system."""
    numbers = {getattr(signal, name) for name in _DEADLY if hasattr(signal, name)}
    if faulthandler.is_enabled():  # it prints a traceback on this signal, and `signal.getsignal` does not know it
        numbers.discard(signal.SIGABRT)
    if hasattr(signal, "SIGRTMIN"):
        numbers.update(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
    return numbers


def _name(number: int) -> str:
    """Return the name of a signal, such as SIGTERM or SIGRTMIN+2."""
    try:
        return signal.Signals(number).name
    except ValueError:  # only the first and the last real-time signal have one
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


class _Ended(BaseException):
    """Stops a program after a signal that arrived while the recording could not be saved."""


class _Default(int):
    """A signal handler that `signal.getsignal` reports as `SIG_DFL`, so that programs do not detect it."""

    call: Callable[[int], None]

    def __call__(self, number: int, _: Any) -> None:
        self.call(number)


class LastWords:
    """Calls a function once before the process ends, to save the running recording."""

    def __init__(self, keep: Callable[[str], None]) -> None:
        """Set the function to call.

        Args:
            keep: Function that receives the reason, such as `SIGTERM` or `os._exit`. Raises RuntimeError if the
                recording is not accessible at that moment.
        """
        self._keep = keep
        self._process = os.getpid()
        self._is_over = False
        self._pending: int | None = None
        self._numbers: list[int] = []

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that started the recording, and not a fork of it."""
        return os.getpid() == self._process

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Save the recording if the process is about to end inside the block."""
        handler = _Default(signal.SIG_DFL)
        handler.call = self._handle
        if threading.current_thread() is threading.main_thread():
            self._numbers = [number for number in _deadly() if signal.getsignal(number) is signal.SIG_DFL]
        for number in self._numbers:
            _signal.signal(number, handler)  # `signal.signal` would convert it to a plain int
        before_exit(self._exiting)
        try:
            yield
        finally:
            self._is_over = True  # from now on the caller saves the recording, and `finish` ends the process

    def finish(self) -> None:
        """End the process if a signal arrived after the block. Call this after saving the trace."""
        before_exit(None)
        for number in self._numbers:
            if signal.getsignal(number) is signal.SIG_DFL:  # the program did not set its own handler
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
            self._keep(_name(number))
        except RuntimeError:
            self._pending = number
            raise _Ended from None
        _die(number)


def _die(number: int) -> NoReturn:
    """End this process by a signal with its default action."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError(f"signal {number} did not end the process")
