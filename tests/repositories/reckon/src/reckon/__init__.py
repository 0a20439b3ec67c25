"""Arithmetic expressions: parse, evaluate, simplify, show."""

from .evaluate import evaluate
from .parser import ParseError, parse
from .show import show
from .simplify import simplify

__all__ = ["ParseError", "evaluate", "parse", "show", "simplify"]
