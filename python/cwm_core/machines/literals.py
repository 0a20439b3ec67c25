"""Python literals in text that a model wrote: read without running anything, compared type-strictly."""

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 100


class _FloatNames(ast.NodeTransformer):
    """Turns nan and inf, which `repr` writes and no literal spells, into constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in ("nan", "inf"):
            return ast.copy_location(ast.Constant(float(node.id)), node)
        return node


def evaluate_literal(text: str) -> object:
    """The value of a Python literal, as `repr` writes it: what `ast.literal_eval` reads, and `nan` and `inf`.

    Raises ValueError for anything else, for more than `MAX_CHARACTERS`, and for nesting beyond `MAX_DEPTH`.
    """
    try:
        return ast.literal_eval(_FloatNames().visit(_parsed(text)))
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python literal: {error}") from None


def _parsed(text: str) -> ast.Expression:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters; at most {MAX_CHARACTERS} are read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parser, about "\d" and the like
        tree = ast.parse(text.strip(), mode="eval")
    _check_depth(tree)
    return tree


def _check_depth(tree: ast.AST) -> None:
    level, depth = [tree], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 3:  # the expression, a sign and a constant are nodes too
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        level = [child for node in level for child in ast.iter_child_nodes(node)]


def identity(value: object) -> Hashable:
    """What is equal for values of equal types and contents, NaN included, and only for those."""
    kind = type(value).__name__
    if isinstance(value, float):
        return kind, "nan" if math.isnan(value) else value
    if isinstance(value, complex):
        return kind, identity(value.real), identity(value.imag)
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(identity, value))
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(Counter(map(identity, value)).items())
    if isinstance(value, dict):
        return kind, frozenset(Counter((identity(key), identity(item)) for key, item in value.items()).items())
    return kind, value


STRING = re.compile(
    r"""(?<!\w)[rbfuRBFU]{0,2}('{3}.*?'{3}|"{3}.*?"{3}|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")(?!\w)""", re.DOTALL
)
"""A string literal within other text, for which the apostrophe of a word does not count as a quote."""

# What `repr` writes of what has no literal: a class, a member of an enumeration, a function.
_ANGLED = re.compile(rf"(?P<string>{STRING.pattern})|<(?P<angled>[A-Za-z][^<>]*)>", re.DOTALL)
_ANGLED_NAME = "__angled__"
_CLASSES = ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")


# Classes with such a `repr`, beside all whose names are capitalized, as those of dataclasses are.
_REPRS = frozenset({
    _ANGLED_NAME, "array", "bytearray", "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta",
    "datetime.timezone", "defaultdict", "deque", "dict", "dict_items", "dict_keys", "dict_values", "frozenset", "list",
    "mappingproxy", "memoryview", "namespace", "range", "set", "slice", "tuple",
})  # fmt: skip


@dataclass(frozen=True)
class _Built:
    """What `repr` writes as a call, such as `deque([1], maxlen=2)`: equal where name and arguments are."""

    name: str
    arguments: Hashable


def literals_equal(a: str, b: str) -> bool:
    """Whether two texts are the `repr` of equal values, else whether they are the same text, outer blanks aside.

    Type-strict at every depth: 1 is neither True nor 1.0. NaN equals itself, 0.0 equals -0.0; sets and dictionaries
    compare without order. A value that `repr` writes as a call, as of `frozenset`, `Counter`, `deque` or a dataclass,
    equals one with the same name and equal arguments; nothing is called. Never raises.
    """
    try:
        return identity(_value_of(a)) == identity(_value_of(b))
    except ValueError:
        return a.strip() == b.strip()


def _value_of(text: str) -> object:
    """The value that a `repr` describes, with `_Built` for what is no literal. Raises ValueError for other text."""
    try:
        return _value(_parsed(_ANGLED.sub(_as_call, text)).body)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"not the repr of a value: {error}") from None


def _as_call(match: re.Match[str]) -> str:
    return match[0] if match["string"] is not None else f"{_ANGLED_NAME}({match['angled']!r})"


def _value(node: ast.expr) -> object:
    match node:
        case ast.List() | ast.Tuple() | ast.Set():
            items = list(map(_value, node.elts))
            value: object = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)](items)
        case ast.Dict() if None not in node.keys:
            keys = [_value(key) for key in node.keys if key is not None]
            value = dict(zip(keys, map(_value, node.values), strict=True))
        case ast.Call():
            arguments = [_value(argument) for argument in node.args]
            keywords = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
            value = _built(ast.unparse(node.func), arguments, keywords)
        case ast.Name() if node.id in _CLASSES:
            value = _built(_ANGLED_NAME, [f"class {node.id!r}"], {})
        case ast.JoinedStr():
            value = "".join(map(_formatted, node.values))
        case _:  # constants, signs, complex numbers; ValueError for all else
            value = ast.literal_eval(_FloatNames().visit(node))
    return value


def _formatted(part: ast.expr) -> str:
    """The text of a part of an f-string without variables."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    value = ast.literal_eval(part.value)
    if part.format_spec is not None:
        raise ValueError("an f-string with a format")
    return {-1: str, ord("s"): str, ord("r"): repr, ord("a"): ascii}[part.conversion](value)


def _built(name: str, arguments: list[object], keywords: dict[str, object]) -> object:
    """The value that a call in a `repr` stands for. Raises ValueError for one that no `repr` writes, such as `f(1)`."""
    name = name.removeprefix("collections.")
    if name not in _REPRS and not name.rpartition(".")[2][:1].isupper():
        raise ValueError(f"{name} is no class that repr writes as a call")
    only = arguments[0] if len(arguments) == 1 and not keywords else None
    if name in ("set", "frozenset", "list", "tuple", "dict") and not arguments and not keywords:
        return {"set": set, "frozenset": frozenset, "list": list, "tuple": tuple, "dict": dict}[name]()
    if name in ("set", "frozenset") and isinstance(only, (list, tuple, set, frozenset)):
        return set(only) if name == "set" else frozenset(only)
    if name in ("Counter", "OrderedDict", "deque") and not arguments:
        arguments = [{} if name == "Counter" else []]
    if name == "defaultdict" and len(arguments) == 1:
        arguments = [*arguments, {}]
    if name == "OrderedDict" and isinstance(arguments[0], dict):  # how `repr` writes it from Python 3.12 on
        arguments = [list(arguments[0].items()), *arguments[1:]]
    return _Built(name, (identity(arguments), identity(keywords)))
