"""Find the functions in source text that can be called. This module never imports or runs the source."""

from __future__ import annotations

import ast
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from ..inputs import callsites, doctests
from ..inputs.shapes import Argument, Class, Classes, Shape, arguments, decorators, last_name, literals
from ..inputs.slices import Names, text, top_level
from .kinds import FunctionKind, SkipReason
from .sources import Source, read_sources

_Definition = ast.FunctionDef | ast.AsyncFunctionDef
_MAX_EXAMPLES = 40  # of a function
_MAX_UNRELATED = 5  # calls of a method's name on objects that may have another class
_MAX_SEEN = 60  # arguments of a name, in a package

CALLED_AS_METHODS = frozenset(
    [
        "__call__",
        "__len__",
        "__getitem__",
        "__setitem__",
        "__delitem__",
        "__contains__",
        "__iter__",
        "__next__",
        "__reversed__",
        "__missing__",
        "__bool__",
        "__int__",
        "__float__",
        "__complex__",
        "__index__",
        "__str__",
        "__repr__",
        "__bytes__",
        "__format__",
        "__hash__",
        "__eq__",
        "__ne__",
        "__lt__",
        "__le__",
        "__gt__",
        "__ge__",
        "__add__",
        "__radd__",
        "__iadd__",
        "__sub__",
        "__rsub__",
        "__isub__",
        "__mul__",
        "__rmul__",
        "__imul__",
        "__truediv__",
        "__rtruediv__",
        "__floordiv__",
        "__rfloordiv__",
        "__mod__",
        "__rmod__",
        "__divmod__",
        "__pow__",
        "__rpow__",
        "__neg__",
        "__pos__",
        "__abs__",
        "__invert__",
        "__and__",
        "__rand__",
        "__iand__",
        "__or__",
        "__ror__",
        "__ior__",
        "__xor__",
        "__rxor__",
        "__ixor__",
        "__lshift__",
        "__rshift__",
        "__matmul__",
        "__round__",
        "__trunc__",
        "__floor__",
        "__ceil__",
        "__copy__",
        "__deepcopy__",
        "__enter__",
    ]
)
"""Special methods to explore. The interpreter restricts the others too much."""


@dataclass(frozen=True)
class Function:
    """A function that an expression can call, and what its text says about its inputs."""

    id: str
    """PACKAGE:MODULE:QUALIFIED NAME, with `#2` and so on if the name is defined again."""
    module: str | None
    """Module of the function; None for a snippet."""
    qualname: str
    """Qualified name."""
    code: str
    """Text of its module."""
    first_line: int
    """Line of its first decorator or of its `def`, from 1."""
    lineno: int
    """Line of its `def`."""
    end_lineno: int
    """Its last line."""
    kind: FunctionKind
    """How the function is called."""
    called: str
    """Expression that is called, or attribute that is read from an instance."""
    arguments: tuple[Argument, ...]
    """Arguments of the function."""
    receivers: tuple[Shape, ...]
    """Values that a method or property can be called on."""
    wrap: str
    """Template with the call as `{}` that makes it run to its end."""
    examples: tuple[str, ...]
    """Calls in documentation, tests, and code, the best first."""
    literals: tuple[str, ...]
    """Literals in its source."""
    paths: tuple[str, ...]
    """Folders to import its module from."""
    provenance: Mapping[str, Any]
    """Origin of the function, as in `Unit`."""


@dataclass
class DiscoveredFunctions:
    """The functions of a source, and why other definitions are not among them."""

    functions: list[Function] = field(default_factory=list)
    """Functions that can be called."""
    skipped: Counter[SkipReason] = field(default_factory=Counter)
    """Numbers of definitions by reason. Reasons that concern a whole module count modules."""


@dataclass
class _Candidate:
    source: Source
    qualname: str
    node: _Definition
    owner: Class | None
    seen: dict[str, ast.expr] = field(default_factory=dict)


def find_functions(
    source: str | os.PathLike[str],
    *,
    tests: Sequence[str | os.PathLike[str]] = (),
    paths: Sequence[str] | None = None,
) -> DiscoveredFunctions:
    """Return the functions and methods of a source that can be called, by module and line.

    Functions within functions are left out. Other definitions that are left out are counted by `SkipReason`.

    Args:
        source: A source, as in `read_sources`.
        tests: Files or folders whose calls are used as examples, like those of test modules within the source.
        paths: Folders with installed packages; by default `sys.path`.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: A line of snippets is damaged.
    """
    found = DiscoveredFunctions()
    sources = []
    for read in read_sources(source, paths=paths):
        if read.tree is None:
            found.skipped[read.problem or SkipReason.DOES_NOT_PARSE] += 1
        else:
            sources.append(read)
    own = [s for s in sources if not s.is_test]
    found.skipped[SkipReason.TEST] += sum(len(list(_definitions(s.module))) for s in sources if s.is_test)
    suites = [s for s in sources if s.is_test]
    suites += [s for path in tests for s in read_sources(path) if s.tree is not None]
    if own and own[0].name is None:
        for snippet in own:  # snippets are independent of each other
            _describe([snippet], [], found)
    else:
        _describe(own, suites, found)
    return found


