"""`pytest --cwm-record` with other plugins: xdist, coverage, asyncio, and reruns."""

import json
import re
from importlib.util import find_spec

import cwm_core as cwm
import pytest
from suites import recorded, run, small, without_line


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
