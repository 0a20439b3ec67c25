"""Read solutions of programming contests, right and wrong ones, as units to record, and compare runs with tests.

`read_contests` takes JSON lines in the forms of CodeContests and APPS, which may be mixed in a file:

- CodeContests (Li et al. 2022, Competition-level code generation with AlphaCode): `name`; `public_tests`,
  `private_tests`, `generated_tests`; `solutions`, `incorrect_solutions`. Tests are `{"input": [...], "output": [...]}`
  and solutions are `{"language": [...], "solution": [...]}`, or either is a list of objects with these fields.
- APPS (Hendrycks et al. 2021, Measuring coding challenge competence with APPS): `question`, `solutions`,
  `input_output`. The last two are JSON in a string, or plain JSON values. APPS has no wrong solutions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._native import DamagedFileError
from ..support.jsonl import loads, read_rows
from ..trace import Trace
from .prelude import import_paths, with_prelude
from .unit import Unit

MAX_LINE_BYTES = 256 << 20
"""Maximum length of the line of a problem with all its solutions and tests."""
_PYTHON3 = (3, "PYTHON3")  # in the enumeration of CodeContests
_MAX_INT_DIGITS = 4000  # CPython converts at most 4300 by default
_ENDED_WELL = (None, "SystemExit()", "SystemExit(0)", "SystemExit(None)")
TOLERANCE = 1e-5
"""Absolute or relative tolerance for numbers in problems whose answers have decimals, as in APPS and CodeContests."""
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_SMALLEST = 4  # inputs are drawn from this many times as many of the smallest


class ContestTest(NamedTuple):
    """The input of a solution and the answer that it must give."""

    input: str
    """Standard input, or, for a call of a function, the text between the parentheses."""
    output: str
    """Output that a program must print, or, for a call of a function, the value that it must return, as JSON."""


@dataclass(frozen=True)
class ContestProblem:
    """A problem with its tests and solutions in Python 3."""

    name: str
    """Name of the problem."""
    source: str
    """Form that it was read from: `codecontests` or `apps`."""
    tests: tuple[ContestTest, ...]
    """Tests of the problem."""
    right: tuple[str, ...]
    """Solutions that the data set labels right. Not all of them pass: see `judge`."""
    wrong: tuple[str, ...] | None
    """Solutions that the data set labels wrong; None if the data set has none for any problem."""
    function: str | None = None
    """Name of the function to call; None if solutions are whole programs."""
    difficulty: str | int | None = None
    """Difficulty, as the data set states it."""
    url: str | None = None
    """Address of the problem."""
    statement: str = ""
    """Text of the problem; empty if the row has none."""


def read_contests(path: str | os.PathLike[str]) -> Iterator[ContestProblem]:
    """Yield the problems of a file of JSON lines.

    Solutions that do not compile as Python 3 are left out. So are tests that Python cannot write as literals, such as
    infinite numbers and integers of thousands of digits.

    Raises:
        DamagedFileError: A line is damaged or has another form. The message names the file, the line, and the fault.
        OSError: The file cannot be read.
    """
    for number, row in read_rows(path, loads=_parsed, max_line_bytes=MAX_LINE_BYTES):
        try:
            contest = contest_of(row, number)
        except ValueError as error:
            raise DamagedFileError(f"{os.fspath(path)}, line {number}: {error}") from None
        yield contest


def units(
    contests: Iterable[ContestProblem],
    *,
    license: str,
    seed: int = 0,
    solutions: int = 4,
    inputs: int = 2,
    max_input_chars: int = 1000,
    max_code_chars: int = 10_000,
) -> Iterator[Unit]:
    """Yield the units to record: at most `solutions` of each problem, as many right as wrong, on the same `inputs`.

    A data set without wrong solutions yields only right ones. A problem without tests or solutions yields none. The
    choice depends only on `seed` and the problem, not on its place in the file.

    A right solution that uses names which graders import for it, such as `List`, begins with these imports (see
    `prelude.with_prelude`). A wrong solution stays unchanged, because the missing import may be why it is wrong.
    Solutions import the packages that are installed here.

    The provenance has `source`, `license`, `problem`, `label` (`right` or `wrong`, from the data set), `expected` (for
    each run, the digest of the answer for `judge_digest`), `seed`, and `difficulty` and `url` if they are known.

    Args:
        contests: Problems.
        license: SPDX expression of the license of the data set.
        seed: Seed of the choice.
        solutions: Solutions of a problem.
        inputs: Inputs of a solution, drawn from the smallest.
        max_input_chars: Maximum length of an input; longer ones are left out.
        max_code_chars: Maximum length of a solution; longer ones are left out.

    Raises:
        ValueError: `solutions` is less than 2 or `inputs` is less than 1.
    """
    if solutions < 2 or inputs < 1:
        raise ValueError(f"expected at least 2 solutions and 1 input, got {solutions} and {inputs}")
    seen: Counter[str] = Counter()
    for contest in contests:
        seen[contest.name] += 1
        times = seen[contest.name]
        name = contest.name if times == 1 else f"{contest.name}#{times}"
        draw = random.Random(f"{seed}/{name}")
        tests = _small(contest.tests, inputs, max_input_chars, draw)
        right = _distinct(contest.right, max_code_chars)
        wrong = [(n, code) for n, code in _distinct(contest.wrong or (), max_code_chars) if code not in contest.right]
        if contest.wrong is None:
            each = {"right": draw.sample(right, min(solutions, len(right)))}
        else:
            count = min(solutions // 2, len(right), len(wrong))
            each = {"right": draw.sample(right, count), "wrong": draw.sample(wrong, count)}
        if not tests:
            continue
        for label, chosen in each.items():
            for index, code in sorted(chosen):
                provenance = {"source": contest.source, "license": license, "problem": contest.name, "label": label}
                complete = with_prelude(code) if label == "right" else code
                yield _unit(f"{name}/{label}/{index}", contest, complete, tests, provenance | {"seed": seed})


def judge(trace: Trace, expected: str, *, call: bool = False, tolerance: float | None = None) -> bool:
    """Return whether a recorded run gives the answer of a test, by the rules of contests.

    A program must end without an exception or an exit code and print the same words. A call must return the same value;
    a tuple equals a list, and a list of one element equals that element. What the program printed or returned never
    raises an exception here.

    This is the view of the recorder. In a corpus, `judging.Judge` decides.

    Args:
        trace: Recording of the run; of a program, with `capture_output`.
        expected: Expected answer, as in `ContestTest.output`.
        call: Whether a function was called.
        tolerance: Absolute or relative tolerance for numbers; None if they must be equal.
    """
    if trace.truncated is not None:
        return False
    if call:
        return accepts_value(trace.result or "", expected, tolerance) is True
    ended_well = trace.exception in _ENDED_WELL and trace.output is not None
    return ended_well and accepts_output(trace.output or "", expected, tolerance)


def accepts_output(printed: str, expected: str, tolerance: float | None = None) -> bool:
    """Return whether a program that printed this passes a test: the same words, numbers up to the tolerance."""
    words, others = printed.split(), expected.split()
    return len(words) == len(others) and all(_close(a, b, tolerance) for a, b in zip(words, others, strict=True))


def accepts_value(shown: str, expected: str, tolerance: float | None = None) -> bool | None:
    """Return whether a function whose value has this `repr` passes a test, or None if the `repr` is not a literal."""
    try:
        value = _unwrapped(ast.literal_eval(shown))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    wanted = _unwrapped(_parsed(expected))
    return _canonical(value) == _canonical(wanted) or (tolerance is not None and _alike(value, wanted, tolerance))


def tolerance_of(outputs: Iterable[str]) -> float | None:
    """Return the tolerance for a problem with these expected outputs: None unless a number in them has decimals."""
    has_decimals = any(_DECIMAL.fullmatch(word) for text in outputs for word in re.split(r"[\s,\[\]{}:]+", text))
    return TOLERANCE if has_decimals else None


def ended_well(trace: Trace) -> bool:
    """Return whether a recorded run ended without an exception, or with exit code 0."""
    return trace.truncated is None and trace.exception in _ENDED_WELL


def judge_digest(trace: Trace, expected: str, *, call: bool = False) -> bool:
    """Do what `judge` does without a tolerance, for a digest that `units` stores in `provenance["expected"]`."""
    answer = _answer(trace, call)
    return answer is not None and _digest(answer) == expected


def _unit(
    id: str, contest: ContestProblem, code: str, tests: Sequence[ContestTest], provenance: dict[str, Any]
) -> Unit:
    if contest.difficulty is not None:
        provenance["difficulty"] = contest.difficulty
    if contest.url is not None:
        provenance["url"] = contest.url
    called = contest.function is not None
    provenance["expected"] = [_digest(_wanted(test.output, called)) for test in tests]
    given = tuple(test.input for test in tests)
    outputs = tuple(test.output for test in tests)
    runs: dict[str, Any] = {"inputs": given}
    if called:
        callee = callee_of(code, contest.function or "")
        runs = {"calls": tuple(f"{callee}({arguments})" for arguments in given)}
    tolerance = tolerance_of(test.output for test in contest.tests)
    expected: dict[str, Any] = {"outputs": outputs, "tolerance": tolerance}
    return Unit(id, code, **runs, **expected, paths=import_paths(code), provenance=provenance)


def callee_of(code: str, function: str) -> str:
    """Return the expression for a function in the module, which may be a method of a class `Solution`."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.ClassDef) and node.name == "Solution":
            methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            if function in methods:
                return f"Solution().{function}"
    return function


