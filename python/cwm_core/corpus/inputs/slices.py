"""Extract a call from the surrounding code as a self-contained expression.

Values from earlier statements are inlined. Names from modules are written in a canonical form,
`__import__('m', fromlist=['x']).x`, which `Names.localised` shortens to the names of a module.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MAX_CHARS = 600
"""Maximum length of an expression; longer ones are not used."""

_Origin = tuple[str, str | None]  # a module, and a name in it


def canonical(module: str, name: str | None = None) -> ast.expr:
    """Return the expression for a module, or for a name in it, that holds wherever it is evaluated."""
    if name is not None or "." in module:
        base = f"__import__({module!r}, fromlist=[{name or module.rpartition('.')[2]!r}])"
    else:
        base = f"__import__({module!r})"
    return ast.parse(base if name is None else f"{base}.{name}", mode="eval").body


class Names:
    """The names of a module, as far as its text shows them."""

    def __init__(self, tree: ast.Module, module: str | None, *, is_package: bool = False) -> None:
        """Read the names from the syntax tree of a module. `is_package` is for an `__init__.py`."""
        self.module = module
        self.own: set[str] = set()
        self.imports: dict[str, _Origin] = {}
        self._written: dict[ast.expr, str | None] = {}
        for statement in top_level(tree.body):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= imports(statement, module, is_package)
            else:
                self.own.update(bound(statement))
        present = {id(s) for s in top_level(tree.body, typing=False)}
        self.absent: set[str] = set()  # imported only for type checkers
        for statement in top_level(tree.body):
            if isinstance(statement, ast.Import | ast.ImportFrom) and id(statement) not in present:
                self.absent |= imports(statement, module, is_package).keys()

    def has(self, name: str) -> bool:
        """Return whether the module has a name."""
        present = name in self.imports and name not in self.absent
        return name in self.own or present or hasattr(builtins, name)

    def resolve(self, name: str) -> ast.expr | None:
        """Return what a name means in this module, in canonical form; None if the module does not have it."""
        if name in self.imports:
            return canonical(*self.imports[name])
        if name in self.own and self.module is not None:
            return canonical(self.module, name)
        return ast.Name(name, ast.Load()) if name in self.own or hasattr(builtins, name) else None

    def localised(self, node: ast.expr) -> ast.expr:
        """Return an expression with this module's own names."""
        localised: ast.expr = _Localise(self).visit(copied(node))
        return localised

    def written(self, node: ast.expr) -> str | None:
        """Return the text of an expression with this module's own names. Cached, because many functions ask for the
        same one.
        """
        if node not in self._written:
            self._written[node] = text(self.localised(node))
        return self._written[node]

    def local(self, module: str, name: str | None) -> str | None:
        """Return this module's name for an object of another module or of this one."""
        if name is not None and module == self.module:
            return name
        package = (self.module or "").partition(".")[0]
        if name is not None and module.partition(".")[0] == package and self.has(name):
            return name  # reexported: a name has the same meaning throughout a package
        return next(
            (local for local, origin in self.imports.items() if origin == (module, name) and self.has(local)), None
        )


class _Localise(ast.NodeTransformer):
    def __init__(self, names: Names) -> None:
        self.names = names

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        origin = _imported(node.value)
        if origin is not None and (local := self.names.local(origin, node.attr)) is not None:
            return ast.Name(local, ast.Load())
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        origin = _imported(node)
        if origin is not None and (local := self.names.local(origin, None)) is not None:
            return ast.Name(local, ast.Load())
        return self.generic_visit(node)


def _imported(node: ast.expr) -> str | None:
    """Return the module that a canonical expression means."""
    match node:
        case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str(module))]):
            return module
    return None


def top_level(body: Iterable[ast.stmt], *, typing: bool = True) -> Iterable[ast.stmt]:
    """Yield the statements of a module, also those under `if`, `try`, and `with`. Without `typing`, only those that
    run.
    """
    for statement in body:
        yield statement
        if not typing and isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            yield from top_level(statement.orelse, typing=False)
            continue
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for block in ("body", "orelse", "finalbody"):
                yield from top_level(getattr(statement, block, ()), typing=typing)
            for handler in getattr(statement, "handlers", ()):
                yield from top_level(handler.body, typing=typing)


