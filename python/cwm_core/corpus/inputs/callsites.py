"""Calls that stand in modules and tests, each cut out with what it needs of the code around it."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

from .slices import Names, bound, copied, cut, top_level

_MOST = 40  # calls of one name, from one module
_ITEMS = 6  # of a literal list that a loop or a parametrized test goes through
_Resolve = Callable[[str], "ast.expr | None"]


def calls(
    tree: ast.Module, names: Names, wanted: Collection[str], *, importable: bool = True
) -> Iterator[tuple[str, ast.expr]]:
    """The calls of functions and methods that have a wanted name, as (name, canonical expression).

    Args:
        tree: Of the module.
        names: Of its namespace.
        wanted: Simple names.
        importable: Whether calls may import from this module, which a test is not meant for.
    """
    resolve = names.resolve if importable else _Constants(tree, names).resolve
    yield from calls_in(tree.body, wanted, resolve, names.module)


def calls_in(
    body: Sequence[ast.stmt], wanted: Collection[str], resolve: _Resolve, module: str | None
) -> Iterator[tuple[str, ast.expr]]:
    """The same for statements that run one after the other."""
    counts: Counter[str] = Counter()
    for call, before in _block(body, []):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
        if name in wanted and counts[name] < _MOST:
            found = cut(call, before, resolve, module)
            if found is not None:
                counts[name] += 1
                yield name, found


class _Constants:
    """What the names of a module mean that is not to be imported: its imports, and simple values."""

    def __init__(self, tree: ast.Module, names: Names) -> None:
        self.names = names
        self.values: dict[str, ast.expr | None] = {}
        for statement in top_level(tree.body):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                continue
            for name in bound(statement):
                self.values[name] = None  # unless it is bound once, by a plain assignment
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.values[name] = value
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                    for index, target in enumerate(targets):
                        listed = ast.Call(ast.Name("list", ast.Load()), [value], [])
                        item = ast.Subscript(listed, ast.Constant(index), ast.Load())
                        if isinstance(target, ast.Name):
                            self.values[target.id] = item

    def resolve(self, name: str) -> ast.expr | None:
        if name not in self.values:
            return self.names.resolve(name)
        value = self.values.pop(name)  # while it is looked at: what leads back to itself has no meaning
        try:
            return None if value is None else cut(value, [], self.resolve, self.names.module)
        finally:
            self.values[name] = value


def _block(body: Sequence[ast.stmt], before: list[ast.stmt]) -> Iterator[tuple[ast.Call, list[ast.stmt]]]:
    """Every call of a plain name or attribute, with the statements that run before it."""
    before = list(before)
    for statement in body:
        yield from ((call, before) for call in _own_calls(statement))
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for bindings in _parametrized(statement):
                    yield from _block(statement.body, bindings)
                continue
            case ast.ClassDef():
                yield from _class(statement)
                continue
            case ast.For(target=target, iter=ast.List(elts=items) | ast.Tuple(elts=items)):
                for item in items[:_ITEMS]:
                    yield from _block(statement.body, [*before, ast.Assign([target], item)])
            case ast.For() | ast.While() | ast.If() | ast.With() | ast.Try():
                entered = [*before, _head(statement)] if isinstance(statement, ast.For | ast.With) else before
                for block in ("body", "orelse", "finalbody"):
                    yield from _block(getattr(statement, block, ()), entered)
        before.append(statement)


def _head(statement: ast.For | ast.With) -> ast.stmt:
    """A statement that binds what this one's head does, to nothing that is known."""
    head = copy.copy(statement)
    head.body = [ast.Pass()]
    return head


def _own_calls(statement: ast.stmt) -> Iterator[ast.Call]:
    """The calls in a statement, without those in its blocks, lambdas and comprehensions."""
    pending: list[ast.AST] = [
        child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.expr | ast.withitem)
    ]
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node
        if not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            pending.extend(ast.iter_child_nodes(node))


def _parametrized(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[list[ast.stmt]]:
    """What the parameters of a test function may be bound to: those of `pytest.mark.parametrize`, else unknown."""
    spec = function.args
    every = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    targets = [ast.Name(a.arg, ast.Store()) for a in every if a is not None]
    unknown: list[ast.stmt] = [ast.For(ast.Tuple(targets, ast.Store()), ast.Constant(0), [ast.Pass()], [])]
    any_values = False
    for decorator in function.decorator_list:
        match decorator:
            case ast.Call(
                func=ast.Attribute(attr="parametrize"), args=[named, ast.List(elts=rows) | ast.Tuple(elts=rows), *_]
            ):
                names = _parameter_names(named)
                for row in rows[:_ITEMS]:
                    values = row.elts if len(names) > 1 and isinstance(row, ast.Tuple | ast.List) else [row]
                    if len(values) == len(names):
                        any_values = True
                        pairs = zip(names, values, strict=True)
                        yield [*unknown, *(ast.Assign([ast.Name(n, ast.Store())], v) for n, v in pairs)]
    if not any_values:
        yield unknown


def _parameter_names(node: ast.expr) -> list[str]:
    match node:
        case ast.Constant(value=str(names)):
            return names.replace(",", " ").split()
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [str(item.value) for item in items if isinstance(item, ast.Constant)]
    return []


def _class(node: ast.ClassDef) -> Iterator[tuple[ast.Call, list[ast.stmt]]]:
    """The calls in methods; in a test class, after what its setup keeps on `self`."""
    methods = {s.name: s for s in node.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)}
    setups = [methods[name] for name in ("setUp", "setup_method", "setup_class") if name in methods]
    names = _SelfNames()
    setup = [names.visit(copied(s)) for function in setups for s in function.body]
    for function in methods.values():
        for bindings in _parametrized(function):
            if setups:
                yield from _block(names.visit(copied(function)).body, [*bindings, *setup])
            else:
                yield from _block(function.body, bindings)


class _SelfNames(ast.NodeTransformer):
    """Variables for the attributes of `self`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        match node.value:
            case ast.Name(id="self" | "cls"):
                return ast.Name(f"self_{node.attr}", node.ctx)
        return self.generic_visit(node)
