"""`pytest --cwm-record`: what it records of a suite, and that the suite does not notice."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import cwm_core as cwm
import pytest
from cwm_core._native import Recording
from cwm_core.trace import finish
from cwm_core.trace.calls import CallSample, priority
from hypothesis import given
from hypothesis import strategies as st

CORE = """
import threading

class Point:
    def __init__(self, x):
        self.x = x

def total(xs):
    result = 0
    for x in xs:
        result += x
    return result

def outer(n):
    return inner(n) + 1

def inner(n):
    return n * 2

def squares(n):
    for i in range(n):
        yield i * i

def fails(x):
    raise ValueError(x)

def swallows():
    try:
        fails(1)
    except ValueError:
        return None

def deep(n):
    return 0 if n == 0 else 1 + deep(n - 1)

def swallows_everything(n):
    done = 0
    for _ in range(n):
        try:
            done += 1
        except BaseException:
            pass
    return done

def shouts(text):
    print(text.upper())

async def later(x):
    return x + 1

def in_thread(function, *args):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join()
    return found[0]
"""

# Whatever pytest knows of an outcome, and ways to stumble over a recorder.
SUITE = """
import asyncio, builtins, os, sys, time, unittest, warnings
import pytest
from pack import core
from pack.core import *

def test_passes():
    assert total([1, 2]) == 3

def test_fails():
    assert total([1, 2]) == 4

def test_raises():
    outer("a" if fails("b") else 1)

@pytest.mark.skip(reason="why not")
def test_skipped():
    total([])

def test_skips_within():
    total([])
    pytest.skip("half way")

@pytest.mark.xfail(raises=ValueError)
def test_xfails():
    fails(1)

@pytest.mark.xfail
def test_xpasses():
    total([])

@pytest.fixture
def broken():
    raise RuntimeError("broken fixture")

def test_error_in_setup(broken):
    pass

@pytest.fixture
def breaks_later():
    yield
    fails("teardown")

def test_error_in_teardown(breaks_later):
    total([1])

@pytest.mark.parametrize("n", range(4))
def test_parametrized(n):
    assert total(range(n)) < 3

def test_recursion():
    with pytest.raises(RecursionError):
        deep(10**6)
    assert deep(100) == 100

def test_long_loops():
    assert swallows_everything(30_000) == 30_000
    assert total(range(30_000)) == sum(range(30_000))

def test_warns():
    warnings.warn("mind the gap")
    assert list(squares(3)) == [0, 1, 4]

def test_output(capsys):
    shouts("loud")
    assert capsys.readouterr().out == "LOUD\\n"
    shouts("kept")
    print("err", file=sys.stderr)
    assert total([]) == 1

