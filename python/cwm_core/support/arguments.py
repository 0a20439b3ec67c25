"""Checks of arguments that Python would otherwise take for something else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def reject_single_string(values: Iterable[T], name: str) -> Iterable[T]:
    """Return `values`, an iterable of strings or paths, unless it is a single string.

    Raises:
        TypeError: `values` is a string or bytes, which would be taken letter by letter.
    """
    if isinstance(values, str | bytes | bytearray):
        raise TypeError(f"{name}: expected several strings, such as a list, got the single {values[:60]!r}")
    return values
