"""Comprehensions in the bodies of modules and classes, whose variables each version of CPython shows in its own way."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import cwm_core as cwm
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

VERSION = min(sys.version_info[:2], (3, 13))  # later versions show the same


def states(trace: cwm.Trace, line: str) -> list[dict[str, str]]:
    """The variables at each LINE frame of this line."""
    found = [(index, frame) for index, frame in enumerate(trace.frames) if frame.event == "line"]
    return [trace.state(index) for index, frame in found if frame.line.strip() == line]


def of_module(path: Path, code: str) -> cwm.Trace:
    """The trace of a script, which equals the oracle's."""
    path.write_text(textwrap.dedent(code))
    trace = cwm.Recorder().record_file(path)
    expected = oracle.record_module(str(path))
    for index, (ours, theirs) in enumerate(zip(trace.frames, expected, strict=False)):
        assert oracle.OracleFrame(ours.event, ours.locals, ours.line, ours.arg) == theirs, f"frame {index}"
    assert len(trace) == len(expected)
    return trace


def test_in_a_module(tmp_path: Path) -> None:
    trace = of_module(tmp_path / "script.py", "n = 3\nxs = [i * n for i in range(2)]\n")
    shown = states(trace, "xs = [i * n for i in range(2)]")
    assert (
        shown
        == {
            # A function of its own, whose iterator is its argument.
            (3, 11): [
                {"n": "3"},
                {".0": "<range_iterator object>"},
                {".0": "<range_iterator object>", "i": "0"},
                {".0": "<range_iterator object>", "i": "1"},
            ],
            (3, 12): [{"n": "3"}, {"n": "3", "i": "0"}, {"n": "3", "i": "1"}],
            (3, 13): [{"n": "3"}, {"i": "0"}, {"i": "1"}],
        }[VERSION]
    )


def test_a_name_that_the_module_has(tmp_path: Path) -> None:
    """The comprehension's variable stands in for the module's, at its place, and then that one is there again."""
    code = "i = 'outer'\nn = 1\ni = 'changed'\nxs = [i for i in [7]]\nlast = i\n"
    trace = of_module(tmp_path / "script.py", code)
    within = states(trace, "xs = [i for i in [7]]")[-1]
    assert (
        list(within.items())
        == {
            (3, 11): [(".0", within.get(".0")), ("i", "7")],
            (3, 12): [("i", "7"), ("n", "1")],
            (3, 13): [("i", "7")],
        }[VERSION]
    )
    assert states(trace, "last = i") == [{"i": "'changed'", "n": "1", "xs": "[7]"}]


def test_in_a_class() -> None:
    code = """
    def f(n):
        class C:
            a = 2
            b = [(k, n) for k in range(1)]
            c = {k: v for k, v in [(1, n)]}
        return C.c
    """
    trace = cwm.record_source(textwrap.dedent(code), "f(7)")
    if VERSION > (3, 11):
        assert states(trace, "b = [(k, n) for k in range(1)]")[1:] == [
            {"a": "2", "k": "0"} if VERSION == (3, 12) else {"k": "0", "n": "7"}
        ]
        [within] = states(trace, "c = {k: v for k, v in [(1, n)]}")[1:]
        assert within == ({"a": "2", "b": "[(0, 7)]", "k": "1", "v": "7"} if VERSION == (3, 12) else
                          {"k": "1", "v": "7", "n": "7"})  # fmt: skip
    assert states(trace, "return C.c") == [{"n": "7", "C": "<class '__main__.f.<locals>.C'>"}]
    assert trace.result == "{1: 7}"


