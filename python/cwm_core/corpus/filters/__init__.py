"""Filters that keep samples out of a corpus, and counts of what they drop.

A filter is a callable that takes a `Sample` and returns a `Drop` or None. The filters for licenses, secrets, and near
duplicates need libraries of the extra `corpus`, which they import when they are used.
"""

from ..reasons import DropReason
from ..sample import Drop, Filter, Sample
from .decontamination import Decontamination
from .deterministic import RunDifference, first_difference, is_deterministic
from .drops import DropCounts
from .duplicates import Duplicates, Sketch, sketch
from .effects import NoEffects
from .license import PERMISSIVE, Licenses
from .machine import no_machine, within_memory
from .secrets import Finding, find_secrets, no_secrets
from .size import SizeLimits, terminates

__all__ = [
    "PERMISSIVE",
    "Decontamination",
    "Drop",
    "DropCounts",
    "DropReason",
    "Duplicates",
    "Filter",
    "Finding",
    "Licenses",
    "NoEffects",
    "RunDifference",
    "Sample",
    "SizeLimits",
    "Sketch",
    "find_secrets",
    "first_difference",
    "is_deterministic",
    "no_machine",
    "no_secrets",
    "sketch",
    "terminates",
    "within_memory",
]
