"""The context cut down to what was touched holds every executed line, and is Python."""

from __future__ import annotations

import argparse
import ast
import calendar
import colorsys
import configparser
import copy
import csv
import difflib
import fnmatch
import fractions
import ipaddress
import pprint
import random
import shlex
import statistics
import string
import sysconfig
import textwrap
import tokenize
from functools import cache
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.corpus.generator import generate
from cwm_core.trace import context
from cwm_core.trace.context import (
    Context,
    ContextTooLarge,
    entry_line,
    narrow,
    physical_lines,
    touched,
    whole_file,
)
from hypothesis import given
from hypothesis import strategies as st

MARK = "  # << START_OF_TRACE"


def words(text: str) -> int:
    return len(text.split())


@cache
def modules() -> list[Path]:
    """Modules of the standard library that parse, from the smallest."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = [*folder.glob("*.py"), *folder.glob("asyncio/*.py"), *folder.glob("email/*.py")]
    return [path for path in sorted(names) if path.is_file() and path.stat().st_size < 60_000]


@cache
def source_of(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string("[a]\nx = 1\ny = %(x)s2\n")
    return parser


CALLS = [
    (textwrap.fill, ("some words to be wrapped, and then some more", 12)),
    (textwrap.dedent, ("  a\n    b\n",)),
    (fractions.Fraction("3/9").__add__, (fractions.Fraction(1, 2),)),
    (statistics.quantiles, ([1, 2, 4, 8, 16],)),
    (statistics.median, ([3, 1, 2],)),
    (shlex.split, ("a 'b c' # d",)),
    (difflib.get_close_matches, ("appel", ["ape", "apple", "peach"])),
    (colorsys.rgb_to_hls, (0.2, 0.4, 0.6)),
    (calendar.TextCalendar().formatmonth, (2024, 2)),
    (ipaddress.ip_network, ("10.0.0.0/29",)),
    (string.Template("$a is ${b}").substitute, ({"a": 1, "b": 2},)),
    (pprint.pformat, ({"a": [1, 2], "b": {"c": (3,)}},)),
    (copy.deepcopy, ([1, {"a": [2]}],)),
    (fnmatch.translate, ("a*[bc]?",)),
    (argparse.ArgumentParser(prog="x").format_usage, ()),
    (csv.Sniffer().sniff, ("a;b\n1;2\n",)),
    (config().items, ("a",)),
]


def in_order(wanted: list[str], lines: list[str]) -> bool:
    remaining = iter(lines)
    return all(any(line == found for found in remaining) for line in wanted)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: getattr(call[0], "__qualname__", "?"))
def test_every_action_of_a_recorded_library_function_is_in_the_context(call) -> None:
    trace = cwm.record(call[0], *call[1])
    cut = narrow(trace)
    assert list(cut.frames) == list(trace.frames) and cut.result == trace.result
    ast.parse(cut.context)
    lines = [line.rstrip("\n").removesuffix(MARK) for line in physical_lines(cut.context)]
    by_number = dict(sorted({frame.lineno: frame.line for frame in trace.frames}.items()))
    assert in_order([line.rstrip("\n") for line in by_number.values()], lines)
    assert [line for line in cut.context.splitlines() if line.endswith(MARK)] == [
        line for line in trace.context.splitlines() if line.endswith(MARK)
    ]
    assert len(cut.context) < len(trace.context)


@given(seed=st.integers(0, 10**6))
def test_generated_programs(seed: int) -> None:
    program = generate(seed)
    trace = cwm.record_source(*program)
    cut = narrow(trace)
    ast.parse(cut.context)
    shown = cut.context.replace(MARK, "").split("\n")
    assert {frame.line.rstrip("\n") for frame in trace.frames} <= set(shown)
    assert entry_line(cut) is not None


@given(st.data())
def test_any_lines_of_any_module(data: st.DataObject) -> None:
    """Whatever was executed: lines that code objects of the module name, in any combination."""
    source = source_of(data.draw(st.sampled_from(modules())))
    possible = executable_lines(source)
    if not possible:
        return
    lines = data.draw(st.sets(st.sampled_from(possible), max_size=6))
    context = touched(source, lines)
    ast.parse(context.code)
    file = physical_lines(source)
    assert context.code == "".join(file[n - 1] for n in context.lines)
    assert list(context.lines) == sorted(set(context.lines)) and lines <= set(context.lines)

    budget = data.draw(st.integers(0, words(context.code)))
    try:
        cut = touched(source, lines, budget=budget, count_tokens=words)
    except ContextTooLarge:
        return
    ast.parse(cut.code)
    assert words(cut.code) <= budget and lines <= set(cut.lines)


@cache
def executable_lines(source: str) -> list[int]:
    found, pending = set(), [compile(source, "m", "exec", dont_inherit=True)]
    while pending:
        code = pending.pop()
        found |= {line for _, _, line in code.co_lines() if line}
        pending += [constant for constant in code.co_consts if hasattr(constant, "co_code")]
    return sorted(found)


@given(st.sampled_from(range(40)))
def test_the_whole_file_is_the_file(number: int) -> None:
    source = source_of(modules()[number])
    context = whole_file(source)
    assert context == Context(source, tuple(range(1, len(context.lines) + 1)))
    assert touched(source, context.lines).lines[-1] <= len(context.lines)


SOURCE = '''\
"""Says what this is."""
from __future__ import annotations
import os, sys
from math import pi

# The factor.
SCALE = 2; OTHER = 3
UNUSED = 4

TABLE = {}
TABLE["a"] = UNUSED

def unused():
    return os.name

# Doubles.
@staticmethod  # not really
def scaled(x):
    y = x * SCALE
    return y

class Base:
    """Docs."""
    unit = pi

    def area(self):
        return self.unit

    def other(self):
        return unused()

class Circle(Base):

    # What it is called.
    name = "c"

    def size(self, r):
        return scaled(r) * self.area()

    def never(self):
        return TABLE

def entry(r):
    return Circle().size(r)
'''


def lines_with(*texts: str) -> list[int]:
    return [n for n, line in enumerate(SOURCE.split("\n"), 1) if any(text in line for text in texts)]


def test_touched_parts() -> None:
    context = touched(SOURCE, lines_with("return scaled(r)"))
    assert (
        context.code
        == """\
