"""Generate seeded random programs to record: short ones that terminate and have small values.

`generate` draws from the basic distribution: integers, strings, lists, and dicts in assignments, branches, loops, and
calls. `generate_wide` draws from the families in `TRAINING_FAMILIES`, which cover more of the language.
`UNSEEN_FAMILIES` are for evaluation alone: they share no production with the others beyond the statement level.
"""

from .basic import MAX_STEPS, generate
from .families import TRAINING_FAMILIES, UNSEEN_FAMILIES, Family, generate_family, generate_unseen, generate_wide
from .program import GeneratedProgram

__all__ = [
    "MAX_STEPS",
    "TRAINING_FAMILIES",
    "UNSEEN_FAMILIES",
    "Family",
    "GeneratedProgram",
    "generate",
    "generate_family",
    "generate_unseen",
    "generate_wide",
]