def _small(tests: Iterable[ContestTest], count: int, most: int, draw: random.Random) -> list[ContestTest]:
    """Return some of the tests with the smallest inputs, the smallest first."""
    by_input = {test.input: test for test in tests if len(test.input) <= most}
    smallest = sorted(by_input.values(), key=lambda test: (len(test.input), test.input))[: _SMALLEST * count]
    return sorted(draw.sample(smallest, min(count, len(smallest))), key=lambda test: len(test.input))


def _distinct(codes: Iterable[str], most: int) -> list[tuple[int, str]]:
    """Return each code that is not too long once, with its number."""
    first: dict[str, int] = {}
    for index, code in enumerate(codes):
        if len(code) <= most:
            first.setdefault(code, index)
    return [(index, code) for code, index in first.items()]


def _answer(trace: Trace, call: bool) -> str | None:
    """Return the answer of a run in the form to compare, or None if the run did not end."""
    if trace.truncated is not None:
        return None
    if not call:
        return _words(trace.output) if trace.exception in _ENDED_WELL and trace.output is not None else None
    try:
        return _value(ast.literal_eval(trace.result or ""))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _wanted(expected: str, call: bool) -> str:
    return _value(_parsed(expected)) if call else _words(expected)


def _words(text: str) -> str:
    return " ".join(text.split())


