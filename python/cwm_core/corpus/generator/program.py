"""A program to record."""

from __future__ import annotations

from typing import NamedTuple


class GeneratedProgram(NamedTuple):
    """A program to record."""

    code: str
    """Definitions of functions."""
    call: str
    """Expression that runs them."""
