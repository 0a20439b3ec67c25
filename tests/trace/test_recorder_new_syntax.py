"""What CPython 3.14 and 3.15 brought: deferred annotations, template strings, lazy imports, a JIT, other bytecode."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cwm_core as cwm
import oracle
import pytest

SOURCES = {
    # name: (first version, code, call, result)
    "annotations of a function": (
        (3, 14),
        """
        def f(a: Later, b: [x for x in (1, 2)]) -> Later:
            c: Missing = a
            return c
        class Later:
            pass
        """,
        "f(1, 2), sorted(map(str, f.__annotations__))",
        "(1, ['a', 'b', 'return'])",
    ),
    "annotations of a class": (
        (3, 14),
        """
        def f(kind):
            class Point:
                x: kind
                y: Later = 2
                if kind:
                    z: int
                __private: str
            class Later:
                pass
            return [*Point.__annotations__, Point.y]
        """,
        "f(float)",
        "['x', 'y', 'z', '_Point__private', 2]",
    ),
    "annotations that raise": (
        (3, 14),
        """
        import annotationlib
        def g(a: missing.name, b: int): ...
        def f():
            try:
                g.__annotations__
            except NameError as error:
                kept = error
            return list(annotationlib.get_annotations(g, format=annotationlib.Format.STRING).values())
        """,
        "f()",
        "['missing.name', 'int']",
    ),
    "a dataclass": (
        (3, 14),
        """
        from dataclasses import dataclass
        @dataclass
        class Node:
            value: int
            next: Node | None = None
        def f(n):
            node = None
            for i in range(n):
                node = Node(i, node)
            return node
        """,
        "f(2)",
        "Node(value=1, next=Node(value=0, next=None))",
    ),
    "template strings": (
        (3, 14),
        """
        def f(name, width):
            template = t"hello {name!r:>{width}} and {len(name)=}"
            parts = [getattr(part, "expression", part) for part in template]
            joined = template + t"{width}"
            values = [value for value in joined.values]
            return parts, values
        """,
        "f('you', 9)",
        "(['hello ', 'name', ' and len(name)=', 'len(name)'], ['you', 3, 9])",
    ),
    "except without parentheses": (
        (3, 14),
        """
        def f(n):
            try:
                return [1, 2][n] / (n - 1)
            except IndexError, ZeroDivisionError:
                return n
        """,
        "f(1), f(2)",
        "(1, 2)",
    ),
    "return in finally": (
        (3, 11),
        """
        def f(n):
            for i in range(n):
                try:
                    1 / i
                except ZeroDivisionError as error:
                    caught = error
                    raise
                finally:
                    if i < 2:
                        continue
                    return i
        """,
        "f(4)",
        "2",
    ),
    "comprehensions in a function": (
        (3, 11),
        """
        def f(x):
            outer = [x for x in range(x)]
            calls = [lambda: y for y in outer]
            nested = {a: {b for b in range(a)} for a in outer}
            return x, [call() for call in calls], nested
        """,
        "f(3)",
        "(3, [2, 2, 2], {0: set(), 1: {0}, 2: {0, 1}})",
    ),
    "borrowed references": (
        (3, 11),
        """
        def f(items):
            kept = items
            del items
            for kept in (kept, [kept]):
                kept, other = [*kept, 1], kept
            with memoryview(bytes(3)) as kept:
                other = other and kept[0]
            return kept.nbytes if other else other
        """,
        "f([()])",
        "0",
    ),
    "unpacking in comprehensions": (
        (3, 15),
        """
        def f(rows):
            flat = [*row for row in rows]
            table = {**{x: y} for x, *y in rows}
            return flat, table, list((*row for row in rows))
        """,
        "f([(1, 2), (3,)])",
        "([1, 2, 3], {1: [2], 3: []}, [1, 2, 3])",
    ),
    "a frozendict": (
        (3, 15),
        """
        def f(n):
            table = frozendict(a=[n])
            table["a"].append(table)
            table |= {n: n}
            return table[n]
        """,
        "f(7)",
        "7",
    ),
    "lazy imports": (
        (3, 15),
        """
        lazy import colorsys
        lazy from fractions import Fraction as F
        def f(n):
            half = F(n, 2)
            return half, colorsys.__name__
        """,
        "f(1)",
        "(Fraction(1, 2), 'colorsys')",
    ),
}


def written(trace: cwm.Trace) -> list[oracle.OracleFrame]:
    return [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in trace.frames]


def code_of(name: str) -> str:
    since, code, _, _ = SOURCES[name]
    if sys.version_info < since:
        pytest.skip(f"new in {since[0]}.{since[1]}")
    return textwrap.dedent(code)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", SOURCES)
def test_frames_equal_the_oracle(name: str) -> None:
    code, call, result = code_of(name), SOURCES[name][2], SOURCES[name][3]
    trace = cwm.record_source(code, call)
    assert trace.result == result
    assert written(trace) == oracle.record_source(code, call)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", SOURCES)
def test_modules_equal_the_oracle(name: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(f"{code_of(name)}result = {SOURCES[name][2]}\n")
    assert written(cwm.Recorder().record_file(path)) == oracle.record_module(str(path))


def test_warnings_of_the_compiler_are_given_as_often_as_python_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("def f():\n    try:\n        return 1\n    finally:\n        return 2\nf()\n")

    def given(*command: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
        )
        return [line for line in done.stderr.splitlines() if "SyntaxWarning" in line]

    plain = given(str(path))
    assert len(plain) == (sys.version_info >= (3, 14))
    assert given("-m", "cwm_core", "record", str(path), "-o", os.devnull) == plain


def test_a_lazy_import_is_not_resolved_by_its_recording(tmp_path: Path) -> None:
    if sys.version_info < (3, 15):
        pytest.skip("new in 3.15")
    path = tmp_path / "script.py"
    path.write_text("import sys\nlazy import colorsys\na = 'colorsys' in sys.modules\nb = colorsys.ONE_THIRD\n")
    sys.modules.pop("colorsys", None)
    trace = cwm.Recorder().record_file(path)
    [before, after] = [trace.state(i) for i, f in enumerate(trace.frames) if f.event == "line"][-2:]
    assert (before["colorsys"], after["a"]) == ("<lazy_import 'colorsys'>", "False")


JIT = """
import sys
import cwm_core as cwm, oracle

def work(n, xs):
    total = 0
    for i in range(n):
        total += i & 3
        xs[i % 3] = total if i % 2 else [total, i]
    return total

assert sys._jit.is_enabled()
for _ in range(300):
    work(200, [0] * 3)  # hot, so that it is compiled
expected = oracle.record(work, 100, [0] * 3)
for _ in range(300):
    work(200, [0] * 3)
trace = cwm.record(work, 100, [0] * 3)
assert [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in trace.frames] == expected
print(len(trace), work(100, [0] * 3))
"""


def test_compiled_code_is_recorded_too(tmp_path: Path) -> None:
    if not (sys.version_info >= (3, 14) and sys._jit.is_available()):
        pytest.skip("this interpreter has no JIT")
    path = tmp_path / "jit.py"
    path.write_text(JIT)
    places = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHON_JIT": "1", "PYTHONPATH": places}
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.stdout.split() == ["305", "150"], done.stderr