def _value(value: Any) -> str:
    """Return a returned value in the form to compare."""
    return _canonical(_unwrapped(value))


def _unwrapped(value: Any) -> Any:
    """Return a returned value without the lists of one element that APPS wraps some results in."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value


def _canonical(value: Any) -> str:
    """Return a text that is equal for equal values. Tuples have the text of lists."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_canonical, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_canonical(key)}: {_canonical(item)}" for key, item in value.items())) + "}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return repr(value)


def _digest(answer: str) -> str:
    return hashlib.blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _close(word: str, wanted: str, tolerance: float | None) -> bool:
    """Return whether two words are equal, or are close numbers and at least one has decimals."""
    if word == wanted or tolerance is None:
        return word == wanted
    if word.lstrip("+-").isdecimal() and wanted.lstrip("+-").isdecimal():
        return False
    try:
        number, other = float(word), float(wanted)
    except ValueError:
        return False
    return math.isclose(number, other, rel_tol=tolerance, abs_tol=tolerance)


def _alike(value: Any, wanted: Any, tolerance: float) -> bool:
    """Return whether two values have the same form, and their numbers are close where at least one is a float."""
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        return len(value) == len(wanted) and all(_alike(a, b, tolerance) for a, b in zip(value, wanted, strict=True))
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_alike(value[key], wanted[key], tolerance) for key in value)
    numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in (value, wanted))
    if numbers and (isinstance(value, float) or isinstance(wanted, float)):
        return math.isclose(value, wanted, rel_tol=tolerance, abs_tol=tolerance)
    return _canonical(value) == _canonical(wanted)


def _parsed(text: str | bytes) -> Any:
    """Return what a JSON text holds. Integers of too many digits become infinite."""
    return loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _MAX_INT_DIGITS else math.inf)


