"""Keep training programs and evaluation programs apart, even if they differ only in names."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator

from .generator import GeneratedProgram


def normalized(code: str) -> str:
    """Return code without comments and layout, with its own names numbered by first appearance.

    Two programs that differ only in the names of functions, variables, classes, and attributes have the same
    normalized text.

    Raises:
        SyntaxError: The code is not Python.
    """
    tree = ast.parse(code)
    return ast.unparse(_Renaming(tree).visit(tree))


def distinct(programs: Iterable[GeneratedProgram], seen: set[str]) -> Iterator[GeneratedProgram]:
    """Yield the programs whose normalized code is not in `seen`, and add them to it.

    With one set for training programs first and evaluation programs after them, the two share no program.
    """
    for program in programs:
        text = normalized(program.code)
        if text not in seen:
            seen.add(text)
            yield program


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """Return the methods of a class whose names have no meaning to the interpreter."""
    return [part for part in node.body if isinstance(part, ast.FunctionDef) and not part.name.startswith("__")]


class _Renaming(ast.NodeTransformer):
    def __init__(self, tree: ast.AST) -> None:
        nodes = list(ast.walk(tree))
        methods = [method for node in nodes if isinstance(node, ast.ClassDef) for method in _methods(node)]
        assigned = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        self.methods = set(map(id, methods))
        self.attributes = assigned | {method.name for method in methods}
        self.names: dict[str, str] = {}

    def number(self, name: str) -> str:
        return name if hasattr(builtins, name) else self.names.setdefault(name, f"_{len(self.names)}")

    def number_attribute(self, name: str) -> str:
        # Apart from variables: `self.a = a` has two names.
        return self.names.setdefault(f".{name}", f"_{len(self.names)}") if name in self.attributes else name

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if id(node) in self.methods:
            node.name = self.number_attribute(node.name)
        elif not node.name.startswith("__"):
            node.name = self.number(node.name)
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self.number(node.name)
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        node.attr = self.number_attribute(node.attr)
        return node

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        node.names = [self.number(name) for name in node.names]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self.number(node.arg)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.number(node.id)
        return node
