"""End a command soon after Ctrl-C, even if its main thread is busy."""

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

# Seconds between Ctrl-C and the forced end of the process. A matrix product, the import of a library, or a thread that
# waits for a program does not notice the exception that Python raises.
SECONDS = 0.7

# Verbs that may take longer, since they save their results when they are interrupted. A second Ctrl-C ends them at
# once.
PATIENT = frozenset({
    "ablation", "agent", "corpus", "export", "forage", "import", "pack", "record", "rl", "serve", "tokenize", "train",
})  # fmt: skip


class Interruptible:
    """Context in which Ctrl-C ends the process within `SECONDS`, with one line and exit code 130.

    Use it in the main thread of a process that runs only the command. It stays in effect after the block until the
    process ends, because the interpreter may still wait for threads, and unloading PyTorch takes half a second.
    """

    def __init__(self, verb: str) -> None:
        """Watch for Ctrl-C of a verb. In an interactive debugger, Ctrl-C stops the running command instead."""
        self._verb = verb
        self._is_patient = verb in PATIENT or (verb == "debug" and sys.stdin is not None and sys.stdin.isatty())
        self._presses = 0
        self._was_pressed = threading.Event()
        self._has_ended = False
        self.exit_code = INTERRUPTED
        """Exit code of the command; set it before the block ends."""

    def __enter__(self) -> Self:
        """Start to watch. A pipe receives the number of the signal at once, even if the main thread is busy."""
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)  # a terminal sends the signal to children too
        threading.Thread(target=self._watch, name="cwm-interrupt", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Record that the command has ended and reported its end; if it was interrupted, end the process soon."""
        self._has_ended = True
        if kind is None and self._presses and self.exit_code == INTERRUPTED:
            threading.Thread(target=self._end_later, name="cwm-interrupt-end", daemon=True).start()

    @property
    def is_interrupted(self) -> bool:
        """Return whether Ctrl-C was pressed. Wait briefly, because the report of it may not have arrived yet."""
        return self._was_pressed.wait(0.1)

    def _watch(self) -> None:
        while True:
            self._presses += os.read(self._reader, 64).count(signal.SIGINT)
            if self._presses:
                self._was_pressed.set()
            if self._presses > self._is_patient:
                self._end_later()

    def _end_later(self) -> None:
        time.sleep(SECONDS)
        if not self._has_ended:
            os.write(sys.stderr.fileno(), f"cwm {self._verb}: interrupted\n".encode())
        os._exit(self.exit_code)


def _forget() -> None:
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
