"""What the corpus pipeline is fed with: sources, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HASH_SEEDS = (0, 1)
"""Of the two recordings of each run, which must agree: what depends on the order of a set is not to be learned."""


@dataclass(frozen=True)
class Unit:
    """A source and the runs of it to record; each becomes one sample."""

    id: str
    """Occurs once in a corpus, and does not change from run to run."""
    code: str
    """A module, or a whole program."""
    calls: tuple[str, ...] = ()
    """Expressions in the module, as of `record_source`, or of `Recorder.record_call` where `module` is set."""
    inputs: tuple[str, ...] = ()
    """Standard inputs of the whole program, where there are no calls."""
    outputs: tuple[str, ...] = ()
    """Of each run, what a test expects of it, as of `contests.Test.output`; empty where nothing is known."""
    tolerance: float | None = None
    """How far numbers may be off from these, as of `contests.accepts_output`."""
    module: str | None = None
    """The name by which the module is imported, where it belongs to a package: `code` is its file's text."""
    paths: tuple[str, ...] = ()
    """Folders to import from, besides the standard library."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What JSON has: `source`, `licence` (an SPDX expression), package, version, path, qualified name, seed."""
