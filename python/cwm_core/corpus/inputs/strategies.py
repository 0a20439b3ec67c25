"""Draw calls with Hypothesis from the shapes of a function's arguments.

The same seed gives the same calls in every process. To ensure this, choices come from a backend of this module:
Hypothesis's own backend takes constants from the modules that the process has loaded, and stores them in a folder.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, PrimitiveProvider

from ..functions.kinds import FunctionKind
from .shapes import ANY, Argument, ParameterKind, Shape, ShapeKind

if TYPE_CHECKING:
    from ..functions.discovery import Function

_BACKEND = "cwm-seeded"
_INTEGERS = (0, 1, 2, 3, 5, -1, 10, 4, 7, 8, 12, 16, 6, 9, 20, 37, 64, 100, 255, 1000, -2, -7, -100, 65537, 10**12)
_FLOATS = ("0.0", "1.0", "0.5", "-1.5", "2.0", "3.14159", "10.0", "1e-09", "100.25", "1e+16", "-0.25")
_TEXTS = (
    "",
    "a", "abc", "hello world", "Hello, World!", "1", "42", "-7", "3.14", "foo_bar", "FooBar", "a,b,c", "one\ntwo\n",
    "  padded ", "é", "ABC", "x = 1", "2020-01-02", "12:30:45", "<b>bold</b>", "{name}", "%s %d", "a/b/c.txt", "aabbcc",
    "key=value", "[1, 2]", "a-b-c", "the quick brown fox", "1.2.3", "http://example.com/a?b=c",
    "'q' \"d\"", "(a (b) c)", "True", "None", "x**2 + 1", "# Title\n\ntext *a* `b`\n", "0x1f", "a\tb", "racecar", "ß",
)  # fmt: skip
_ALPHABET = "abcxyzABZ019 _-.,:;/()[]{}<>+*=%#@!?\"'\n\\"
_CALLABLES = (
    "lambda x: x", "str", "len", "lambda *args: args", "lambda x, y: x + y", "lambda x: x % 2 == 0", "int", "bool",
    "lambda x: x > 1", "lambda: 0", "lambda x: -x", "list", "lambda x: x * x", "repr",
)  # fmt: skip


class _Seeded(PrimitiveProvider):
    """Makes choices with a plain generator of random numbers, seeded once per run."""

    seed = ""

    def __init__(self, conjecturedata: Any, /) -> None:
        super().__init__(conjecturedata)
        self.random = random.Random(self.seed)

    def draw_boolean(self, p: float = 0.5) -> bool:
        return self.random.random() < p

    def draw_integer(
        self,
        min_value: int | None = None,
        max_value: int | None = None,
        *,
        weights: dict[int, float] | None = None,
        shrink_towards: int = 0,
    ) -> int:
        return self.random.randint(-1000 if min_value is None else min_value, 1000 if max_value is None else max_value)

    def draw_float(self, **constraints: Any) -> float:
        raise NotImplementedError

    def draw_string(self, intervals: Any, **constraints: Any) -> str:
        raise NotImplementedError

    def draw_bytes(self, min_size: int = 0, max_size: int = 0) -> bytes:
        raise NotImplementedError


AVAILABLE_PROVIDERS[_BACKEND] = _Seeded


def draw(strategy: st.SearchStrategy[str], *, seed: str, count: int) -> list[str]:
    """Return up to `count` different examples of a strategy, which may only draw integers and booleans."""
    drawn: dict[str, None] = {}

    @hypothesis.settings(
        backend=_BACKEND,
        database=None,
        deadline=None,
        derandomize=False,
        max_examples=count,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(example: str) -> None:
        drawn[example] = None

    _Seeded.seed = seed
    collect()
    return list(drawn)


def calls(function: Function, *, seed: str, count: int) -> list[str]:
    """Return up to `count` different calls of a function, as text."""
    return draw(call(function), seed=seed, count=count)


def call(function: Function) -> st.SearchStrategy[str]:
    """Return a strategy for calls of a function: its required arguments, some of the others, and its receiver."""
    pools = _Pools(function.literals)
    taken = pools.arguments(function.arguments)
    if function.kind is FunctionKind.PROPERTY:
        plain = pools.value(function.receivers).map(lambda base: on(base, function.called))
    elif function.kind is FunctionKind.METHOD:
        plain = st.builds(
            lambda base, arguments: f"{on(base, function.called)}({arguments})", pools.value(function.receivers), taken
        )
    else:
        plain = taken.map(lambda arguments: f"{function.called}({arguments})")
    return plain.map(lambda written: function.wrap.replace("{}", written))


def on(base: str, attribute: str) -> str:
    """Return the attribute of a value that is given as an expression."""
    node = ast.Attribute(ast.parse(base, mode="eval").body, attribute, ast.Load())
    return ast.unparse(node)


class _Pools:
    """Strategies for shapes, with the literals of a function among the numbers and texts."""

    def __init__(self, literals: Sequence[str]) -> None:
        values = [ast.literal_eval(literal) for literal in literals]
        near = [n + step for n in values if type(n) is int for step in (0, 1, -1)]
        texts = [s for s in values if isinstance(s, str)]
        word = st.lists(st.sampled_from(_ALPHABET), max_size=8).map("".join)
        self.integers = st.sampled_from([*_INTEGERS, *near][:100]).map(repr)
        self.floats = st.sampled_from([*_FLOATS, *(repr(x) for x in values if type(x) is float)])
        self.texts = st.one_of(
            st.sampled_from(_TEXTS),
            *([st.sampled_from(texts), st.lists(st.sampled_from(texts), max_size=4).map("".join)] if texts else ()),
            word,
        ).map(repr)
        self.simple = st.one_of(self.integers, self.texts)

    def value(self, shapes: Sequence[Shape]) -> st.SearchStrategy[str]:
        """Return a strategy for one of the shapes. Expressions that were seen count twice."""
        found = [self.shape(shape) for shape in shapes or (ANY,)]
        found += [self.shape(shape) for shape in shapes if shape.kind is ShapeKind.VALUES]
        return st.one_of(found)

    def shape(self, shape: Shape) -> st.SearchStrategy[str]:
        """Return a strategy for a shape."""
        match shape.kind:
            case ShapeKind.VALUES:
                found = st.sampled_from(shape.values)
            case ShapeKind.NEW:
                found = self.arguments(shape.arguments).map(lambda arguments: f"{shape.name}({arguments})")
            case ShapeKind.RECORD:
                items = st.tuples(*(self.value((of,)) for of in shape.of))
                found = items.map(lambda items: f"({', '.join(items)}{',' * (len(items) == 1)})")
            case ShapeKind.DICT:
                key = self.simple if not shape.of or shape.of[0] == ANY else self.value(shape.of[:1])
                pairs = st.lists(st.tuples(key, self.value(shape.of[1:2])).map(": ".join), max_size=4)
                found = pairs.map(lambda pairs: f"{{{', '.join(pairs)}}}")
            case ShapeKind.LIST | ShapeKind.TUPLE | ShapeKind.SET | ShapeKind.FROZENSET | ShapeKind.ITERATOR:
                found = self.items(shape)
            case ShapeKind.ANY:
                found = self.any()
            case kind:
                found = self.scalars[kind]
        return found

    @cached_property
    def scalars(self) -> dict[ShapeKind, st.SearchStrategy[str]]:
        """Strategies for values without elements."""
        return {
            ShapeKind.INT: self.integers,
            ShapeKind.FLOAT: st.one_of(self.floats, self.integers),
            ShapeKind.COMPLEX: st.builds(lambda a, b: f"complex({a}, {b})", self.floats, self.floats),
            ShapeKind.BOOL: st.sampled_from(("True", "False")),
            ShapeKind.STR: self.texts,
            ShapeKind.BYTES: self.texts.map(lambda text: repr(ast.literal_eval(text).encode())),
            ShapeKind.CALLABLE: st.sampled_from(_CALLABLES),
            ShapeKind.FILE: self.texts.map(lambda text: f"__import__('io').StringIO({text})"),
            ShapeKind.NONE: st.just("None"),
        }

    def items(self, shape: Shape) -> st.SearchStrategy[str]:
        """Return a strategy for elements of one kind, like those of most programs."""
        if shape.of and shape.of[0] != ANY:
            item = st.lists(self.value(shape.of[:1]), max_size=5)
        else:
            pair = st.tuples(self.simple, self.integers).map(lambda pair: f"({', '.join(pair)})")
            row = st.lists(self.integers, max_size=3).map(_listed)
            kinds = [self.integers, self.texts, pair, row]
            item = st.one_of([st.lists(kind, max_size=5) for kind in kinds])
        listed = item.map(_listed)
        if shape.kind is ShapeKind.LIST:
            return listed
        made = "iter" if shape.kind is ShapeKind.ITERATOR else str(shape.kind)
        return listed.map(lambda text: f"{made}({text})")

    def any(self) -> st.SearchStrategy[str]:
        """Return a strategy for a value of unknown type."""
        return st.one_of(
            self.integers,
            self.texts,
            self.items(Shape(ShapeKind.LIST)),
            self.pairs(),
            st.sampled_from(("None", "True", "0.5", "()", *_CALLABLES[:2])),
        )

    def pairs(self) -> st.SearchStrategy[str]:
        """Return a strategy for a dict of simple values."""
        pairs = st.lists(st.tuples(self.texts, self.simple).map(": ".join), max_size=3)
        return pairs.map(lambda pairs: f"{{{', '.join(pairs)}}}")

    def arguments(self, arguments: Sequence[Argument]) -> st.SearchStrategy[str]:
        """Return a strategy for the text between the parentheses of a call."""
        values = [self.value(argument.shapes) for argument in arguments]

        @st.composite
        def drawn(draw: st.DrawFn) -> str:
            return ", ".join(_passed(draw, arguments, values))

        return drawn()


def _passed(draw: st.DrawFn, arguments: Sequence[Argument], values: Sequence[st.SearchStrategy[str]]) -> Iterator[str]:
    by_keyword = False
    for argument, value in zip(arguments, values, strict=True):
        if argument.kind is ParameterKind.VARIADIC:
            if not by_keyword:
                yield from draw(st.lists(value, max_size=3))
        elif argument.default is not None and draw(st.sampled_from((True, True, False))):
            by_keyword = True
        elif argument.kind is ParameterKind.KEYWORD or (by_keyword and argument.kind is ParameterKind.ANY):
            yield f"{argument.name}={draw(value)}"
        elif not by_keyword:
            yield draw(value)


def _listed(items: Sequence[str]) -> str:
    return f"[{', '.join(items)}]"
