"""Infer what an argument may be from annotations, defaults, documentation, names, and how the function uses it."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum

from .slices import Names, canonical, text

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_DEPTH = 2  # of constructors within constructors


class ShapeKind(StrEnum):
    """Kind of the expressions of a `Shape`."""

    INT = "int"
    FLOAT = "float"
    COMPLEX = "complex"
    BOOL = "bool"
    STR = "str"
    BYTES = "bytes"
    NONE = "none"
    CALLABLE = "callable"
    FILE = "file"
    ANY = "any"
    LIST = "list"
    SET = "set"
    FROZENSET = "frozenset"
    DICT = "dict"
    TUPLE = "tuple"
    """A tuple of any length."""
    RECORD = "record"
    """A tuple with these elements."""
    ITERATOR = "iterator"
    VALUES = "values"
    """Exactly the expressions in `Shape.values`."""
    NEW = "new"
    """Calls of `Shape.name` with `Shape.arguments`."""


@dataclass(frozen=True)
class Shape:
    """A set of expressions that an argument may be."""

    kind: ShapeKind
    """Kind of the expressions."""
    of: tuple[Shape, ...] = ()
    """Shapes of the elements."""
    values: tuple[str, ...] = ()
    """All expressions, for the kind `values`."""
    name: str = ""
    """Expression to call, for the kind `new`."""
    arguments: tuple[Argument, ...] = ()
    """Arguments of the call, for the kind `new`."""


class ParameterKind(StrEnum):
    """How an argument is passed."""

    POSITIONAL = "positional"
    ANY = "any"
    """By position or by keyword."""
    KEYWORD = "keyword"
    VARIADIC = "*"


@dataclass(frozen=True)
class Argument:
    """An argument of a function or class."""

    name: str
    """Name of the parameter."""
    kind: ParameterKind
    """How the argument is passed."""
    default: str | None
    """Text of the default; None if the argument is required."""
    shapes: tuple[Shape, ...]
    """Shape of the argument."""


ANY = Shape(ShapeKind.ANY)
_SIMPLE: dict[str, str] = {
    "int": "int", "float": "float", "complex": "complex", "bool": "bool", "str": "str", "bytes": "bytes",
    "bytearray": "bytes", "None": "none", "AnyStr": "str", "Text": "str", "LiteralString": "str", "Number": "float",
    "Real": "float", "Integral": "int", "SupportsIndex": "int", "SupportsInt": "int", "SupportsFloat": "float",
    "PathLike": "str", "Path": "str", "StrPath": "str", "string": "str", "integer": "int", "boolean": "bool",
    "number": "float", "Pattern": "str", "Hashable": "str", "Callable": "callable", "function": "callable",
    "callable": "callable", "IO": "file", "TextIO": "file", "StringIO": "file", "file": "file",
}  # fmt: skip
_CONTAINERS: dict[str, str] = {
    "list": "list", "List": "list", "Sequence": "list", "MutableSequence": "list", "Iterable": "list",
    "Collection": "list", "Container": "list", "Sized": "list", "Reversible": "list", "Iterator": "iterator",
    "Generator": "iterator", "iterator": "iterator", "iterable": "list", "sequence": "list", "tuple": "tuple",
    "Tuple": "tuple", "set": "set", "Set": "set", "AbstractSet": "set", "MutableSet": "set",
    "frozenset": "frozenset", "FrozenSet": "frozenset", "dict": "dict", "Dict": "dict", "Mapping": "dict",
    "MutableMapping": "dict", "DefaultDict": "dict", "OrderedDict": "dict", "Counter": "dict", "dictionary": "dict",
    "lists": "list", "dicts": "dict",
}  # fmt: skip
_WRAPPERS = ("Optional", "Final", "Annotated", "Required", "NotRequired", "ClassVar", "Type")
_NAMES = (
    (r"n|m|k|i|j|size|count|num|index|idx|start|stop|step|width|height|depth|level|length|limit|offset|max\w*|min\w*"
     r"|n_\w+|num_\w+|\w+_(count|size|width|len|length|index)|nbits|bits|prec|position|pos|indent|age|year|port",
     "int"),
    (r"x|y|z|a|b|c|value|val|number|num|ratio|weight|alpha|beta|eps|tol|seconds|delta|scale", "float"),
    (r"s|text|string|str|name|word|line|title|label|key|prefix|suffix|sep|delimiter|msg|message|source|src|code|content"
     r"|html|markup|path|filename|fname|url|uri|pattern|encoding|fmt|format|lang|locale|\w+_(name|str|text|string|path)"
     r"|tag|char|ch|s1|s2|left|right|token|expr_str|data", "str"),
    (r"xs|ys|items|seq|sequence|iterable|lst|list|values|elements|args|lines|words|rows|data|it|l|seqs|iterables|nums"
     r"|keys|names|cols|columns|arr|array|points|tokens|table|\w+_list|parts|coeffs", "list"),
    (r"d|dct|dict|mapping|kwargs|options|opts|config|params|attrs|headers|env|context|settings|\w+_(dict|map)", "dict"),
    (r"f|func|fn|function|callback|key|predicate|pred|default_factory|transform|\w+_(func|fn|key)|handler", "callable"),
    (r"is_\w+|has_\w+|use_\w+|verbose|strict|reverse|inplace|copy|force|recursive|ignore_\w+|allow_\w+|flag", "bool"),
    (r"fp|file|fileobj|stream|fd|f|infile|outfile", "file"),
)  # fmt: skip
_ATTRIBUTES = {
    kind: frozenset(dir(value))
    for kind, value in (
        ("str", ""), ("list", []), ("dict", {}), ("set", set()), ("int", 0), ("float", 0.0), ("bytes", b""),
        ("tuple", ()),
    )
}  # fmt: skip
_FILE = frozenset(("read", "readline", "readlines", "write", "seek", "close", "flush", "tell", "writelines", "name"))


@dataclass
class Class:
    """A class of a package, as its text defines it."""

    name: str
    names: Names
    node: ast.ClassDef
    path: str = ""
    members: dict[str, ast.stmt] = field(default_factory=dict)
    attributes: frozenset[str] = frozenset()
    bases: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, node: ast.ClassDef, names: Names) -> Class:
        """Return the class that a statement of a module defines."""
        members: dict[str, ast.stmt] = {}
        attributes = set()
        for statement in node.body:
            if isinstance(statement, _Function | ast.ClassDef):
                members[statement.name] = statement
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                members[statement.target.id] = statement
            elif isinstance(statement, ast.Assign):
                members |= {t.id: statement for t in statement.targets if isinstance(t, ast.Name)}
        for child in ast.walk(node):
            match child:
                case ast.Attribute(value=ast.Name(id="self"), attr=attribute, ctx=ast.Store()):
                    attributes.add(attribute)
        bases = [base for base in map(last_name, node.bases) if base]
        return cls(node.name, names, node, "", members, frozenset(attributes) | set(members), bases)


class Classes:
    """The classes of a package, and the expressions seen for their instances."""

    def __init__(self, classes: Iterable[Class]) -> None:
        """Index the classes by name."""
        self._named: dict[str, list[Class]] = {}
        self._derived: dict[str, list[Class]] = {}
        self.seen: dict[str, dict[str, ast.expr]] = {}  # by the name of the class: text to canonical expression
        for found in classes:
            self._named.setdefault(found.name, []).append(found)
            for base in found.bases:
                self._derived.setdefault(base, []).append(found)
        self._attributes: dict[int, frozenset[str]] = {}
        self._instances: dict[tuple[int, Names, int], list[Shape]] = {}
        self._all = [found for every in self._named.values() for found in every]

    @property
    def names(self) -> Set[str]:
        """Names of all classes."""
        return self._named.keys()

    def find(self, name: str, names: Names) -> Class | None:
        """Return the class that a module means by a name."""
        found = self._named.get(names.imports.get(name, ("", name))[1] or name, [])
        return next((c for c in found if c.names is names), found[0] if found else None)

    def line(self, of: Class, seen: frozenset[str] = frozenset()) -> Iterator[Class]:
        """Yield the class and its bases within the package, nearest first."""
        yield of
        for name in of.bases:
            base = self.find(name, of.names)
            if base is not None and base is not of and name not in seen:
                yield from self.line(base, seen | {name})

    def derived(self, of: Class) -> list[Class]:
        """Return the classes that name it as a base."""
        return self._derived.get(of.name, [])

    def called_like(self, parameter: str) -> list[Class]:
        """Return up to two classes whose name is that of a parameter, or ends in it."""
        word = parameter.replace("_", "").lower()
        named = [c for name, every in self._named.items() if name.lower().endswith(word) for c in every]
        return sorted(named, key=lambda c: len(c.name))[:2] if len(word) > 2 else []

    def with_attributes(self, wanted: set[str], names: Names) -> list[Class]:
        """Return up to three classes that have all these attributes, those of the same module first."""
        found = [c for c in self._all if c.attributes and wanted <= self.attributes(c)]
        found.sort(key=lambda c: (c.names is not names, len(c.attributes)))
        return found[:3]

    def attributes(self, of: Class) -> frozenset[str]:
        """Return all names that instances of a class have."""
        if id(of) not in self._attributes:
            self._attributes[id(of)] = frozenset().union(*(c.attributes for c in self.line(of)))
        return self._attributes[id(of)]

    def is_abstract(self, of: Class) -> bool:
        """Return whether a class cannot have instances of its own."""
        if "Protocol" in of.bases:
            return True
        concrete: set[str] = set()
        for c in self.line(of):
            for name, member in c.members.items():
                if isinstance(member, _Function) and "abstractmethod" in decorators(member):
                    if name not in concrete:
                        return True
                else:
                    concrete.add(name)
        return False

    def instances(self, of: Class, names: Names, depth: int = _DEPTH) -> list[Shape]:
        """Return expressions for an instance, in the names of a module. Call this when `seen` is complete."""
        key = (id(of), names, depth)
        if key not in self._instances:
            self._instances[key] = self._made(of, names, depth)
        return self._instances[key]

    def _made(self, of: Class, names: Names, depth: int) -> list[Shape]:
        shapes = []
        seen = [names.written(node) for node in list(self.seen.get(of.name, {}).values())[:12]]
        if values := tuple(value for value in seen if value is not None):
            shapes.append(Shape(ShapeKind.VALUES, values=values))
        if depth == 0:
            return shapes
        if self.is_abstract(of):
            return shapes + [shape for c in self.derived(of)[:3] for shape in self.instances(c, names, depth - 1)]
        name = text(names.localised(canonical(of.names.module, of.name) if of.names.module else ast.Name(of.name)))
        if name is None:
            return shapes
        if any(base.endswith(("Enum", "Flag")) for c in self.line(of) for base in c.bases):
            fields = [field for field, m in of.members.items() if isinstance(m, ast.Assign) and field[0] != "_"]
            return (
                [Shape(ShapeKind.VALUES, values=tuple(f"{name}.{field}" for field in fields[:20]))]
                if fields
                else shapes
            )
        shapes.append(Shape(ShapeKind.NEW, name=name, arguments=tuple(self.constructor(of, names, depth - 1))))
        for member in of.members.values():
            if isinstance(member, _Function) and _is_factory(member, of.name):
                taken = tuple(arguments(member, self, of.names, names, method=True, depth=depth - 1))
                shapes.append(Shape(ShapeKind.NEW, name=f"{name}.{member.name}", arguments=taken))
        return shapes

    def constructor(self, of: Class, names: Names, depth: int = _DEPTH - 1) -> Iterator[Argument]:
        """Yield the arguments of a class."""
        fields: dict[str, Argument] = {}
        for c in self.line(of):
            for special in ("__init__", "__new__"):
                found = c.members.get(special)
                if isinstance(found, _Function):
                    yield from arguments(found, self, c.names, names, method=True, depth=depth)
                    return
            if _has_fields(c):
                own = {f.name: f for f in _fields(c, self, names, depth)}
                fields = {**own, **{name: f for name, f in fields.items() if name not in own}}
        yield from sorted(fields.values(), key=lambda f: (f.kind is ParameterKind.KEYWORD, f.default is not None))


def _is_factory(member: _Function, name: str) -> bool:
    """Return whether a member is a class method that returns an instance."""
    if "classmethod" not in decorators(member):
        return False
    return last_name(member.returns) in ("Self", name) or any(
        isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and last_name(node.value.func) == "cls"
        for node in ast.walk(member)
    )


def _has_fields(of: Class) -> bool:
    marks = {"dataclass", "define", "frozen", "mutable", "attrs", "s", "NamedTuple", "attributes"}
    return bool(marks & {*decorators(of.node), *of.bases})


def _fields(of: Class, classes: Classes, names: Names, depth: int) -> Iterator[Argument]:
    for name, member in of.members.items():
        match member:
            case ast.AnnAssign(annotation=annotation, value=value) if last_name(annotation) != "ClassVar":
                shapes = _of_annotation(annotation, _Scope(classes, of.names, names, depth))
                if value is None or _is_required_field(value):
                    yield Argument(name, ParameterKind.ANY, None, tuple(shapes) or (ANY,))
            case ast.Assign(value=ast.Call(func=function) as value) if last_name(function) in ("ib", "field", "attrib"):
                if _is_required_field(value):
                    yield Argument(name.lstrip("_"), ParameterKind.ANY, None, tuple(_of_name(name)) or (ANY,))


def _is_required_field(value: ast.expr) -> bool:
    match value:
        case ast.Call(func=function, keywords=keywords) if last_name(function) in ("ib", "field", "attrib"):
            return not {k.arg for k in keywords} & {"default", "factory", "default_factory", "init"}
    return False


def decorators(node: _Function | ast.ClassDef) -> list[str]:
    """Return the last names of the decorators of a definition."""
    called = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return [name for name in map(last_name, called) if name]


def last_name(node: ast.expr | None) -> str | None:
    """Return `c` for `a.b.c` and for `a.b.c[...]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return last_name(value)
        case ast.Constant(value=str(name)):
            return name
    return None


@dataclass(frozen=True)
class _Scope:
    """Namespace for looking up types, and the names of the module that uses the expressions."""

    classes: Classes
    home: Names
    names: Names
    depth: int

    def instances(self, of: Class) -> list[Shape]:
        return self.classes.instances(of, self.names, self.depth)


def arguments(
    function: _Function,
    classes: Classes,
    home: Names,
    names: Names,
    *,
    method: bool = False,
    depth: int = _DEPTH,
    pool: Mapping[str, Sequence[str]] | None = None,
    functions: Mapping[str, _Function] | None = None,
) -> Iterator[Argument]:
    """Yield the arguments of a function.

    Args:
        function: Definition of the function.
        classes: Classes of its package.
        home: Names of the module of the function, which its annotations use.
        names: Names of the module that expressions are for.
        method: Whether the first parameter is bound.
        depth: Depth of constructors within arguments.
        pool: Expressions seen as arguments, by the name of the parameter.
        functions: Functions of the module by name. An argument that is passed on to one of them also gets the shapes of
            that function's parameter.
    """
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    kinds = [ParameterKind.POSITIONAL] * len(spec.posonlyargs) + [ParameterKind.ANY] * len(spec.args)
    every = list(zip(positional, kinds, defaults, strict=True))[method:]
    every += [(spec.vararg, ParameterKind.VARIADIC, None)] if spec.vararg else []
    every += [(a, ParameterKind.KEYWORD, d) for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    scope = _Scope(classes, home, names, depth)
    documented = _documented(ast.get_docstring(function, clean=False) or "")
    for argument, kind, default in every:
        shapes = list(_of_annotation(argument.annotation, scope)) if argument.annotation else []
        if not shapes or shapes == [ANY]:
            shapes = [
                *_of_default(default),
                *_of_words(documented.get(argument.arg, ""), scope),
                *_of_usage(function, argument.arg, scope, functions or {}),
            ] or _of_name(argument.arg)
            if default is None and depth > 0:
                shapes += [s for c in classes.called_like(argument.arg) for s in scope.instances(c)]
        if literals := _compared(function, argument.arg):
            shapes.append(Shape(ShapeKind.VALUES, values=literals))
        if pool is not None and (seen := pool.get(argument.arg)):
            shapes.append(Shape(ShapeKind.VALUES, values=tuple(seen)))
        written = None if default is None else text(default)
        yield Argument(argument.arg, kind, written, tuple(dict.fromkeys(shapes)) or (ANY,))


def _of_annotation(node: ast.expr | None, scope: _Scope) -> Iterator[Shape]:
    def inner(child: ast.expr) -> Iterator[Shape]:
        return _of_annotation(child, scope)

    match node:
        case ast.Constant(value=None):
            yield Shape(ShapeKind.NONE)
        case ast.Constant(value=str(written)):
            try:
                yield from inner(ast.parse(written, mode="eval").body)
            except (SyntaxError, ValueError, RecursionError):
                return
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from inner(left)
            yield from inner(right)
        case ast.Subscript(value=value, slice=index):
            items = index.elts if isinstance(index, ast.Tuple) else [index]
            yield from _of_generic(last_name(value), items, inner)
        case ast.Name() | ast.Attribute():
            name = last_name(node) or ""
            if name in _SIMPLE:
                yield Shape(ShapeKind(_SIMPLE[name]))
            elif name in _CONTAINERS:
                yield Shape(ShapeKind(_CONTAINERS[name]), (ANY,))
            elif (found := scope.classes.find(name, scope.home)) is not None:
                yield from scope.instances(found)
            else:
                yield ANY


def _of_generic(
    name: str | None, items: list[ast.expr], inner: Callable[[ast.expr], Iterator[Shape]]
) -> Iterator[Shape]:
    def one(child: ast.expr) -> Shape:
        shapes = list(inner(child))
        return shapes[0] if shapes else ANY

    if name == "Literal":
        yield Shape(ShapeKind.VALUES, values=tuple(ast.unparse(item) for item in items))
    elif name == "Union" or name in _WRAPPERS:
        for item in items if name == "Union" else items[:1]:
            yield from inner(item)
        if name == "Optional":
            yield Shape(ShapeKind.NONE)
    elif name in ("tuple", "Tuple") and not (len(items) == 2 and isinstance(items[1], ast.Constant)):
        yield Shape(ShapeKind.RECORD, tuple(one(item) for item in items))
    elif name in _CONTAINERS:
        kind = ShapeKind(_CONTAINERS[name])
        yield Shape(kind, tuple(one(item) for item in items[: 2 if kind is ShapeKind.DICT else 1]))
    elif name in _SIMPLE:
        yield Shape(ShapeKind(_SIMPLE[name]))
    else:
        yield ANY


def _of_default(default: ast.expr | None) -> Iterator[Shape]:
    match default:
        case None | ast.Constant(value=None):
            return
        case ast.Constant(value=value):
            kind = type(value).__name__
            if kind in _SIMPLE:
                yield Shape(ShapeKind(kind))
        case ast.UnaryOp(operand=operand):
            yield from _of_default(operand)
        case ast.List() | ast.Tuple() | ast.Set() | ast.Dict():
            yield Shape(ShapeKind(type(default).__name__.lower()), (ANY,))
        case ast.Lambda():
            yield Shape(ShapeKind.CALLABLE)


def _documented(documentation: str) -> dict[str, str]:
    """Return the words for the types of parameters in documentation of the styles of NumPy, Sphinx, and Google."""
    found = dict(re.findall(r"^[ \t]*\*{0,2}(\w+) ?: (.{1,80})$", documentation, re.MULTILINE))
    found |= {name: kind for kind, name in re.findall(r":param +(\w[\w.]*) +(\w+) *:", documentation)}
    found |= dict(re.findall(r":type +(\w+): *(.{1,80})$", documentation, re.MULTILINE))
    found |= dict(re.findall(r"^[ \t]+(\w+) \(([^)\n]{1,80})\):", documentation, re.MULTILINE))
    return found


def _of_words(words: str, scope: _Scope) -> Iterator[Shape]:
    for word in dict.fromkeys(re.findall(r"\w+", words)):
        if word in _SIMPLE:
            yield Shape(ShapeKind(_SIMPLE[word]))
        elif word in _CONTAINERS:
            yield Shape(ShapeKind(_CONTAINERS[word]), (ANY,))
        elif word[0].isupper() and (found := scope.classes.find(word, scope.home)) is not None:
            yield from scope.instances(found)


def _of_name(name: str) -> list[Shape]:
    of = (ANY,)
    found = [kind for pattern, kind in _NAMES if re.fullmatch(pattern, name, re.IGNORECASE)]
    return [Shape(ShapeKind(kind), of if kind in ("list", "dict") else ()) for kind in found]


def _of_usage(function: _Function, name: str, scope: _Scope, functions: Mapping[str, _Function]) -> Iterator[Shape]:
    """Yield shapes from what the function does with the variable."""
    attributes: dict[str, None] = {}
    for node in _nodes(function):
        match node:
            case ast.Attribute(value=ast.Name(id=found), attr=attribute) if found == name:
                attributes[attribute] = None
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[ast.Name(id=found), kinds]):
                if found == name:
                    for kind in kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]:
                        yield from _of_annotation(kind, scope)
            case _:
                yield from _of_operation(node, name)
    yield from _of_attributes(attributes, scope)
    for called, place in _passed_on(function, name):
        callee = functions.get(called)
        if callee is not None and callee is not function and place < len(callee.args.args):
            passed = callee.args.args[place]
            if passed.annotation is not None:
                yield from _of_annotation(passed.annotation, scope)
            else:
                yield from _of_usage(callee, passed.arg, scope, {})


@functools.lru_cache(maxsize=64)
def _nodes(function: _Function) -> tuple[ast.AST, ...]:
    """Return all nodes of a function, which are searched for each of its parameters."""
    return tuple(ast.walk(function))


def _of_operation(node: ast.AST, name: str) -> Iterator[Shape]:
    """Yield shapes from one operation on the variable."""
    match node:
        case ast.For(iter=ast.Name(id=found)) | ast.comprehension(iter=ast.Name(id=found)) if found == name:
            yield Shape(ShapeKind.LIST, (ANY,))
        case ast.Call(func=ast.Name(id=found)) if found == name:
            yield Shape(ShapeKind.CALLABLE)
        case ast.Call(func=ast.Name(id=called), args=[ast.Name(id=found), *_]) if found == name:
            yield from _of_call(called)
        case ast.Subscript(value=ast.Name(id=found), slice=index) if found == name:
            yield (
                Shape(ShapeKind.DICT, (Shape(ShapeKind.STR), ANY)) if _is_text(index) else Shape(ShapeKind.LIST, (ANY,))
            )
        case ast.BinOp(left=ast.Name(id=found), op=operation, right=other) if found == name:
            yield Shape(
                ShapeKind.STR if isinstance(operation, ast.Mod | ast.Add) and _is_text(other) else ShapeKind.INT
            )
        case ast.BinOp(left=other, op=operation, right=ast.Name(id=found)) if found == name:
            yield Shape(ShapeKind.STR if isinstance(operation, ast.Add) and _is_text(other) else ShapeKind.INT)
        case ast.Compare(left=ast.Name(id=found), ops=[ast.Lt() | ast.Gt() | ast.LtE() | ast.GtE(), *_]):
            if found == name:
                yield Shape(ShapeKind.INT)


def _of_call(called: str) -> Iterator[Shape]:
    if called in ("len", "sorted", "list", "set", "tuple", "enumerate", "sum", "min", "max", "zip", "iter", "reversed"):
        yield Shape(ShapeKind.LIST, (ANY,))
    elif called in ("int", "range", "chr", "abs", "divmod", "pow"):
        yield Shape(ShapeKind.INT)
    elif called in ("ord", "compile", "open"):
        yield Shape(ShapeKind.STR)
    elif called in ("float", "round"):
        yield Shape(ShapeKind.FLOAT)
    elif called == "dict":
        yield Shape(ShapeKind.DICT, (ANY, ANY))
    elif called == "next":
        yield Shape(ShapeKind.ITERATOR, (ANY,))


def _of_attributes(attributes: Iterable[str], scope: _Scope) -> Iterator[Shape]:
    wanted = set(attributes)
    if not wanted:
        return
    found = [kind for kind, own in _ATTRIBUTES.items() if wanted <= own]
    yield from (Shape(ShapeKind(kind), (ANY,) if kind in ("list", "dict", "set", "tuple") else ()) for kind in found)
    if wanted <= _FILE:
        yield Shape(ShapeKind.FILE)
    if not found and scope.depth > 0:
        for of in scope.classes.with_attributes(wanted, scope.home):
            yield from scope.instances(of)


def _passed_on(function: _Function, name: str) -> Iterator[tuple[str, int]]:
    for node in _nodes(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            for place, argument in enumerate(node.args):
                if isinstance(argument, ast.Name) and argument.id == name:
                    yield node.func.id, place


def _compared(function: _Function, name: str) -> tuple[str, ...]:
    """Return literals that the variable is compared with."""
    found: dict[str, None] = {}
    for node in _nodes(function):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == name:
            for other in node.comparators:
                for item in other.elts if isinstance(other, ast.Tuple | ast.List | ast.Set) else [other]:
                    if isinstance(item, ast.Constant):
                        found[repr(item.value)] = None
        elif isinstance(node, ast.Match) and isinstance(node.subject, ast.Name) and node.subject.id == name:
            for case in ast.walk(node):
                if isinstance(case, ast.MatchValue) and isinstance(case.value, ast.Constant):
                    found[repr(case.value.value)] = None
    return tuple(found)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def literals(node: ast.AST) -> tuple[str, ...]:
    """Return the numbers and short texts in the source of a function, excluding docstrings and messages."""
    found: dict[str, None] = {}
    pending = list(ast.iter_child_nodes(node))
    while pending:
        child = pending.pop(0)
        if isinstance(child, ast.Raise | ast.JoinedStr) or (
            isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        ):
            continue
        pending.extend(ast.iter_child_nodes(child))
        if isinstance(child, ast.Constant) and isinstance(child.value, str | int | float | bytes):
            short = not isinstance(child.value, str | bytes) or len(child.value) <= 40
            if short and not isinstance(child.value, bool):
                found[repr(child.value)] = None
    return tuple(found)
