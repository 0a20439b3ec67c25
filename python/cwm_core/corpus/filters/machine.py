"""Drop traces that show the machine they were recorded on: folders in values, or its memory in exceptions."""

from __future__ import annotations

import os
import re
import site
import sys
from collections.abc import Iterable
from functools import cache

from ..reasons import DropReason
from ..sample import Drop, Sample
from .secrets import values_text

# Folders that programs name without asking the machine.
_GENERAL = frozenset({"/", "/usr", "/usr/local", "/opt", "/home"})
_MEMORY_ERROR = re.compile(r"(?:\w+\.)*\w*MemoryError\(")


def no_machine(sample: Sample) -> Drop | None:
    """Drop a sample whose values or output show a folder of this machine or of its sandbox.

    Examples are the text of a traceback, the current folder, and a path in the message of an exception. A folder that
    the source or the call names does not count. The reason is `SHOWS_MACHINE`.
    """
    pattern = _pattern((*_folders(), *sample.paths))
    given = f"{sample.trace.context}\n{sample.call}"
    for match in pattern.finditer(values_text(sample.trace)):
        if match[0] not in given:
            return Drop(DropReason.SHOWS_MACHINE, match[0])
    return None


def within_memory(sample: Sample) -> Drop | None:
    """Drop a sample in which memory ran out, which the limit of the sandbox decides. The reason is `MEMORY`.

    A `MemoryError` that the program itself raises does not count.
    """
    for frame in sample.trace.frames:
        if frame.arg is not None and _MEMORY_ERROR.match(frame.arg) and frame.event == "exception":
            own = (frame.line or "").lstrip().startswith("raise ")
            return None if own else Drop(DropReason.MEMORY, frame.arg[:100])
    ended = sample.trace.exception
    return Drop(DropReason.MEMORY, ended[:100]) if ended is not None and _MEMORY_ERROR.match(ended) else None


@cache
def _folders() -> tuple[str, ...]:
    """Return the folders of this interpreter, its packages, and this user, and temporary folders, also those of a
    sandbox.
    """
    library = os.path.dirname(os.__file__)
    named = [library, *site.getsitepackages(), sys.prefix, sys.base_prefix, os.path.expanduser("~")]
    named += [str(os.path.dirname(os.path.dirname(os.path.dirname(__file__)))), "/tmp", "/dev/shm", "/shown"]
    named += [os.path.realpath(path) for path in named]
    return tuple(sorted({path for path in named if path not in _GENERAL}))


@cache
def _pattern(folders: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(folders), key=len, reverse=True)
    return re.compile(r"(?<![\w.-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")
