"""Families of programs: those to train on, and those that only evaluations use."""

from __future__ import annotations

import random
from collections.abc import Callable

from . import training_families as seen
from . import unseen_families as unseen
from .program import GeneratedProgram
from .writer import Writer

Family = Callable[[Writer], GeneratedProgram | None]
"""Writes a program; returns None, or raises IndexError for want of a variable or name, to be asked again."""

TRAINING_FAMILIES: dict[str, Family] = {
    "arithmetic": seen.arithmetic,
    "strings": seen.strings,
    "slicing": seen.slicing,
    "lists": seen.lists,
    "nested": seen.nested,
    "dicts": seen.dicts,
    "sets": seen.sets,
    "comprehensions": seen.comprehensions,
    "generators": seen.generators,
    "classes": seen.classes,
    "exceptions": seen.exceptions,
    "recursion": seen.recursion,
    "while": seen.while_loops,
    "formatting": seen.formatting,
    "sorting": seen.sorting,
}

UNSEEN_FAMILIES: dict[str, Family] = {
    "shifts": unseen.shifts,
    "swaps": unseen.swaps,
    "closures": unseen.closures,
    "pairs": unseen.pairs,
    "stacks": unseen.stacks,
}


def generate_family(name: str, seed: int) -> GeneratedProgram:
    """Return the program of a seed in a family: the same on every Python version and under every hash seed.

    Raises:
        KeyError: There is no such family.
    """
    return _generate((TRAINING_FAMILIES | UNSEEN_FAMILIES)[name], random.Random(seed))


def generate_wide(seed: int) -> GeneratedProgram:
    """Return the program of a seed in a random family of `TRAINING_FAMILIES`."""
    rng = random.Random(seed)
    return _generate(rng.choice(list(TRAINING_FAMILIES.values())), rng)


def generate_unseen(seed: int) -> GeneratedProgram:
    """Return the program of a seed in a random family of `UNSEEN_FAMILIES`."""
    rng = random.Random(seed)
    return _generate(rng.choice(list(UNSEEN_FAMILIES.values())), rng)


def _generate(family: Family, rng: random.Random) -> GeneratedProgram:
    while True:
        try:
            program = family(Writer(rng))
        except IndexError:  # a production found no variable or no free name
            continue
        if program is not None:
            return program
