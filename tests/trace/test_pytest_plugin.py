"""`pytest --cwm-record`: what it records of a suite, and that the suite does not notice."""

import sys
from collections import Counter
from importlib.util import find_spec

import cwm_core as cwm
import pytest
from suites import recorded, run, small, without_line


def entries(store, **wanted):
    """Return traces by their metadata."""
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


def test_nothing_recorded_is_a_warning(tmp_path):
    small(tmp_path, test="def test_it():\n    helper()\ndef helper():\n    pass\n")
    output, _ = recorded(tmp_path, "out")
    assert "1 passed" in output and "cwm: 0 traces" in output
    assert "warning: no frames were recorded: no code in scope (pack) ran" in output
    assert f"Files whose code ran: {tmp_path / 'test_it.py'}" in output and "--cwm-package" in output
    output, _ = recorded(tmp_path, "none", "-k", "absent")  # without tests there is nothing to explain
    assert "cwm: 0 traces" in output and "warning" not in output


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
