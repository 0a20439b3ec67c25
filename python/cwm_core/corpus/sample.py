"""What the corpus pipeline handles: a recorded call with where it comes from, and the reason why one is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..trace import Trace


@dataclass(frozen=True)
class Sample:
    """One recorded call."""

    id: str
    """Occurs once in a corpus; the key of the trace in its store."""
    code: str
    """The source that the call ran in: a module."""
    call: str
    """The call as an expression."""
    trace: Trace
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What JSON has: `source`, `licence` (an SPDX expression), and whatever else says where the sample comes from, as
    package, version, path, qualified name and seed. Goes to the store as the metadata of the trace."""
    again: Trace | None = None
    """A second recording of the same call, from a process with another hash seed."""
    effects: frozenset[str] = frozenset()
    """What the call did beyond computing, as `Effects` saw it."""
    paths: tuple[str, ...] = ()
    """The folders, besides the standard library's, that the source imports from."""


@dataclass(frozen=True)
class Drop:
    """Why a sample is left out."""

    reason: str
    """One of a few fixed words for each filter, to be counted."""
    detail: str = ""
    """What it was in this sample."""


class Filter(Protocol):
    """Says of a sample why it is to be dropped, or None where it may stay."""

    def __call__(self, sample: Sample) -> Drop | None:
        """The reason to drop the sample, or None."""
