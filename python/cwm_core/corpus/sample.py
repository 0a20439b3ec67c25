"""Recorded calls in the pipeline, and the filters that drop them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..trace import Trace
from .reasons import DropReason


@dataclass(frozen=True)
class Sample:
    """One recorded call."""

    id: str
    """Unique id in the corpus; the key of the trace in its store."""
    code: str
    """Source text of the module that the call ran in."""
    call: str
    """The call as an expression."""
    trace: Trace
    """Recording of the call."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the sample, as a JSON object: `source`, `license` (an SPDX expression), and any other keys, such as
    package, version, path, qualified name, and seed. The store keeps it as the metadata of the trace."""
    again: Trace | None = None
    """Second recording of the same call, from a process with another hash seed."""
    effects: frozenset[str] = frozenset()
    """Side effects of the call, as values of `Effect`."""
    paths: tuple[str, ...] = ()
    """Folders, besides those of the standard library, that the source imports from."""


@dataclass(frozen=True)
class Drop:
    """The decision to leave out a sample."""

    reason: DropReason | str
    """Reason to count: a `DropReason`, or one of a few fixed texts of a filter of your own."""
    detail: str = ""
    """Details that the filter found in this sample."""


class Filter(Protocol):
    """A callable that decides whether a sample stays in the corpus.

    A filter must be deterministic, and it must be possible to pickle it, because samples are filtered in several
    processes.
    """

    def __call__(self, sample: Sample, /) -> Drop | None:
        """Return why to drop the sample, or None to keep it."""
        ...
