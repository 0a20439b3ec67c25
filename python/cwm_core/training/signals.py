"""Stop a run in an orderly way when a signal asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def on_first_signal(note: Callable[[int], None]) -> Iterator[None]:
    """Call `note` with the first SIGTERM or SIGINT, and restore the previous handlers for the second.

    Outside the main thread, which alone can handle signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def first(signum: int, _: FrameType | None) -> None:
        restore()
        note(signum)

    for caught in (signal.SIGTERM, signal.SIGINT):
        previous[caught] = signal.signal(caught, first) or signal.SIG_DFL
    try:
        yield
    finally:
        restore()