SOURCES = {
    "nested": "xs = [[(i, j) for j in range(i)] for i in range(3)]\n",
    "of each kind": "a = [x for x in [1]]\nb = {x for x in [1]}\nc = {x: y for x, y in [(1, 2)]}\n",
    "a generator": "d = list(x for x in [1])\n",
    "names with underscores": "a = [__x for __x in [1]]\nb = [_x for _x in [1]]\nc = [__x__ for __x__ in [1]]\n",
    "over lines": "a = [\n    i\n    for i in range(2)\n    if i\n]\n",
    "captured": "a = [lambda: i for i in range(2)]\nb = [f() for f in a]\n",
    "one that raises": "try:\n    a = [1 // i for i in [1, 0]]\nexcept ZeroDivisionError as error:\n    b = 1\nc = 2\n",
    "one that deletes": "i = 5\na = [globals().pop('i', i) for i in [1]]\nb = 2\n",
    "a class in a module": "n = 3\nclass C:\n    n = 4\n    a = [n for _ in [1]]\n    b = [n for n in [1]]\nd = C.a\n",
    "super in a class": """
class C:
    def method(self):
        return __class__
    a: int = 1
    b = [i for i in [1]]
    c = [(lambda: j) for j in [2]]
d = C().method()
""",
}


@pytest.mark.parametrize("name", SOURCES)
def test_modules_equal_the_oracle(tmp_path: Path, name: str) -> None:
    of_module(tmp_path / "script.py", SOURCES[name])


def within_a_function(body: str) -> str:
    return "def f(a, b):\n    class C:\n" + textwrap.indent(body, " " * 8) + "    return 1\n"


def assert_class_equals_the_oracle(body: str) -> None:
    code = within_a_function(body)
    expected = oracle.record_source(code, "f([1, 2], 3)")
    trace = cwm.record_source(code, "f([1, 2], 3)")
    assert [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in trace.frames] == expected


@pytest.mark.parametrize("name", SOURCES)
def test_classes_equal_the_oracle(name: str) -> None:
    assert_class_equals_the_oracle(SOURCES[name])


def test_a_free_variable_with_two_slots() -> None:
    """The second comprehension reads `a` of the function, the first one has an `a` of its own, in another slot."""
    assert_class_equals_the_oracle("p = [a for a in [5]]\nq = [(w, a) for w in [6]]\n")
    code = within_a_function("p = [a for a in [5]]\nq = [(w, a) for w in [6]]\n")
    within = states(cwm.record_source(code, "f(1, 2)"), "q = [(w, a) for w in [6]]")[-1]
    assert (
        list(within.items())
        == {
            (3, 11): [(".0", within.get(".0")), ("a", "1"), ("w", "6")],
            (3, 12): [("p", "[5]"), ("w", "6")],
            (3, 13): [("w", "6"), ("a", "1")],
        }[VERSION]
    )


names = st.sampled_from("abcd")
# None captures its variable: 3.13.0 itself crashes in f_locals where another one has a variable of that name.
comprehensions = st.builds(
    lambda kind, v, w, x, y, z: {
        "list": f"[({x}, {y}) for {v} in [1, 2]]",
        "nested": f"[({v}, {w}, {x}) for {v} in [1, 2] for {w} in [{v}, {y}]]",
        "inner": f"[[({w}, {x}) for {w} in [{v}]] for {v} in [{y}, {z}]]",
        "dict": f"{{{v}: {x} for {v} in [1, 2]}}",
    }[kind],
    st.sampled_from(["list", "nested", "inner", "dict"]),
    names,
    names,
    names,
    names,
    names,
)
statements = st.builds("{} = {}".format, names, comprehensions | st.sampled_from(["0", "'s'"])) | names.map(
    "del {}".format
)
bodies = st.lists(statements, min_size=1, max_size=8).map(lambda lines: "".join(line + "\n" for line in lines))


@given(bodies)
def test_random_classes_equal_the_oracle(body: str) -> None:
    assert_class_equals_the_oracle(body)


@given(bodies)
def test_random_modules_equal_the_oracle(tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    path = tmp_path_factory.mktemp("modules") / "script.py"
    of_module(path, "a, b, c = 1, 2, 3\n" + body)
