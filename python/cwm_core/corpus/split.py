"""Keep training programs and evaluation programs apart, even if they differ only in names."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator

from .generator import GeneratedProgram


def normalized(code: str) -> str:
    """Return code without comments and layout, with its own names numbered by first appearance.

    Two programs that differ only in the names of functions and variables have the same normalized text.

    Raises:
        SyntaxError: The code is not Python.
    """
    return ast.unparse(_Renaming().visit(ast.parse(code)))


def distinct(programs: Iterable[GeneratedProgram], seen: set[str]) -> Iterator[GeneratedProgram]:
    """Yield the programs whose normalized code is not in `seen`, and add them to it.

    With one set for training programs first and evaluation programs after them, the two share no program.
    """
    for program in programs:
        text = normalized(program.code)
        if text not in seen:
            seen.add(text)
            yield program


class _Renaming(ast.NodeTransformer):
    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def number(self, name: str) -> str:
        return name if hasattr(builtins, name) else self.names.setdefault(name, f"_{len(self.names)}")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.number(node.name)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self.number(node.arg)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.number(node.id)
        return node
