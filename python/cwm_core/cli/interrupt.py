"""Ctrl-C ends a command soon, whatever its main thread is doing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from .options import INTERRUPTED

# From Ctrl-C until the process is ended, if it has not ended by itself: a product of matrices, the import of a library
# or a thread that waits for a program does not see the exception that Python raises.
SECONDS = 0.7

# Verbs that keep something when they are interrupted, for which they take the time that it needs: their work ends by
# itself, and at once only at a second Ctrl-C.
PATIENT = frozenset({
    "agent", "corpus", "export", "forage", "import", "pack", "record", "serve", "tokenize", "train",
})  # fmt: skip


class Interruptible:
    """While it is entered, Ctrl-C ends the process with one line and exit code 130, at the latest after `SECONDS`.

    For the main thread of a process that is the command alone: it stays in effect after the block, until the process
    has ended, since threads may still be waited for.
    """

    def __init__(self, verb: str) -> None:
        """The verb decides whether it is patient; so is the debugger of a person, whose commands Ctrl-C stops."""
        self._verb = verb
        self._is_patient = verb in PATIENT or (verb == "debug" and sys.stdin is not None and sys.stdin.isatty())
        self._presses = 0
        self._was_pressed = threading.Event()
        self._has_ended = False

    def __enter__(self) -> Self:
        """Begin to watch. The signal's number comes through a pipe, at once, whatever the main thread does."""
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)  # a terminal sends the signal to children too
        threading.Thread(target=self._watch, name="cwm-interrupt", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """The work has ended, and has said so."""
        self._has_ended = True

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C was pressed, a moment ago perhaps."""
        return self._was_pressed.wait(0.1)

    def _watch(self) -> None:
        while True:
            self._presses += os.read(self._reader, 64).count(signal.SIGINT)
            if self._presses:
                self._was_pressed.set()
            if self._presses > self._is_patient:
                time.sleep(SECONDS)
                self._end()

    def _end(self) -> None:
        if not self._has_ended:
            os.write(sys.stderr.fileno(), f"cwm {self._verb}: interrupted\n".encode())
        os._exit(INTERRUPTED)


def _forget() -> None:
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