from __future__ import annotations
from math import pi

# The factor.
SCALE = 2; OTHER = 3

# Doubles.
@staticmethod  # not really
def scaled(x):
    y = x * SCALE
    return y

class Base:
    unit = pi

    def area(self):
        return self.unit

class Circle(Base):

    # What it is called.
    name = "c"

    def size(self, r):
        return scaled(r) * self.area()
"""
    )


@pytest.mark.parametrize(
    ("budget", "left_out"),
    [
        (1000, []),
        (52, ["from math import pi"]),  # which only Base.unit leads to
        (46, ["from math import pi", "SCALE = 2"]),  # at distance 2 the later ones go first, ...
    ],
)
def test_the_most_distant_parts_are_dropped_first(budget: int, left_out: list[str]) -> None:
    whole = touched(SOURCE, lines_with("return scaled(r)"))
    context = touched(SOURCE, lines_with("return scaled(r)"), budget=budget, count_tokens=words)
    gone = set(whole.code.split("\n")) - set(context.code.split("\n"))
    assert {text for text in ["from math import pi", "SCALE = 2", "def scaled"] if any(text in g for g in gone)} == set(
        left_out
    )


def test_executed_code_is_never_left_out() -> None:
    with pytest.raises(ContextTooLarge, match="the budget is 5"):
        touched(SOURCE, lines_with("return scaled(r)"), budget=5, count_tokens=words)
    context = touched(SOURCE, lines_with("y = x"), budget=22, count_tokens=words)
    assert "def scaled" in context.code and "SCALE = 2" not in context.code


def test_a_name_that_is_changed_later_brings_the_change() -> None:
    code = touched(SOURCE, lines_with("return TABLE")).code
    assert "TABLE = {}" in code and 'TABLE["a"] = UNUSED' in code and "UNUSED = 4" in code


def test_marks_and_bad_input() -> None:
    context = touched(SOURCE, lines_with("y = x"))
    entry = lines_with("def scaled")[0]
    assert f"def scaled(x):{MARK}\n" in context.marked(entry)
    with pytest.raises(ValueError, match="does not contain line 1 "):
        context.marked(1)
    with pytest.raises(ValueError, match="line 100 is out of range for a file of"):
        touched(SOURCE, [100])
    with pytest.raises(ValueError, match="needs count_tokens"):
        touched(SOURCE, [1], budget=3)
    with pytest.raises(SyntaxError):
        touched("def", [1])
    assert touched(SOURCE, []) == Context("", ())


def test_the_file_of_a_decorated_function_with_marks_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "own_marks.py"
    path.write_text(
        f"def skip():{MARK}\n    pass\n\ndef keep(function):\n    return function\n\n@keep\ndef f(n):\n    return n\n"
    )
    names: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    cut = narrow(cwm.record(names["f"], 1))
    assert cut.context == f"def keep(function):\n    return function\n\n@keep\ndef f(n):{MARK}\n    return n\n"


def test_long_expressions() -> None:
    source = "a = 1\nb = " + " + ".join(["a"] * 900) + "\ndef f():\n    return b\n"
    assert touched(source, [4]).code == source


def test_random_order_of_lines_makes_no_difference() -> None:
    source = source_of(modules()[len(modules()) // 2])
    lines = executable_lines(source)[:40]
    shuffled = random.Random(1).sample(lines, len(lines))
    assert touched(source, lines) == touched(source, shuffled)


@pytest.mark.parametrize("limit", [None, 4])
def test_another_context_changes_nothing_else(limit: int | None) -> None:
    recorder = cwm.Recorder(max_frames=limit, capture_output=True)
    trace = recorder.record_source("def f():\n    print(1)\n    return [2]\n", "f()")
    other = trace.with_context("é\n")
    assert other.context == "é\n" and other != trace and other.with_context(trace.context) == trace
    assert (other.result, other.truncated, other.output) == (trace.result, trace.truncated, trace.output)
    assert cwm.Trace.from_bytes(other.to_bytes()) == other


@pytest.mark.parametrize(
    "before",
    [
        "",
        "x = 1\n",
        "class A:\n    y = 2\n    def m(self):\n        return x\n\n",
        "@staticmethod\n",
        "if x:\n    pass\n# end\n",
    ],
)
def test_a_call_behind_a_file_is_parsed_as_with_it(before):
    lines = [*before.splitlines(keepends=True), "def main():\n", "    return [A(y) for z in x]\n"]
    body, functions = context._parsed(lines)
    whole, whole_functions = context._parsed_file("".join(lines))
    dump = lambda nodes: [ast.dump(node, include_attributes=True) for node in nodes]  # noqa: E731
    assert dump(body) == dump(whole) and functions == whole_functions


@pytest.mark.parametrize("before", ['"""\n', "x = (\n", "x = \\\n"])
def test_code_that_continues_after_a_call_is_reported(before):
    with pytest.raises(SyntaxError):
        context._parsed([before, "def main():\n", "    return 1\n"])
