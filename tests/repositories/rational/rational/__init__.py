"""Exact arithmetic with fractions of whole numbers."""

from .continued import convergents, expand
from .number import Rational, gcd, lcm

__all__ = ["Rational", "convergents", "expand", "gcd", "lcm"]