def test_monkeypatched(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("called")
    for module, name in ((builtins, "open"), (os, "stat"), (time, "time"), (time, "monotonic"), (os, "getpid")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(core, "inner", lambda n: 40)
    assert outer(1) == 41

def test_threads():
    assert in_thread(total, range(10)) == 45

def test_async():
    async def main():
        return await asyncio.gather(later(1), later(2))
    assert asyncio.run(main()) == [2, 3]

def test_generators_interleave():
    assert list(zip(squares(3), squares(3))) == [(0, 0), (1, 1), (4, 4)]
    generator = squares(5)
    next(generator)
    generator.close()

def test_own_tracer():
    events = []
    sys.settrace(lambda frame, event, arg: events.append(event))
    total([1])
    sys.settrace(None)
    assert "call" in events

def test_leaves_a_tracer():
    def tracer(frame, event, arg):
        pass
    tracer.mine = True
    sys.settrace(tracer)

def test_finds_it():
    assert sys.gettrace().mine
    sys.settrace(None)

def test_puts_the_tracer_back():
    old = sys.gettrace()
    sys.settrace(lambda *event: None)
    total([1])
    sys.settrace(old)
    assert outer(3) == 7

class Saved:
    tracer = None

def test_keeps_the_tracer():
    Saved.tracer = sys.gettrace()

@pytest.fixture
def restores():
    yield
    sys.settrace(Saved.tracer)

def test_restores_it_later(restores):
    pass

def test_is_not_traced_before(request):
    assert outer(0) == 1

def test_forks():
    child = os.fork()
    if child == 0:
        outer(1)
        os._exit(total([3]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3

class Case(unittest.TestCase):
    def setUp(self):
        self.value = total([1])

    def test_method(self):
        self.assertEqual(self.value, 2)

    def test_subtest(self):
        for n in range(3):
            with self.subTest(n=n):
                self.assertLess(inner(n), 9)

def test_repr_that_fails():
    class Odd:
        def __repr__(self):
            raise KeyError
        def __radd__(self, other):
            return other
    assert total([Odd()]) == 0

def test_hash_of_state():
    assert total(Point(n).x for n in range(3)) == 3
"""

# Tells everything about each report but times.
TELL = """
import json, re
def pytest_configure(config):
    config.told = []
def pytest_runtest_logreport(report):
    longrepr = re.sub(r"0x[0-9a-f]+|\\[gw\\d\\]", "", report.longreprtext)
    TOLD.append([report.nodeid, report.when, report.outcome, longrepr, report.sections, hasattr(report, "wasxfail")])
def pytest_warning_recorded(warning_message, when, nodeid, location):
    TOLD.append(["warning", str(warning_message.message), when, nodeid])
def pytest_sessionfinish(session, exitstatus):
    if not hasattr(session.config, "workerinput"):
        with open("told.json", "w") as file:
            json.dump([int(exitstatus), TOLD], file)
TOLD = []
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "pack").mkdir()
    (root / "pack" / "__init__.py").write_text("")
    (root / "pack" / "core.py").write_text(CORE)
    (root / "tests").mkdir()
    (root / "tests" / "test_core.py").write_text(SUITE)
    (root / "tell.py").write_text(TELL)
    (root / "pytest.ini").write_text("[pytest]\naddopts = -p tell -p no:cacheprovider\n")
    return root


def run(root, *arguments, plugins=()):
    """The output of pytest and what `tell` says."""
    env = os.environ | {"PYTHONHASHSEED": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "100"}
    env.pop("PYTEST_ADDOPTS", None)
    loaded = [argument for name in ("cwm_core.trace.pytest_plugin", *plugins) for argument in ("-p", name)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *loaded, *arguments],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    output = re.sub(r"in \d+\.\d+s|0x[0-9a-f]+|\d+\.\d+s (call|setup|teardown)", "", done.stdout + done.stderr)
    told = root / "told.json"
    return output, json.loads(told.read_text()) if told.exists() else None


def recorded(root, name, *arguments, **options):
    """The same with a recording in the folder of this name."""
    return run(root, "--cwm-record", name, *arguments, **options)


def without_line(output):
    return "".join(line for line in output.splitlines(keepends=True) if not line.startswith("cwm: "))


@pytest.fixture(scope="module")
def plain(project):
    return run(project, "-rA")


@pytest.fixture(scope="module")
def store(project, plain):
    """The recording of the suite, which also must not have changed anything."""
    output, told = recorded(project, "first", "-rA", "--cwm-max-frames", "500", "--cwm-per-site", "2")
    assert told == plain[1]
    assert without_line(output) == plain[0]
    assert re.search(r"^cwm: \d+ traces in .*first/main.cwmtraces; 1 tests not recorded", output, re.MULTILINE)
    return cwm.TraceReader(project / "first" / "main.cwmtraces")


def entries(store, **wanted):
    """Traces by what their metadata say."""
    return [e.trace for e in store.entries() if wanted.items() <= e.metadata.items()]


def of(store, test, function):
    return entries(store, test=f"tests/test_core.py::{test}", function=f"pack.core:{function}")


def test_the_outcome_is_unchanged(plain, store):
    exit_status, told = plain[1]
    assert exit_status == 1
    outcomes = Counter(outcome for _, _, outcome, *_ in (entry for entry in told if entry[0] != "warning"))
    assert outcomes["failed"] == 7 and outcomes["skipped"] > 2 and outcomes["passed"] > 60
    assert len(store) > 30


def test_a_trace_is_an_outermost_call(store):
    [trace] = of(store, "test_passes", "total")
    assert trace.context.splitlines()[7] == "def total(xs):  # << START_OF_TRACE"
    assert [frame.event for frame in trace.frames] == ["call"] + 7 * ["line"] + ["return"]
    assert trace.state(0) == {"xs": "[1, 2]"} and trace.result == "3"
    [trace] = of(store, "test_puts_the_tracer_back", "outer")
    assert [frame.lineno for frame in trace.frames if frame.event == "call"] == [14, 17]
    assert not of(store, "test_puts_the_tracer_back", "inner")
    [trace] = of(store, "test_raises", "fails")
    assert trace.exception == "ValueError('b')" and trace.result is None
    [metadata] = [m for key, m, _ in store.entries() if m["test"].endswith("test_passes")]
    assert metadata == metadata | {
        "function": "pack.core:total", "module": "pack.core", "path": "pack/core.py", "line": 8, "call": 1,
        "site": "tests/test_core.py:8", "package": "pack", "version": None, "seed": 0, "outcome": "returned",
    }  # fmt: skip


def test_limits_cut_a_trace_and_not_the_program(store):
    for function in ("swallows_everything", "total"):
        [trace] = of(store, "test_long_loops", function)
        assert len(trace) == 500 and trace.truncated == "max_frames" and trace.result is None
    first, second = of(store, "test_recursion", "deep")
    assert (first.truncated, second.truncated, second.result) == ("max_frames", None, "100")


def test_steps_of_generators_and_coroutines(store):
    [trace] = of(store, "test_warns", "squares")
    assert [frame.arg for frame in trace.frames if frame.event == "return"] == ["0", "1", "4", "None"]
    assert trace.truncated is None
    # Of two that take turns the first one's trace ends where the second one's begins.
    steps = [
        len([f for f in t.frames if f.event == "return"]) for t in of(store, "test_generators_interleave", "squares")
    ]
    # A generator that is closed returns; 3.13 alone closes one that waits outside of any try without running it.
    assert steps == ([1, 3, 1] if sys.version_info[:2] == (3, 13) else [1, 4, 2])
    assert {trace.state(0)["x"] for trace in of(store, "test_async", "later")} == {"1", "2"}


def test_other_tracers(store):
    assert not of(store, "test_own_tracer", "total")
    assert not entries(store, test="tests/test_core.py::test_finds_it")
    assert [trace.result for trace in of(store, "test_is_not_traced_before", "outer")] == ["1"]


def test_samples_by_call_site(project, store):
    sites = Counter((m["function"], m["site"]) for _, m, _ in store.entries())
    line = SUITE[: SUITE.index("assert total(range(n)) < 3")].count("\n") + 1
    assert sites["pack.core:total", f"tests/test_core.py:{line}"] >= 2
    assert max(sites.values()) <= 4  # two, and some that were displaced later
    recorded(project, "again", "--cwm-max-frames", "500", "--cwm-per-site", "2")
    again = cwm.TraceReader(project / "again" / "main.cwmtraces")
    assert [(e.key, e.metadata) for e in again.entries()] == [(e.key, e.metadata) for e in store.entries()]
    # A thread shows its number.
    traces = [[e.trace for e in one.entries() if "test_threads" not in e.key] for one in (store, again)]
    assert traces[0] == traces[1] and len(traces[0]) == len(store) - 1


def test_a_trace_a_test(project):
    recorded(project, "tests-as-units", "--cwm-unit", "test", "-k", "passes or parametrized or Case or recursion")
    store = cwm.TraceReader(project / "tests-as-units" / "main.cwmtraces")
    functions = Counter(m["function"] for _, m, _ in store.entries())
    assert functions["tests/test_core.py:test_passes"] == functions["tests/test_core.py:Case.test_method"] == 1
    [trace] = [e.trace for e in store.entries() if e.metadata["test"].endswith("test_passes")]
    assert [f.line.strip() for f in trace.frames if f.event == "call"] == ["def test_passes():", "def total(xs):"]
    assert "def test_passes():  # << START_OF_TRACE\n" in trace.context


def test_budgets(project):
    output, _ = recorded(project, "bytes", "--cwm-max-bytes", "1", "-k", "passes or fails or parametrized")
    assert "; ended early: --cwm-max-bytes" in output
    assert len(cwm.TraceReader(project / "bytes" / "main.cwmtraces")) == 1
    output, _ = recorded(project, "seconds", "--cwm-max-seconds", "0")
    assert "cwm: 0 traces" in output and "ended early: --cwm-max-seconds" in output


def test_wrong_options(project):
    (project / "full").mkdir()
    (project / "full" / "x.cwmtraces").write_text("")
    for arguments, said in (
        (["full"], "already contains a recording; choose another folder"),
        (["new1", "--cwm-per-site", "0"], "--cwm-per-site must be at least 1"),
        (["new2", "--cwm-package", "absent"], "there is no package absent"),
        (["new3", "--cwm-package", "__main__"], "there is no package __main__"),
        (["new4", "--cwm-package", "sys"], "there is no package sys with Python files"),
        (["new5", "--cwm-package", "core.py"], "got 'core.py'; try --cwm-package core"),
        (["new6", "--cwm-package", "./pack/core.py"], "got './pack/core.py'; try --cwm-package pack"),
        (["new7", "--cwm-package", "src/pack"], "try --cwm-package pack"),
        (["new8", "--cwm-package", "pack.core"], "got 'pack.core'; try --cwm-package pack"),
        (
            ["new9", "--cwm-package", "no-name.py"],
            "expected the import name of a top-level package or module, got 'no-name.py'\n",
        ),
        (["new10", "--cwm-package", ""], "expected the import name of a top-level package or module, got ''\n"),
        (["pytest.ini"], "pytest.ini: is a file"),
        (["pytest.ini/new"], "pytest.ini/new: Not a directory"),
        ([""], "got an empty name"),
    ):
        output, _ = recorded(project, *arguments)
        assert said in output and "INTERNALERROR" not in output and "Traceback" not in output
        assert not (project / "new10").exists() and (project / "pytest.ini").is_file()


def small(root, name="pack", source="def f(x):\n    return x\n", test="import pack\ndef test_it():\n    pack.f(3)\n"):
    """A project of one package and one test."""
    (root / name).mkdir(parents=True)
    (root / name / "__init__.py").write_text(source)
    (root / "test_it.py").write_text(test)
    return root


def found(root, name="out"):
    """Test and function of each trace of a recording."""
    path = root / name / "main.cwmtraces"
    return [(m["test"], m["function"]) for _, m, _ in cwm.TraceReader(path).entries()] if path.exists() else []


def test_modules_with_doctests_are_recorded(tmp_path):
    source = 'def f(x):\n    """\n    >>> f(2)\n    2\n    """\n    return g(x)\n\ndef g(x):\n    return x\n'
    small(tmp_path, source=source)
    (tmp_path / "pack" / "other.py").write_text(source)
    output, _ = recorded(tmp_path, "out", "--doctest-modules", "--cwm-per-site", "9")
    assert "3 passed" in output and "cwm: 3 traces" in output
    assert found(tmp_path) == [
        ("pack/__init__.py::pack.f", "pack:f"),
        ("pack/other.py::pack.other.f", "pack.other:f"),
        ("test_it.py::test_it", "pack:f"),
    ]
    # A doctest has no function whose trace it could be.
    output, _ = recorded(tmp_path, "units", "--doctest-modules", "--cwm-unit", "test")
    assert found(tmp_path, "units") == [("test_it.py::test_it", "test_it.py:test_it")]
    assert "cwm: 1 traces" in output and "2 tests not recorded: they have no function of their own" in output


LINTER = """
import pytest

class Check(pytest.Item):
    def runtest(self):
        import pack
        pack.f(1)

class File(pytest.File):
    def collect(self):
        yield Check.from_parent(self, name="check")

def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".py" and file_path.parent.name == "pack":
        return File.from_parent(parent, path=file_path)
"""


def test_modules_that_a_linter_checks_are_recorded(tmp_path):
    small(tmp_path)
    (tmp_path / "conftest.py").write_text(LINTER)
    recorded(tmp_path, "out", "--cwm-per-site", "9")
    assert found(tmp_path) == [("pack/__init__.py::check", "pack:f"), ("test_it.py::test_it", "pack:f")]


def test_modules_that_hold_tests_are_named(tmp_path):
    small(tmp_path, source="from pack.inline import g\ndef f(x):\n    return g(x)\n")
    (tmp_path / "pack" / "inline.py").write_text("def g(x):\n    return x\ndef test_g():\n    assert g(1) == 1\n")
    output, _ = recorded(tmp_path, "out", "-o", "python_files=*.py")
    assert "2 passed" in output and "not recorded since they hold tests: pack/inline.py" in output
    assert found(tmp_path) == [("test_it.py::test_it", "pack:f")]


@pytest.mark.parametrize("way", ["dots", "link"])
def test_packages_imported_through_other_names(tmp_path, way):
    root = small(tmp_path / "real", "src/pack")
    (tmp_path / "link").symlink_to(root)
    (root / "tests").mkdir()
    (root / "test_it.py").rename(root / "tests" / "test_it.py")
    path = str({"dots": root / "tests" / ".." / "src", "link": tmp_path / "link" / "src"}[way])
    (root / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {path!r})\n")
    for unit in ("call", "test"):
        output, _ = recorded(root, unit, "--cwm-unit", unit)
        function = "pack:f" if unit == "call" else "tests/test_it.py:test_it"
        assert found(root, unit) == [("tests/test_it.py::test_it", function)], output
    [metadata] = [m for _, m, _ in cwm.TraceReader(root / "call" / "main.cwmtraces").entries()]
    assert (metadata["path"], metadata["site"]) == ("src/pack/__init__.py", "tests/test_it.py:3")


def test_cases_of_a_parametrized_test(tmp_path):
    """As units they are tests like others; calls that they make come from one line."""
    small(
        tmp_path,
        test="import pack, pytest\n@pytest.mark.parametrize('x', [1, 2, 3])\ndef test_it(x):\n    pack.f(x)\n",
    )
    recorded(tmp_path, "tests", "--cwm-unit", "test", "--cwm-per-site", "1")
    assert [test for test, _ in found(tmp_path, "tests")] == [f"test_it.py::test_it[{n}]" for n in (1, 2, 3)]
    recorded(tmp_path, "few", "--cwm-unit", "test", "--cwm-per-function", "2", "--cwm-seed", "1")
    assert len(set(kept(tmp_path / "few", per_function=2))) == 2
    recorded(tmp_path, "calls", "--cwm-unit", "call", "--cwm-per-site", "1")
    assert len(kept(tmp_path / "calls")) == 1


def kept(folder, **limits):
    """What is read back of a recording, which may hold calls that others displaced."""
    from cwm_core.corpus.repository import read_recording

    return [sample.provenance["test"] for sample in read_recording(folder, **limits)]


def test_nothing_recorded_is_a_warning(tmp_path):
    small(tmp_path, test="def test_it():\n    helper()\ndef helper():\n    pass\n")
    output, _ = recorded(tmp_path, "out")
    assert "1 passed" in output and "cwm: 0 traces" in output
    assert "warning: no frames were recorded: no code in scope (pack) ran" in output
    assert f"Files whose code ran: {tmp_path / 'test_it.py'}" in output and "--cwm-package" in output
    output, _ = recorded(tmp_path, "none", "-k", "absent")  # without tests there is nothing to explain
    assert "cwm: 0 traces" in output and "warning" not in output


@pytest.mark.skipif(find_spec("xdist") is None, reason="no pytest-xdist")
def test_workers_report(tmp_path):
    small(tmp_path)
    output, _ = recorded(tmp_path, "out", "-n", "1", plugins=["xdist"])
    assert re.search(r"^cwm: 1 traces in .*out/gw0.cwmtraces$", output, re.MULTILINE)
    output, _ = recorded(tmp_path, "absent", "-n", "1", "--cwm-package", "absent", plugins=["xdist"])
    assert re.search(
        r"^cwm: 0 traces in .*; ended early: --cwm-package: there is no package absent", output, re.MULTILINE
    )


@pytest.mark.skipif(find_spec("xdist") is None, reason="no pytest-xdist")
def test_xdist(project, store, plain):
    def by_test(told):
        return sorted(json.dumps(entry) for entry in told if entry[0] != "warning")

    arguments = ["-n", "2", "--cwm-max-frames", "500", "--cwm-per-site", "2"]
    # Tests that leave something to others need their order.
    chosen = [
        "--deselect",
        "tests/test_core.py::test_finds_it",
        "--deselect",
        "tests/test_core.py::test_leaves_a_tracer",
    ]
    _, without = run(project, "-n", "2", *chosen, plugins=["xdist"])
    _, told = recorded(project, "workers", *arguments, *chosen, plugins=["xdist"])
    assert without[0] == told[0] and by_test(without[1]) == by_test(told[1])
    found = [
        entry
        for name in ("gw0", "gw1")
        for entry in cwm.TraceReader(project / "workers" / f"{name}.cwmtraces").entries()
    ]
    assert len(found) > 30
    of_one = {entry.key: entry.trace for entry in store.entries()}
    shared = [entry for entry in found if entry.key in of_one and "test_threads" not in entry.key]
    assert len(shared) > 25 and all(of_one[entry.key] == entry.trace for entry in shared)


@pytest.mark.skipif(find_spec("pytest_cov") is None, reason="no pytest-cov")
def test_coverage_is_not_disturbed(project):
    arguments = ["--cov=pack", "--cov-report=term-missing", "-k", "not tracer"]
    output, told = run(project, *arguments, plugins=["pytest_cov"])
    with_plugin, told_with_plugin = recorded(project, "covered", *arguments, plugins=["pytest_cov"])
    assert told == told_with_plugin and "pack/core.py" in output
    assert without_line(with_plugin) == output


@pytest.mark.skipif(find_spec("pytest_asyncio") is None, reason="no pytest-asyncio")
def test_async_tests(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pack, pytest\n@pytest.mark.asyncio\nasync def test_it():\n    assert await pack.f(3) == 3\n"
    )
    output, _ = recorded(tmp_path, "out", plugins=["pytest_asyncio.plugin"])
    assert "1 passed" in output
    [entry] = cwm.TraceReader(tmp_path / "out" / "main.cwmtraces").entries()
    # Its steps follow each other: nothing else of the package runs.
    assert [f.event for f in entry.trace.frames if f.event in ("call", "return")] == ["call", "return"] * 2


RERUN = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for _ in range(2):
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            item.ihook.pytest_runtest_logreport(report=report)
    return True
"""


def test_tests_that_run_again(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "conftest.py").write_text(RERUN)
    (tmp_path / "test_it.py").write_text("import pack\ndef test_it():\n    assert pack.f(3) == 3\n")
    output, _ = recorded(tmp_path, "out", "--cwm-per-site", "9")
    assert "2 passed" in output
    names = [m["test"] for _, m, _ in cwm.TraceReader(tmp_path / "out" / "main.cwmtraces").entries()]
    assert names == ["test_it.py::test_it", "test_it.py::test_it~2"]


@pytest.mark.skipif(find_spec("toolz") is None, reason="no toolz")
def test_the_suite_of_a_package(tmp_path):
    arguments = ["--pyargs", "toolz", "-p", "no:cacheprovider", "-q", "--rootdir", str(tmp_path)]
    output, _ = run(tmp_path, *arguments)
    with_plugin, _ = recorded(tmp_path, "out", *arguments, "--cwm-package", "toolz")
    assert " passed" in output and " failed" not in output
    assert without_line(with_plugin) == output
    store = cwm.TraceReader(tmp_path / "out" / "main.cwmtraces")
    functions = {m["function"] for _, m, _ in store.entries()}
    assert len(functions) > 100 and not any("test" in name.partition(":")[0] for name in functions)
    assert {m["version"] for _, m, _ in store.entries()} == {__import__("toolz").__version__}


calls = st.tuples(st.sampled_from("fgh"), st.sampled_from("abc"))


@given(st.lists(calls, max_size=60), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.randoms())
def test_samples_of_processes_make_that_of_all(made, per_site, per_function, processes, random):
    """Against the definition: the least of each site, of those the least of each function."""
    numbered = [(priority(0, "test", *call, n), *call) for n, call in enumerate(made)]
    by_site = [call for call in numbered if sorted(c for c in numbered if c[1:] == call[1:]).index(call) < per_site]
    expected = {call for call in by_site if sorted(c for c in by_site if c[1] == call[1]).index(call) < per_function}
    random.shuffle(numbered)
    kept = set()
    for process in range(processes):
        sample = CallSample(per_site, per_function)
        kept |= {call for call in numbered[process::processes] if sample.add(call[1], call[2], call[0])}
    assert expected <= kept
    merged = CallSample(per_site, per_function)
    assert {call for call in sorted(kept) if merged.add(call[1], call[2], call[0])} == expected


def f(x):
    return g(x)


def g(x):
    return 1 / x


def h(x):
    try:
        g(x)
    finally:
        x += 1


def k(x):
    with contextlib.suppress(ValueError):
        return None if 1 / x else x


def choosing(choose, run, **limits):
    recording = Recording([__file__], [], **limits, choose=choose)
    recording.start()
    try:
        run()
    finally:
        recording.stop()
        traces = finish(recording)
    return traces


def test_choosing_calls():
    seen = []

    def choose(frame):
        seen.append(frame.f_code.co_name)
        return frame.f_code.co_name != "g"

    def calls():
        pass

    run = compile("f(1), g(1), f(2)", "<elsewhere>", "eval")
    traces = choosing(choose, lambda: eval(run, globals()))
    # The lambda is the outermost call here.
    assert seen == ["<lambda>"] and len(traces) == 1
    seen.clear()
    traces = choosing(choose, eval_in(run))
    assert seen == ["f", "g", "f"] and [trace.result for trace in traces] == ["1.0", "0.5"]
    assert [len(trace) for trace in choosing(choose, eval_in(run), max_frames=3)] == [3, 3]


def eval_in(code):
    import functools

    return functools.partial(eval, code, globals())


def test_what_a_choosing_function_raises():
    run = compile("f(1)", "<elsewhere>", "eval")

    def fails(frame):
        raise ValueError

    def interrupts(frame):
        raise KeyboardInterrupt

    assert [len(trace) for trace in choosing(fails, eval_in(run))] == [0]
    with pytest.raises(KeyboardInterrupt):
        choosing(interrupts, eval_in(run))
    for options in ({"split": True}, {"max_seconds": 1.0}):
        with pytest.raises(ValueError, match="choose"):
            Recording([], [], choose=fails, **options)


def test_outcomes_of_chosen_calls():
    code = "try:\n    {}\nexcept ZeroDivisionError:\n    pass\n"
    for call, exception in (
        ("f(0)", "ZeroDivisionError('division by zero')"),
        ("h(0)", "ZeroDivisionError('division by zero')"),
        ("h(1)", None),
        ("k(0)", "ZeroDivisionError('division by zero')"),
        ("k(1)", None),
    ):
        [trace] = choosing(lambda frame: True, eval_exec(code.format(call)))
        assert trace.exception == exception and trace.result == (None if exception else "None")


def eval_exec(code):
    import functools

    return functools.partial(exec, compile(code, "<elsewhere>", "exec"), globals())
