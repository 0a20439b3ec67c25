"""Workloads of the recorder benchmarks: functions of this file without arguments."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any


def integer_loop() -> int:
    total = 0
    i = 0
    while i < 3000:
        total += i
        i += 1
    return total


def float_loop() -> float:
    x = 1.0
    for _ in range(2000):
        x = 0.5 * (x + 2.0 / x)
        x += 0.001
    return x


def dict_counting() -> dict[int, int]:
    counts: dict[int, int] = {}
    for i in range(1500):
        key = i * 7 % 13
        counts[key] = counts.get(key, 0) + 1
    return counts


def list_append() -> list[int]:
    items = []
    for i in range(10_000):
        items.append(i)
    return items


def string_building() -> str:
    text = ""
    for _ in range(600):
        text += "ab"
    return text


def matrix() -> list[list[int]]:
    size = 7
    rows = [[0] * size for _ in range(size)]
    for i in range(size):
        for j in range(size):
            for k in range(size):
                rows[i][j] += (i + k) * (k - j)
    return rows


def fibonacci(n: int = 14) -> int:
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)


def exceptions() -> int:
    caught = 0
    for i in range(600):
        try:
            raise ValueError(i)
        except ValueError:
            caught += 1
    return caught


def generator() -> int:
    def numbers(n: int) -> Iterator[int]:
        for i in range(n):  # noqa: UP028
            yield i

    total = 0
    for value in numbers(800):
        total += value
    return total


class Plain:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


class Shown(Plain):
    def __repr__(self) -> str:
        return f"Shown({self.x}, {self.y})"


def objects() -> int:
    total = 0
    for i in range(300):
        point = Plain(i, i + 1)
        total += point.x
    return total


def objects_with_repr() -> int:
    total = 0
    for i in range(300):
        point = Shown(i, i + 1)
        total += point.x
    return total


DOCUMENT = '{"name": "trace", "sizes": [1, 20, 300, -4], "nested": {"deep": [true, false, null, {"a": "b\\n"}]}} '


def json_parser() -> Any:
    """Parse JSON by recursive descent, as a student would write it."""
    return parse_value(DOCUMENT, 0)[0]


def parse_value(text: str, at: int) -> tuple[Any, int]:
    at = skip_spaces(text, at)
    if text[at] == "{":
        return parse_object(text, at + 1)
    if text[at] == "[":
        return parse_array(text, at + 1)
    if text[at] == '"':
        return parse_string(text, at + 1)
    for word, value in (("true", True), ("false", False), ("null", None)):
        if text.startswith(word, at):
            return value, at + len(word)
    end = at + 1
    while text[end].isdigit():
        end += 1
    return int(text[at:end]), end


def skip_spaces(text: str, at: int) -> int:
    while text[at] == " ":
        at += 1
    return at


def parse_object(text: str, at: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while True:
        at = skip_spaces(text, at)
        if text[at] == "}":
            return found, at + 1
        key, at = parse_string(text, at + 1)
        value, at = parse_value(text, skip_spaces(text, at) + 1)
        found[key] = value
        at = skip_spaces(text, at)
        if text[at] == ",":
            at += 1


def parse_array(text: str, at: int) -> tuple[list[Any], int]:
    found = []
    while True:
        at = skip_spaces(text, at)
        if text[at] == "]":
            return found, at + 1
        value, at = parse_value(text, at)
        found.append(value)
        at = skip_spaces(text, at)
        if text[at] == ",":
            at += 1


def parse_string(text: str, at: int) -> tuple[str, int]:
    characters = []
    while text[at] != '"':
        if text[at] == "\\":
            at += 1
            characters.append({"n": "\n", "t": "\t"}.get(text[at], text[at]))
        else:
            characters.append(text[at])
        at += 1
    return "".join(characters), at + 1


BUILT_IN_VALUES: list[Callable[[], Any]] = [
    integer_loop,
    float_loop,
    dict_counting,
    list_append,
    string_building,
    matrix,
    fibonacci,
    exceptions,
    generator,
    json_parser,
]
WORKLOADS = [*BUILT_IN_VALUES, objects, objects_with_repr]


def suite_of(package: str) -> Callable[[], int]:
    """Return a function that runs the test functions in the `tests` of a package and returns their number.

    Test functions that need parameters or another version of Python are left out.

    Raises ModuleNotFoundError if the package is not installed.
    """
    tests = importlib.import_module(f"{package}.tests")
    names = [f"{package}.tests.{module.name}" for module in pkgutil.iter_modules(tests.__path__)]
    functions = [
        function
        for name in sorted(names)
        for function in list(vars(importlib.import_module(name)).values())
        if inspect.isfunction(function)
        and function.__module__ == name
        and function.__name__.startswith("test_")
        and not inspect.signature(function).parameters
        and passes(function)
    ]

    def run() -> int:
        for function in functions:
            function()
        return len(functions)

    return run


def passes(function: Callable[[], Any]) -> bool:
    try:
        function()
    except BaseException:
        return False
    return True