def imports(node: ast.Import | ast.ImportFrom, module: str | None, is_package: bool = False) -> dict[str, _Origin]:
    """Return what an import statement of a module binds."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.split(".")[0]: (alias.name if alias.asname else alias.name.split(".")[0], None)
            for alias in node.names
        }
    origin = node.module or ""
    if node.level:
        parts = (module or "").split(".")
        parts = parts[: len(parts) - node.level + is_package]
        origin = ".".join([*parts, *([node.module] if node.module else [])])
    return {alias.asname or alias.name: (origin, alias.name) for alias in node.names if alias.name != "*"}


def bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement other than an import binds in its own scope."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def free(node: ast.AST) -> set[str]:
    """Return the names that an expression or statement reads and does not bind itself, as a comprehension does."""
    read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    own: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.comprehension):
            own |= {n.id for n in ast.walk(child.target) if isinstance(n, ast.Name)}
        elif isinstance(child, ast.Lambda):
            arguments = child.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            own |= {argument.arg for argument in every if argument is not None}
    return read - own


def cut(
    call: ast.expr, before: Sequence[ast.stmt], resolve: Callable[[str], ast.expr | None], module: str | None
) -> ast.expr | None:
    """Return a call with what it needs of the statements before it, in canonical form; None if that is not an
    expression.

    Args:
        call: Call to cut out.
        before: Statements that run before it, in order.
        resolve: Function that returns the meaning of a name that none of them binds, or None.
        module: Name of their module, for relative imports.
    """
    needed = free(call)
    steps: list[tuple[str | None, ast.expr]] = []  # (name or None, value), the last one first
    replaced: dict[str, ast.expr] = {}
    for statement in reversed(before):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for name, origin in imports(statement, module).items():
                if name in needed:
                    replaced[name] = canonical(*origin)
                    needed.discard(name)
            continue
        found = _steps(statement, needed)
        if found is None:
            return None
        for target, value in reversed(found):
            if target is not None and not isinstance(statement, ast.AugAssign):
                needed.discard(target)
            needed |= free(value)
            steps.append((target, value))
    names = {name for name, _ in steps}
    for name in sorted(needed - names):
        meaning = resolve(name)
        if meaning is None:
            return None
        if not (isinstance(meaning, ast.Name) and meaning.id == name):
            replaced[name] = meaning
    steps.reverse()
    substitute = _Substitute(replaced)
    ready = [(name, substitute.visit(copied(value))) for name, value in steps]
    return _joined(ready, substitute.visit(copied(call)))


_Step = tuple[str | None, ast.expr]


def _steps(statement: ast.stmt, needed: set[str]) -> list[_Step] | None:
    """Return what a statement does for the names that are needed, as expressions; None if that is not possible."""
    stored = bound(statement)
    found: list[_Step] | None = None if stored & needed else []
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in needed:
            found = [(name, value)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name in needed:
            found = [(name, value)]
        case ast.AugAssign(target=ast.Name(id=name), op=op, value=value) if name in needed:
            found = [(name, ast.BinOp(ast.Name(name, ast.Load()), op, value))]
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value) if stored & needed:
            found = _unpacked(targets, value, needed)
        case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name) as base, slice=index)], value=value):
            if name in needed:
                found = [(None, ast.Call(ast.Attribute(base, "__setitem__", ast.Load()), [index, value], []))]
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=name), attr=attribute)], value=value):
            if name in needed:
                arguments = [ast.Name(name, ast.Load()), ast.Constant(attribute), value]
                found = [(None, ast.Call(ast.Name("setattr", ast.Load()), arguments, []))]
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name))) as value) if name in needed:
            found = [(None, value)]
        case ast.FunctionDef(name=name) if name in needed:
            function = _as_lambda(statement)
            found = None if function is None else [(name, function)]
    return found


def _unpacked(targets: list[ast.expr], value: ast.expr, needed: set[str]) -> list[_Step] | None:
    """Return the steps of `a, b = value`."""
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    if len(names) < len(targets):
        return None
    if isinstance(value, ast.Tuple):
        pairs = list(zip(names, value.elts, strict=False))
        return [(name, v) for name, v in pairs if name in needed] if len(value.elts) == len(names) else None
    whole = "_".join(names)
    parts = [(name, _item(ast.Name(whole, ast.Load()), index)) for index, name in enumerate(names)]
    listed = ast.Call(ast.Name("list", ast.Load()), [value], [])
    return [(whole, listed), *((name, part) for name, part in parts if name in needed)]


def _as_lambda(function: ast.FunctionDef) -> ast.expr | None:
    match function.body:
        case [ast.Return(value=ast.expr() as value)] if not function.decorator_list:
            return ast.Lambda(_without_annotations(function.args), value)
    return None


def _without_annotations(arguments: ast.arguments) -> ast.arguments:
    arguments = copied(arguments)
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return arguments


def _item(value: ast.expr, index: int) -> ast.expr:
    return ast.Subscript(value, ast.Constant(index), ast.Load())


class _Substitute(ast.NodeTransformer):
    def __init__(self, replaced: dict[str, ast.expr]) -> None:
        self.replaced = replaced

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load) and node.id in self.replaced:
            value: ast.expr = copied(self.replaced[node.id])
            return value
        return node


def _joined(steps: list[tuple[str | None, ast.expr]], call: ast.expr) -> ast.expr:
    """Return one expression. If each name is used once, values replace names; otherwise names are bound in order."""
    read = [n.id for node in [call, *(v for _, v in steps)] for n in ast.walk(node) if isinstance(n, ast.Name)]
    names = [name for name, _ in steps]
    if all(name is not None and names.count(name) == 1 and read.count(name) == 1 for name in names):
        for position, (name, value) in enumerate(steps):
            substitute = _Substitute({str(name): value})
            steps = steps[: position + 1] + [(n, substitute.visit(v)) for n, v in steps[position + 1 :]]
            call = substitute.visit(call)
        return call
    parts = [v if name is None else ast.NamedExpr(ast.Name(name, ast.Store()), v) for name, v in steps]
    last = ast.UnaryOp(ast.USub(), ast.Constant(1))
    return ast.Subscript(ast.Tuple([*parts, call], ast.Load()), last, ast.Load())


def copied(node: Any) -> Any:
    """Return a copy of a tree without its positions in the text, at a fraction of the time of `copy.deepcopy`."""
    if isinstance(node, ast.AST):
        return type(node)(**{name: copied(value) for name, value in ast.iter_fields(node)})
    return [copied(item) for item in node] if isinstance(node, list) else node


def text(node: ast.expr) -> str | None:
    """Return an expression as text on one line; None if it is too long or cannot be parsed again."""
    try:
        written = ast.unparse(node)
        compile(written, "<call>", "eval", ast.PyCF_ONLY_AST, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return written if len(written) <= MAX_CHARS and "\n" not in written else None