def _describe(sources: list[Source], suites: list[Source], found: DiscoveredFunctions) -> None:
    """Add the functions of modules that belong together."""
    classes_of = {id(s): _classes(s) for s in sources}
    classes = Classes(c for every in classes_of.values() for c in every.values())
    candidates = []
    for source in sources:
        for qualname, node, owner in _definitions(source.module):
            reason = _skip_reason(source, node, owner)
            if reason is not None:
                found.skipped[reason] += 1
            else:
                candidates.append(_Candidate(source, qualname, node, classes_of[id(source)].get(owner or "")))
    pool = _observe(candidates, sources, suites, classes)
    seen: Counter[str] = Counter()
    functions_of = {id(s): {n.name: n for q, n, owner in _definitions(s.module) if owner is None} for s in sources}
    for candidate in candidates:
        function = _function(candidate, classes, pool, functions_of[id(candidate.source)], seen)
        found.functions.append(function)


def _classes(source: Source) -> dict[str, Class]:
    return {
        statement.name: Class.read(statement, source.names)
        for statement in top_level(source.module.body)
        if isinstance(statement, ast.ClassDef)
    }


def _definitions(tree: ast.Module) -> Iterator[tuple[str, _Definition, str | None]]:
    """Yield (qualified name, definition, class) for every function of a module and of its classes."""
    for statement in top_level(tree.body):
        if isinstance(statement, _Definition):
            yield statement.name, statement, None
        elif isinstance(statement, ast.ClassDef):
            for member in top_level(statement.body):
                if isinstance(member, _Definition):
                    yield f"{statement.name}.{member.name}", member, statement.name


