"""The items that most corpus sources yield: source text and the runs of it to record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HASH_SEEDS = (0, 1)
"""Hash seeds of the two recordings of each run. The recordings must agree: a model cannot learn the order of a set."""


@dataclass(frozen=True)
class Unit:
    """Source text and the runs of it to record. Each run becomes one sample."""

    id: str
    """Unique id in the corpus, the same in every run of the source."""
    code: str
    """Text of a module or of a whole program."""
    calls: tuple[str, ...] = ()
    """Expressions to record in the module, as `record_source` takes them, or `Recorder.record_call` if `module` is
    set."""
    inputs: tuple[str, ...] = ()
    """Standard inputs to run the whole program with. Used when `calls` is empty."""
    outputs: tuple[str, ...] = ()
    """Expected output of each run, as in `contests.ContestTest.output`; empty if unknown."""
    tolerance: float | None = None
    """Tolerance for numbers in `outputs`; see `contests.accepts_output`."""
    module: str | None = None
    """Name to import the module by, if it belongs to a package. `code` is then the text of its file."""
    paths: tuple[str, ...] = ()
    """Folders to import from, besides those of the standard library."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the samples, as a JSON object: `source`, `license` (an SPDX expression), package, version, path,
    qualified name, seed."""
