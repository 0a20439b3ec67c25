"""What keeps a sample out of a corpus: filters, each a callable that gives a `Drop` or None, and counts of them.

Licences, secrets and near duplicates need libraries that the extra `corpus` brings; they are imported when used.
"""

from ..sample import Drop, Filter, Sample
from .decontamination import Decontamination
from .deterministic import Difference, first_difference, is_deterministic
from .drops import DropCounts
from .duplicates import Duplicates, Sketch, sketch
from .effects import Effects, NoEffects
from .licence import PERMISSIVE, Licences
from .limits import SizeLimits, terminates
from .machine import no_machine, within_memory
from .secrets import Finding, find_secrets, no_secrets

__all__ = [
    "PERMISSIVE",
    "Decontamination",
    "Difference",
    "Drop",
    "DropCounts",
    "Duplicates",
    "Effects",
    "Filter",
    "Finding",
    "Licences",
    "NoEffects",
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
