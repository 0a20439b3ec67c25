"""Check arguments for common mistakes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def reject_single_string(values: Iterable[T], name: str) -> Iterable[T]:
    """Return `values`, an iterable of strings or paths. Iterating over a single string would yield its letters.

    Args:
        values: The argument to check.
        name: Name of the argument, for the error message.

    Raises:
        TypeError: `values` is a single string or bytes.
    """
    if isinstance(values, str | bytes | bytearray):
        raise TypeError(f"{name}: expected several strings, such as a list, got the single string {values[:60]!r}")
    return values


def reject_unordered(values: Iterable[T], name: str) -> Iterable[T]:
    """Return `values`, whose order matters. The order of a set of strings differs from run to run.

    Args:
        values: The argument to check.
        name: Name of the argument, for the error message.

    Raises:
        TypeError: `values` is a set, a single string, or bytes.
    """
    if isinstance(values, set | frozenset):
        raise TypeError(f"{name}: expected a list, because the order matters, got a {type(values).__name__}")
    return reject_single_string(values, name)


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value`, which the message calls `name`, is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value}")


def to_python_numbers(values: Any) -> Any:
    """Return a NumPy scalar, also inside a tuple, as the equal Python number. Return any other value unchanged."""
    if isinstance(values, tuple):
        return tuple(map(to_python_numbers, values))
    return values.item() if isinstance(values, np.generic) else values


def convert_fields(instance: Any) -> None:
    """Replace NumPy scalars in the fields of a dataclass by Python numbers, which JSON and TOML can express."""
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, to_python_numbers(getattr(instance, field.name)))