def contest_of(row: Any, number: int) -> ContestProblem:
    """Return the problem of a row, whose number names a problem of APPS without an id. Raise ValueError for others."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a problem as a JSON object, got {_kind(row)}")
    if "input_output" in row:
        return _apps(row, number)
    if "public_tests" in row or "incorrect_solutions" in row:
        return _code_contests(row)
    raise ValueError("expected a problem of CodeContests, with 'public_tests', or of APPS, with 'input_output'")


def _code_contests(row: dict[str, Any]) -> ContestProblem:
    tests: list[ContestTest] = []
    for field in ("public_tests", "private_tests", "generated_tests"):
        tests += map(ContestTest._make, _pairs(row, field, ("input", "output"), (str,)))
    sources = {
        field: _python3(code for language, code in _pairs(row, field, ("language", "solution")) if language in _PYTHON3)
        for field in ("solutions", "incorrect_solutions")
    }
    return ContestProblem(
        _text(row, "name"),
        "codecontests",
        tuple(tests),
        sources["solutions"],
        sources["incorrect_solutions"],
        difficulty=_optional(row, "difficulty", (str, int)),
        url=_optional(row, "url", (str,)),
        statement=_optional(row, "description", (str,)) or "",
    )


def _pairs(
    row: dict[str, Any], field: str, names: tuple[str, str], first: tuple[type, ...] = (str, int)
) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of values of an object of two lists, or of a list of objects. The second value is a string."""
    given = row.get(field)
    if given is None:
        return
    if isinstance(given, dict):
        columns = [column for name in names if isinstance(column := given.get(name), list)]
        if len(columns) < len(names) or len(columns[0]) != len(columns[1]):
            raise ValueError(f"{field!r}: expected lists {names[0]!r} and {names[1]!r} of the same length")
        pairs: Iterable[tuple[Any, Any]] = zip(*columns, strict=True)
    elif isinstance(given, list) and all(isinstance(item, dict) for item in given):
        pairs = ((item.get(names[0]), item.get(names[1])) for item in given)
    else:
        raise ValueError(f"{field!r}: expected an object of lists or a list of objects, got {_kind(given)}")
    for index, (a, b) in enumerate(pairs):
        for name, value, types in ((names[0], a, first), (names[1], b, (str,))):
            if not isinstance(value, types) or isinstance(value, bool):
                raise ValueError(f"{field!r}: unexpected {name!r} number {index}: {_kind(value)}")
        yield a, b


def _apps(row: dict[str, Any], number: int) -> ContestProblem:
    solutions = _unpacked(row, "solutions", list) or []
    tests = _unpacked(row, "input_output", dict) or {}
    function = _optional(tests, "fn_name", (str,))
    if function is not None and not function.isidentifier():
        raise ValueError(f"'fn_name': expected an identifier, got {function[:100]!r}")
    inputs, outputs = tests.get("inputs", []), tests.get("outputs", [])
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError("'input_output': expected lists 'inputs' and 'outputs' of the same length")
    if not all(isinstance(code, str) for code in solutions):
        raise ValueError("'solutions': expected strings")
    read = _program_test if function is None else _call_test
    given = [read(index, pair) for index, pair in enumerate(zip(inputs, outputs, strict=True))]
    identity = next(
        (row[field] for field in ("problem_id", "id", "name") if isinstance(row.get(field), str | int)), None
    )
    return ContestProblem(
        f"apps/{number if identity is None else identity}",
        "apps",
        tuple(test for test in given if test is not None),
        _python3(solutions),
        None,
        function,
        _optional(row, "difficulty", (str, int)),
        _optional(row, "url", (str,)),
        _optional(row, "question", (str,)) or "",
    )


def _unpacked(row: dict[str, Any], field: str, kind: type) -> Any:
    """Return a field that is a value or JSON in a string; None if it is empty."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = _parsed(value) if value.strip() else None
        except ValueError as error:
            raise ValueError(f"{field!r}: not JSON: {error}") from None
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{field!r}: expected {'a list' if kind is list else 'an object'}, got {_kind(value)}")
    return value


def _program_test(index: int, pair: tuple[Any, Any]) -> ContestTest:
    texts = []
    for value in pair:
        lines = value if isinstance(value, list) else [value]
        if not all(isinstance(line, str) for line in lines):
            raise ValueError(f"'input_output', number {index}: expected strings or lists of lines")
        texts.append("\n".join(lines))
    return ContestTest(*texts)


def _call_test(index: int, pair: tuple[Any, Any]) -> ContestTest | None:
    arguments, value = pair
    if not isinstance(arguments, list):
        raise ValueError(f"'input_output', number {index}: expected a list of arguments")
    if not _is_finite(arguments) or not _is_finite(value):
        return None
    return ContestTest(", ".join(map(repr, arguments)), json.dumps(value))


def _is_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_finite, value))
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


def _python3(codes: Iterable[str]) -> tuple[str, ...]:
    return tuple(code for code in codes if _compiles(code))


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes such as "\d"
            compile(code, "<solution>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        return False
    return True


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field!r}: expected a string, got {_kind(value)}")
    return value


def _optional(row: dict[str, Any], field: str, types: tuple[type, ...]) -> Any:
    value = row.get(field)
    if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
        raise ValueError(f"{field!r}: unexpected value: {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """Return what JSON calls a value."""
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "missing" if value is None else names[type(value)]