def _skip_reason(source: Source, node: _Definition, owner: str | None) -> SkipReason | None:
    marks = set(decorators(node))
    module = (source.name or "").rpartition(".")[2]
    is_command = node.name == "main" or module in ("__main__", "setup", "cli") or marks & {"command", "group"}
    special = node.name.startswith("__") and node.name.endswith("__") and not _explored_special(node, owner)
    body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    reasons = {
        SkipReason.TEST: node.name.startswith("test_") or (owner or "").startswith("Test"),
        SkipReason.OVERLOAD: "overload" in marks,
        SkipReason.ABSTRACT: marks & {"abstractmethod", "abstractproperty"} or _is_not_implemented(body),
        SkipReason.COMMAND_LINE: owner is None and is_command,
        SkipReason.SPECIAL_METHOD: special or marks & {"setter", "deleter"},
        SkipReason.EMPTY: not body or (len(body) == 1 and isinstance(body[0], ast.Pass)),
        SkipReason.ASYNC_GENERATOR: isinstance(node, ast.AsyncFunctionDef) and _is_generator(node),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _is_not_implemented(body: list[ast.stmt]) -> bool:
    match body:
        case [ast.Raise(exc=ast.Call(func=exception)) | ast.Raise(exc=exception)]:
            return last_name(exception) == "NotImplementedError"
    return False


def _explored_special(node: _Definition, owner: str | None) -> bool:
    return owner is not None and (node.name in CALLED_AS_METHODS or node.name == "__init__")


def _is_generator(node: _Definition) -> bool:
    pending: list[ast.AST] = list(node.body)
    while pending:
        child = pending.pop()
        if isinstance(child, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(child, _Definition | ast.Lambda | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(child))
    return False


def _observe(
    candidates: list[_Candidate], sources: list[Source], suites: list[Source], classes: Classes
) -> dict[str, dict[str, ast.expr]]:
    """Add the calls that the sources show to the candidates.

    Returns:
        For each name of a parameter, the arguments seen for it, in canonical form.
    """
    named: dict[str, list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        is_constructor = candidate.node.name == "__init__" and candidate.owner is not None
        name = candidate.owner.name if candidate.owner and is_constructor else candidate.node.name
        named[name].append(candidate)
    wanted = named.keys() | classes.names
    pool: dict[str, dict[str, ast.expr]] = defaultdict(dict)
    for name, call in _seen(sources, suites, wanted):
        written = text(call)
        if written is None:
            continue
        if name in classes.names and isinstance(call, ast.Call):
            classes.seen.setdefault(name, {}).setdefault(written, call)
        for candidate in named.get(name, ()):
            if len(candidate.seen) < 2 * _MAX_EXAMPLES:
                candidate.seen.setdefault(written, call)
            if isinstance(call, ast.Call):
                _take_arguments(candidate, call, pool)
    return pool


def _seen(sources: list[Source], suites: list[Source], wanted: Set[str]) -> Iterator[tuple[str, ast.expr]]:
    for source in sources:
        if source.call is not None and (tree := _expression(source.call)) is not None:
            yield from callsites.calls_in([ast.Expr(tree)], wanted, source.names.resolve, source.name)
        yield from doctests.calls(source.module, source.names, wanted)
    for suite in suites:
        yield from callsites.calls(suite.module, suite.names, wanted, importable=False)
    for source in sources:
        yield from callsites.calls(source.module, source.names, wanted)


def _expression(written: str) -> ast.expr | None:
    try:
        return ast.parse(written, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _take_arguments(candidate: _Candidate, call: ast.Call, pool: dict[str, dict[str, ast.expr]]) -> None:
    spec = candidate.node.args
    skipped = candidate.owner is not None and "staticmethod" not in decorators(candidate.node)
    names = [a.arg for a in [*spec.posonlyargs, *spec.args]][skipped:]
    given = [*zip(names, call.args, strict=False), *((k.arg, k.value) for k in call.keywords if k.arg)]
    for name, value in given:
        if len(pool[name]) < _MAX_SEEN and not isinstance(value, ast.Starred | ast.Name):
            written = text(value)
            if written is not None and len(written) < 200:
                pool[name].setdefault(written, value)


def _function(
    candidate: _Candidate,
    classes: Classes,
    pool: Mapping[str, Mapping[str, ast.expr]],
    functions: Mapping[str, _Definition],
    seen: Counter[str],
) -> Function:
    source, node, owner, names = candidate.source, candidate.node, candidate.owner, candidate.source.names
    kind = _kind(node, owner)
    called = node.name
    receivers: tuple[Shape, ...] = ()
    if owner is not None:
        if kind in (FunctionKind.METHOD, FunctionKind.PROPERTY):
            receivers = tuple(classes.instances(owner, names))
        elif kind is FunctionKind.CONSTRUCTOR:
            called = owner.name
        else:
            called = f"{owner.name}.{node.name}"
    seen_as = {name: _localised(values, names) for name, values in pool.items() if name in _parameters(node)}
    takes = arguments(
        node,
        classes,
        names,
        names,
        method=kind not in (FunctionKind.FUNCTION, FunctionKind.STATIC_METHOD),
        pool=seen_as,
        functions=functions,
    )
    package = source.provenance.get("package", "")
    where = source.name or source.path.rpartition(":")[2]
    identity = f"{package}:{where}:{candidate.qualname}"
    seen[identity] += 1
    if seen[identity] > 1:
        identity += f"#{seen[identity]}"
    wrap = _wrap(node, source)
    examples = _examples(candidate, names)
    return Function(
        id=identity,
        module=source.name,
        qualname=candidate.qualname,
        code=source.code,
        first_line=min([node.lineno, *(d.lineno for d in node.decorator_list)]),
        lineno=node.lineno,
        end_lineno=node.end_lineno or node.lineno,
        kind=kind,
        called=called,
        arguments=tuple(takes) if kind is not FunctionKind.PROPERTY else (),
        receivers=receivers,
        wrap=wrap,
        examples=tuple(wrap.replace("{}", e) for e in examples),
        literals=literals(node),
        paths=source.paths,
        provenance={
            "source": "functions",
            **source.provenance,
            "module": source.name,
            "path": source.path,
            "qualname": candidate.qualname,
        },
    )


def _parameters(node: _Definition) -> set[str]:
    spec = node.args
    return {a.arg for a in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]}


def _localised(values: Mapping[str, ast.expr], names: Names) -> list[str]:
    written = [names.written(value) for value in values.values()]
    return list(dict.fromkeys(w for w in written if w is not None))


def _kind(node: _Definition, owner: Class | None) -> FunctionKind:
    marks = decorators(node)
    if owner is None:
        return FunctionKind.FUNCTION
    if node.name == "__init__":
        return FunctionKind.CONSTRUCTOR
    if "staticmethod" in marks:
        return FunctionKind.STATIC_METHOD
    if "classmethod" in marks or node.name in ("__new__", "__class_getitem__", "__init_subclass__"):
        return FunctionKind.CLASS_METHOD
    is_property = any(mark.lower().endswith("property") for mark in marks)
    return FunctionKind.PROPERTY if is_property else FunctionKind.METHOD


def _wrap(node: _Definition, source: Source) -> str:
    if any(mark.endswith("contextmanager") for mark in decorators(node)):
        return "{}.__enter__()"
    if isinstance(node, ast.AsyncFunctionDef):
        local = source.names.local("asyncio", None)
        return f"{local or '__import__(' + repr('asyncio') + ')'}.run({{}})"
    return "list({})" if _is_generator(node) else "{}"


def _examples(candidate: _Candidate, names: Names) -> list[str]:
    """Return the calls seen, with the names of the module. For a method, calls that name its class come first."""
    written = _localised(candidate.seen, names)
    if candidate.owner is None or candidate.node.name == "__init__":
        return written[:_MAX_EXAMPLES]
    related = [w for w in written if candidate.owner.name in w]
    others = [w for w in written if candidate.owner.name not in w]
    return [*related[:_MAX_EXAMPLES], *others[:_MAX_UNRELATED]]
