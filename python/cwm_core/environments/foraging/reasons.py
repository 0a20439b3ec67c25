"""Reasons for dropping a candidate."""

from __future__ import annotations

from enum import StrEnum


class CandidateFault(StrEnum):
    """Why a mutation or an issue does not become a task; the words are those in the journal."""

    DOES_NOT_COMPILE = "does not compile"
    MACHINE_FAILED = "the machine failed"
    """Followed by the error."""
    TIMED_OUT = "the tests did not end"
    NO_REPORT = "the tests made no report"
    BREAKS_NO_TEST = "breaks no test"
    BREAKS_EVERY_TEST = "breaks every test"
    UNSOLVED = "the known solution scores"
    """Followed by the reward and its reason."""
    DUPLICATE = "the same as another"
