"""Define the ways in which a run in a recording sandbox can fail to produce a trace."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """Kind of failure of a run. The values are the words in progress files."""

    DOES_NOT_COMPILE = "does not compile"
    RAISED_BEFORE_CALL = "raised before the call"
    NO_TRACE = "no trace"
    DAMAGED_TRACE = "no whole trace"
    NO_RESULT = "ended without a result"
    TOO_LARGE = "answer too large"
    SIGNAL = "ended by signal"
    EXIT_CODE = "ended by exit code"
    LIMIT = "limit"
    SANDBOX_ENDED = "ended its sandbox"


_SEPARATORS = {FailureKind.SIGNAL: " ", FailureKind.EXIT_CODE: " ", FailureKind.LIMIT: ": "}


@dataclass(frozen=True)
class RunFailure:
    """The failure of a run, written `ended by signal 9` or `limit: seconds`."""

    kind: FailureKind
    """Kind of the failure."""
    detail: str = ""
    """Number of the signal, the exit code, or the name of the limit, as in `machines.Limits`."""

    def __str__(self) -> str:
        """Return the words that count this failure in files."""
        return f"{self.kind}{_SEPARATORS.get(self.kind, '')}{self.detail}"

    @classmethod
    def parse(cls, text: str) -> RunFailure:
        """Return the failure that `str` wrote.

        A program can forge the text, so one that `str` does not write means that the run gave no result.
        """
        for kind, separator in _SEPARATORS.items():
            detail = text.removeprefix(f"{kind}{separator}")
            is_valid = detail.isidentifier() if kind is FailureKind.LIMIT else detail.isdecimal()
            if detail != text and is_valid and len(detail) <= 20:
                return cls(kind, detail)
        try:
            return cls(FailureKind(text))
        except ValueError:
            return cls(FailureKind.NO_RESULT)

    @property
    def by_clock(self) -> bool:
        """Whether a time limit ended the run, so that another run may end differently."""
        return self in (CLOCK, CPU_CLOCK)


CLOCK = RunFailure(FailureKind.LIMIT, "seconds")
"""The run reached its limit on wall clock time."""
CPU_CLOCK = RunFailure(FailureKind.SIGNAL, str(signal.SIGXCPU.value))
"""The run reached its limit on processor time."""
