"""Find calls in the examples of docstrings."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Collection, Iterator

from .callsites import calls_in
from .slices import Names


def calls(tree: ast.Module, names: Names, wanted: Collection[str]) -> Iterator[tuple[str, ast.expr]]:
    """Yield the calls of wanted functions and methods in the docstrings of a module, as in `callsites.calls`.

    An example sees the names that earlier examples of its docstring bind.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documentation = ast.get_docstring(node, clean=False)
            if documentation and ">>>" in documentation:
                yield from calls_in(_examples(documentation), wanted, names.resolve, names.module)


def _examples(documentation: str) -> list[ast.stmt]:
    """Return the statements of the examples that parse."""
    statements: list[ast.stmt] = []
    try:
        examples = doctest.DocTestParser().get_examples(documentation)
    except ValueError:  # inconsistent indentation
        return statements
    for example in examples:
        try:
            statements += ast.parse(example.source).body
        except (SyntaxError, ValueError):
            continue
    return statements
