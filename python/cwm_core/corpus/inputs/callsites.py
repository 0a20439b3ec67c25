"""Find calls in modules and tests, and cut each out with what it needs of the code around it."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

from .slices import Names, bound, copied, cut, top_level

_MAX_CALLS = 40  # of one name, from one module
_MAX_ITEMS = 6  # of a literal list that a loop or a parametrized test uses
_Resolve = Callable[[str], "ast.expr | None"]


def calls(
    tree: ast.Module, names: Names, wanted: Collection[str], *, importable: bool = True
) -> Iterator[tuple[str, ast.expr]]:
    """Yield the calls of functions and methods that have a wanted name, as (name, canonical expression).

    Args:
        tree: Syntax tree of the module.
        names: Names of the module.
        wanted: Simple names of functions and methods.
        importable: Whether calls can import from this module. Tests are not meant to be imported.
    """
    resolve = names.resolve if importable else _Constants(tree, names).resolve
    yield from calls_in(tree.body, wanted, resolve, names.module)


def calls_in(
    body: Sequence[ast.stmt], wanted: Collection[str], resolve: _Resolve, module: str | None
) -> Iterator[tuple[str, ast.expr]]:
    """Yield the same for statements that run one after the other."""
    counts: Counter[str] = Counter()
    for call, before in _block(body, []):
        name = _called(call)
        if name in wanted and counts[name] < _MAX_CALLS:
            found = cut(call, before, resolve, module)
            if found is not None:
                counts[name] += 1
                yield name, found


def _called(call: ast.Call) -> str:
    """Return the last name in the called expression, or an empty string if it is not a name or attribute."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


class _Constants:
    """Meanings of the names of a module that must not be imported: its imports, and simple values."""

    def __init__(self, tree: ast.Module, names: Names) -> None:
        self.names = names
        self.values: dict[str, ast.expr | None] = {}
        for statement in top_level(tree.body):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                continue
            for name in bound(statement):
                self.values[name] = None  # unless a plain assignment below binds it
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
        value = self.values.pop(name)  # removed meanwhile: a name that depends on itself has no meaning
        try:
            return None if value is None else cut(value, [], self.resolve, self.names.module)
        finally:
            self.values[name] = value


def _block(body: Sequence[ast.stmt], before: list[ast.stmt]) -> Iterator[tuple[ast.Call, list[ast.stmt]]]:
    """Yield every call of a plain name or attribute, with the statements that run before it."""
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
                for item in items[:_MAX_ITEMS]:
                    yield from _block(statement.body, [*before, ast.Assign([target], item)])
            case ast.For() | ast.While() | ast.If() | ast.With() | ast.Try():
                entered = [*before, _head(statement)] if isinstance(statement, ast.For | ast.With) else before
                for block in ("body", "orelse", "finalbody"):
                    yield from _block(getattr(statement, block, ()), entered)
        before.append(statement)


def _head(statement: ast.For | ast.With) -> ast.stmt:
    """Return a statement that binds the names of this one's head to unknown values."""
    head = copy.copy(statement)
    head.body = [ast.Pass()]
    return head


def _own_calls(statement: ast.stmt) -> Iterator[ast.Call]:
    """Yield the calls in a statement, except those in its blocks, lambdas, and comprehensions."""
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
    """Yield bindings of the parameters of a test function: those of `pytest.mark.parametrize`, or unknown values."""
    spec = function.args
    every = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    targets: list[ast.expr] = [ast.Name(a.arg, ast.Store()) for a in every if a is not None]
    unknown: list[ast.stmt] = [ast.For(ast.Tuple(targets, ast.Store()), ast.Constant(0), [ast.Pass()], [])]
    any_values = False
    for decorator in function.decorator_list:
        match decorator:
            case ast.Call(
                func=ast.Attribute(attr="parametrize"), args=[named, ast.List(elts=rows) | ast.Tuple(elts=rows), *_]
            ):
                names = _parameter_names(named)
                for row in rows[:_MAX_ITEMS]:
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
    """Yield the calls in methods. In a test class they come after what its setup keeps on `self`."""
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
    """Replaces the attributes of `self` with variables."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        match node.value:
            case ast.Name(id="self" | "cls"):
                return ast.Name(f"self_{node.attr}", node.ctx)
        return self.generic_visit(node)
