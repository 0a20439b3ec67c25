"""Read and compare Python literals in model output, without running code and with strict types."""

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 100


class _FloatNames(ast.NodeTransformer):
    """Replaces the names nan and inf, which `repr` writes, by constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in ("nan", "inf"):
            return ast.copy_location(ast.Constant(float(node.id)), node)
        return node


def evaluate_literal(text: str) -> object:
    """Return the value of a Python literal: all that `ast.literal_eval` reads, `nan`, and `inf`.

    Raises:
        ValueError: The text is not a literal, is longer than `MAX_CHARACTERS`, or is nested deeper than `MAX_DEPTH`.
    """
    try:
        return ast.literal_eval(_FloatNames().visit(_parsed(text)))
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python literal: {error}") from None


def _parsed(text: str) -> ast.Expression:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters; at most {MAX_CHARACTERS} are read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser warns about invalid escapes such as "\d"
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
    """Return a key that is equal for two values exactly if their types and contents are; NaN equals NaN."""
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
"""String literal within other text. The apostrophe of a word is not a quote."""

# The `repr` of values without a literal: classes, members of enumerations, functions.
_ANGLED = re.compile(rf"(?P<string>{STRING.pattern})|<(?P<angled>[A-Za-z][^<>]*)>", re.DOTALL)
_ANGLED_NAME = "__angled__"
_CLASSES = ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")


# Classes whose `repr` is a call, in addition to all capitalized names, such as those of dataclasses.
_REPRS = frozenset({
    _ANGLED_NAME, "array", "bytearray", "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta",
    "datetime.timezone", "defaultdict", "deque", "dict", "dict_items", "dict_keys", "dict_values", "frozenset", "list",
    "mappingproxy", "memoryview", "namespace", "range", "set", "slice", "tuple",
})  # fmt: skip


@dataclass(frozen=True)
class _Built:
    """A value whose `repr` is a call, such as `deque([1], maxlen=2)`; equal if name and arguments are."""

    name: str
    arguments: Hashable


def literals_equal(a: str, b: str) -> bool:
    """Return whether two texts are the `repr` of equal values, or else the same text without surrounding blanks.

    Types are compared strictly at every depth: 1 equals neither True nor 1.0. NaN equals itself, and 0.0 equals -0.0.
    The order of sets and dictionaries does not matter. A value whose `repr` is a call, such as a `Counter`, `deque`,
    or dataclass, equals one with the same name and equal arguments. Nothing is called. Never raises.
    """
    try:
        return identity(_value_of(a)) == identity(_value_of(b))
    except ValueError:
        return a.strip() == b.strip()


def _value_of(text: str) -> object:
    """Return the value that a `repr` describes, with `_Built` for calls. Raise ValueError for other text."""
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
        case ast.Call(func=ast.Name("float"), args=[ast.Constant(str(number))], keywords=[]):  # float("inf")
            value = float(number)
        case ast.Call():
            arguments = [_value(argument) for argument in node.args]
            keywords = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
            value = _built(ast.unparse(node.func), arguments, keywords)
        case ast.Name() if node.id in _CLASSES:
            value = _built(_ANGLED_NAME, [f"class {node.id!r}"], {})
        case ast.JoinedStr():
            value = "".join(map(_formatted, node.values))
        case _:  # constants, signs, complex numbers; ValueError for anything else
            value = ast.literal_eval(_FloatNames().visit(node))
    return value


def _formatted(part: ast.expr) -> str:
    """Return the text of one part of an f-string that has no variables."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    value = ast.literal_eval(part.value)
    if part.format_spec is not None:
        raise ValueError("an f-string with a format")
    conversions: dict[int, Callable[[object], str]] = {-1: str, ord("s"): str, ord("r"): repr, ord("a"): ascii}
    return conversions[part.conversion](value)


def _built(name: str, arguments: list[object], keywords: dict[str, object]) -> object:
    """Return the value of a call in a `repr`. Raise ValueError for a call that no `repr` writes, such as `f(1)`."""
    name = name.removeprefix("collections.")
    if name not in _REPRS and not name.rpartition(".")[2][:1].isupper():
        raise ValueError(f"the repr of {name} is not a call")
    only = arguments[0] if len(arguments) == 1 and not keywords else None
    if name in ("set", "frozenset", "list", "tuple", "dict") and not arguments and not keywords:
        return {"set": set, "frozenset": frozenset, "list": list, "tuple": tuple, "dict": dict}[name]()
    if name in ("set", "frozenset") and isinstance(only, (list, tuple, set, frozenset)):
        return set(only) if name == "set" else frozenset(only)
    if name in ("Counter", "OrderedDict", "deque") and not arguments:
        arguments = [{} if name == "Counter" else []]
    if name == "defaultdict" and len(arguments) == 1:
        arguments = [*arguments, {}]
    if name == "OrderedDict" and isinstance(arguments[0], dict):  # the `repr` from Python 3.12 on
        arguments = [list(arguments[0].items()), *arguments[1:]]
    return _Built(name, (identity(arguments), identity(keywords)))
