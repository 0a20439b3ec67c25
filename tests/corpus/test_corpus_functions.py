"""Functions are found without running anything, explored in the sandbox, and only their best calls are kept."""

import json
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from cwm_core import machines, record_source
from cwm_core.corpus.functions.choice import RAISING_SHARE, choose
from cwm_core.corpus.functions.coverage import ENTERED, RAISED, RETURNED, CallCoverage, call_coverage
from cwm_core.corpus.functions.discovery import find_functions
from cwm_core.corpus.functions.explore import explore, explore_all, units
from cwm_core.corpus.functions.sources import read_sources
from cwm_core.corpus.sandbox import RecordingSandbox, Run
from hypothesis import given
from hypothesis import strategies as st

SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"

PART = '''
"""A module that must not be imported by whoever looks at it."""
import sys
import typing
from contextlib import contextmanager
from . import SCALE
assert "pytest" not in sys.modules

def classify(n):
    if n < 0:
        raise ValueError("negative")
    if n == 1234567:
        return "magic"
    kind = "even" if n % 2 == 0 else "odd"
    while n > 100:
        n //= 10
    return kind

def parse(text: str, sep: str = ","):
    """
    >>> parse("a,b")
    ['a', 'b']
    """
    parts = text.split(sep)
    if len(parts) > 2 and parts[1] == "stop":
        return None
    return [p for p in parts if p]

def endless(start: int):
    while True:
        yield start
        start += 1

async def later(x: int) -> int:
    return x * SCALE

@contextmanager
def opened(name: str):
    yield name

def hangs(x):
    for _ in iter(int, 1):
        x = x

class Stack:
    def __init__(self, items: list[int]):
        self.items = list(items)
        if len(self.items) > 3:
            raise OverflowError

    def pop(self, default=None):
        if not self.items:
            return default
        return self.items.pop()

    @property
    def top(self):
        return self.items[-1]

    @classmethod
    def of(cls, *items):
        return cls(items)

    @staticmethod
    def limit():
        return 3

    def __len__(self):
        return len(self.items)

    def __del__(self):
        print("gone")

    def _todo(self):
        raise NotImplementedError

def test_me():
    pass

def main():
    return 1

@typing.overload
def empty(x: int) -> int: ...

def empty(x):
    """Nothing."""

async def stream():
    yield 1
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("installed")
    folder = root / "pack"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text("SCALE = 3\n")
    (folder / "part.py").write_text(PART)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "refuses.py").write_text("1 / 0\n\ndef f(x):\n    return x\n")
    test = "from pack.part import classify\n\ndef test_it():\n    n = 1234567\n    assert classify(n) == 'magic'\n"
    (folder / "tests" / "test_part.py").write_text(test)
    info = root / "pack_dist-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: pack-dist\nVersion: 1.2\nLicense-Expression: MIT\n")
    (info / "RECORD").write_text("pack/__init__.py,,\npack/part.py,,\n")
    return root


@pytest.fixture(scope="module")
def found(package):
    return find_functions("pack", paths=[str(package)])


@pytest.fixture(scope="module")
def explored(found):
    return {one.function.qualname: one for one in explore_all(found.functions, sandbox=SANDBOX, budget=80)}


def test_functions_are_found_and_others_skipped(package, found):
    kinds = {f.qualname: f.kind for f in found.functions if f.module == "pack.part"}
    assert kinds == {
        "classify": "function", "parse": "function", "endless": "function", "later": "function",
        "opened": "function", "hangs": "function", "Stack.__init__": "constructor", "Stack.pop": "method",
        "Stack.top": "property", "Stack.of": "class method", "Stack.limit": "static method", "Stack.__len__": "method",
    }  # fmt: skip
    assert found.skipped == {
        "does not parse": 1, "special method": 1, "abstract": 1, "test": 2, "command line": 1, "overload": 1,
        "empty": 1, "asynchronous generator": 1,
    }  # fmt: skip
    classify = next(f for f in found.functions if f.qualname == "classify")
    assert classify.examples == ("classify(1234567)",)
    assert classify.id == "pack-dist:pack.part:classify"
    assert classify.provenance == {
        "source": "functions", "package": "pack-dist", "version": "1.2", "license": "MIT", "module": "pack.part",
        "path": "pack/part.py", "qualname": "classify",
    }  # fmt: skip
    assert not any(name.startswith("pack") for name in sys.modules if name.split(".")[0] == "pack")
    from_folder = find_functions(package / "pack").functions
    assert [f.id for f in from_folder] == [f.id for f in found.functions]
    [*alone] = find_functions(package / "pack" / "part.py").functions
    assert {f.module for f in alone} == {"pack.part"}


def test_invalid_sources_are_refused(tmp_path):
    for source in ("no_such_package", tmp_path / "absent.py", "_ctypes", "../x"):
        with pytest.raises(FileNotFoundError):
            find_functions(source)
    (tmp_path / "bad.jsonl").write_text('{"code": "x = 1"}\n{"text": 1}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: not a snippet"):
        find_functions(tmp_path / "bad.jsonl")


def lines_of(qualname):
    lines = PART.splitlines()
    first = next(i for i, line in enumerate(lines) if f"def {qualname.rpartition('.')[2]}(" in line)
    end = next(i for i in range(first + 1, len(lines)) if not lines[i].startswith((" " * 8, " " * 4)) or not lines[i])
    return {i + 1 for i in range(first + 1, end)}


def test_inputs_reach_every_line(explored):
    for name in ("classify", "Stack.__init__", "Stack.pop"):
        lines = {line for reached in explored[name].chosen.values() for line in reached.lines}
        assert lines == lines_of(name), name
    assert any(reached.raised for reached in explored["classify"].chosen.values())
    assert "classify(1234567)" in explored["classify"].chosen


def test_chosen_calls_reach_everything_that_was_reached(explored):
    for one in explored.values():
        returning = [r for r in one.tried.values() if not r.raised]
        if 0 < len(one.chosen) < 4:
            chosen = {step for r in one.chosen.values() for step in r.steps}
            assert chosen >= {step for r in returning for step in r.steps}, one.function.id


def test_every_kind_of_function_runs_to_its_end(explored):
    kept = {name for name, one in explored.items() if any(not r.raised for r in one.chosen.values())}
    assert kept == {name for name in explored if name not in ("f", "hangs")}
    assert all("zip(" in call for call in explored["endless"].chosen)
    assert explored["f"].outcomes == {"cannot be imported": 1}
    assert explored["f"].unit is None


def test_calls_that_do_not_end_are_cut_by_frames(explored):
    assert set(explored["hangs"].outcomes) == {"cut: max_frames"}
    assert explored["hangs"].unit is None


def test_exploring_again_gives_the_same(found, explored):
    some = [f for f in found.functions if f.qualname in ("classify", "Stack.pop", "parse")]
    for again in explore_all(reversed(some), sandbox=SANDBOX, budget=80):
        before = explored[again.function.qualname]
        assert again.unit == before.unit
        assert list(again.tried.items()) == list(before.tried.items())
    [other] = explore_all(some[:1], sandbox=SANDBOX, budget=80, seed=1)
    assert list(other.tried) != list(explored["classify"].tried)
    assert other.unit.provenance["seed"] == 1


def test_units_of_snippets(tmp_path):
    rows = [
        {"code": "def f(xs, n):\n    if n in xs:\n        return 'yes'\n    return 'no'\n", "input": "[7, 8], 8"},
        {"code": "def g(d):\n    return d['k']\n", "call": "g({'k': 1})", "license": "MIT", "id": "second"},
    ]
    path = tmp_path / "snippets.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = units(path, sandbox=SANDBOX, budget=40)
    assert first.module is None and first.id == "snippets.jsonl:1:f"
    assert "f([7, 8], 8)" in first.calls and len(first.calls) >= 2
    assert second.calls[0] == "g({'k': 1})" and second.provenance["license"] == "MIT"
    with RecordingSandbox(sandbox=SANDBOX) as worker:
        for call, answer in zip(first.calls, worker.run(Run(first.code, c) for c in first.calls), strict=True):
            assert answer.trace == record_source(first.code, call)


def test_a_model_is_asked_too(found):
    function = next(f for f in found.functions if f.qualname == "parse")
    asked = []

    def generate(messages):
        asked.append(messages)
        return "parse('a,stop,b')\nparse(__import__('os').abort())"

    with RecordingSandbox(sandbox=SANDBOX, paths=function.paths, preload=function.module) as worker:
        one = explore(function, worker, budget=30, generate=generate)
    assert len(asked) == 1
    assert "parse('a,stop,b')" in one.chosen
    assert one.outcomes["ended by signal 6"] == 1


def test_steps_of_a_trace():
    code = "def f(n):\n    for i in range(n):\n        if i:\n            raise ValueError(i)\n    return n\n"
    [function] = _functions(code)
    assert call_coverage(function, record_source(code, "f(0)")) == CallCoverage(
        frozenset({(ENTERED, 2), (2, 5), (5, RETURNED)}), 7, False
    )
    assert call_coverage(function, record_source(code, "f(2)")).steps == {
        (ENTERED, 2),
        (2, 3),
        (3, 2),
        (3, 4),
        (4, RAISED),
    }
    assert call_coverage(function, record_source(code, "f(None)")).steps == {(ENTERED, 2)}
    assert call_coverage(function, record_source(code, "len([])")) is None


def _functions(code):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.jsonl")
        path.write_text(json.dumps({"code": textwrap.dedent(code)}))
        return find_functions(path).functions


calls = st.dictionaries(
    st.text("abc", min_size=1),
    st.builds(
        CallCoverage, st.frozensets(st.tuples(st.integers(1, 5), st.integers(1, 5))), st.integers(1, 9), st.booleans()
    ),
    max_size=12,
)


@given(calls, st.integers(1, 12))
def test_chosen_calls(tried, most):
    chosen = choose(tried, most)
    assert len(chosen) == len(set(chosen)) <= most
    seen = set()
    for call in chosen:
        assert tried[call].steps - seen
        seen |= tried[call].steps
    raising = [call for call in chosen if tried[call].raised]
    assert chosen == [call for call in chosen if call not in raising] + raising
    assert len(raising) <= max(1, len(chosen) * RAISING_SHARE + 1)
    if most >= 12:
        reachable = {step for r in tried.values() if not r.raised for step in r.steps}
        assert {step for call in chosen if call not in raising for step in tried[call].steps} == reachable


def test_the_shorter_trace_of_equals():
    same = frozenset({(1, 2)})
    assert choose({"f(1)": CallCoverage(same, 9, False), "f(22)": CallCoverage(same, 5, False)}, 5) == ["f(22)"]
    assert choose({"f(22)": CallCoverage(same, 5, False), "f(1)": CallCoverage(same, 5, False)}, 5) == ["f(22)"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("python-dateutil", "dateutil"),
        ("Markdown_It.py", "markdown_it"),
        ("license-expression", "license_expression"),
    ],
)
def test_packages_are_found_by_their_distribution_name(name, module):
    pytest.importorskip(module)
    found = {source.name.partition(".")[0] for source in read_sources(name)}
    assert found == {module}


def test_a_missing_package_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"no-such-package: expected a file, a folder, or the name of an installed package"
    ):
        read_sources("no-such-package")
