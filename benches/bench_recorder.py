"""Record: nanoseconds per event, compared with an empty native hook (the floor), the oracle, and other recorders.

The floor and the other recorders run the same calls. hunter prints to a null stream. The recorder of codetracer, for
CPython 3.12 and later, writes its binary trace to a folder.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cwm_core as cwm
import pytest
import workloads
from cwm_core._native import call_with_empty_hook

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle

FILE = workloads.__file__


def with_hunter(workload: Callable[[], object]) -> None:
    hunter = pytest.importorskip("hunter")
    tracer = hunter.trace(filename=FILE, action=hunter.VarsSnooper(stream=io.StringIO()))
    try:
        workload()
    finally:
        tracer.stop()


def with_codetracer(workload: Callable[[], object]) -> None:
    codetracer = pytest.importorskip("codetracer_python_recorder")
    with tempfile.TemporaryDirectory() as folder, codetracer.trace(folder):
        workload()


RECORDERS: dict[str, Callable[[Callable[[], object]], object]] = {
    "cwm_core": cwm.record,
    "empty native hook": call_with_empty_hook,
    "sys.settrace oracle": oracle.record,
    "hunter": with_hunter,
    "codetracer": with_codetracer,
}
# One call of these takes seconds on the longest workloads.
SLOW = {"sys.settrace oracle", "hunter", "codetracer"}


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda workload: workload.__name__)
def test_record(benchmark, workload: Callable[[], object], recorder: str, quick: bool) -> None:
    if quick and recorder == "sys.settrace oracle" and workload is workloads.list_append:
        pytest.skip("it renders the whole list at each step: many seconds a call")
    trace = cwm.record(workload)
    benchmark.group = f"record: {workload.__name__}"
    benchmark.extra_info = {"implementation": recorder, "events": len(trace)}
    if recorder == "cwm_core":
        stored = len(trace.to_bytes())
        benchmark.extra_info |= {"bytes_a_frame": trace.nbytes / len(trace), "stored_a_frame": stored / len(trace)}
    if recorder == "hunter":
        pytest.importorskip("hunter")
        if workload is workloads.list_append:
            pytest.skip("it renders the whole list at each step: a minute a call")
    if recorder == "codetracer":
        pytest.importorskip("codetracer_python_recorder")
    if recorder in SLOW:
        benchmark.pedantic(RECORDERS[recorder], (workload,), rounds=3)
    else:
        benchmark(RECORDERS[recorder], workload)


@pytest.fixture(scope="module")
def suite() -> Callable[[], int]:
    pytest.importorskip("toolz")
    return workloads.suite_of("toolz")


SUITE_RECORDERS = ["cwm_core", "empty native hook", "sys.settrace oracle", "unrecorded"]


@pytest.mark.parametrize("recorder", SUITE_RECORDERS)
def test_record_a_package(benchmark, suite: Callable[[], int], recorder: str) -> None:
    """Record the tests of a package with its code and its tests in scope; most of the running code is outside."""
    import toolz

    folder = os.path.dirname(toolz.__file__)
    recorder_of_it = cwm.Recorder(scope=[folder])
    benchmark.group = "record: the tests of a package (toolz)"
    benchmark.extra_info = {"implementation": recorder, "events": len(recorder_of_it.record(suite))}
    runs: dict[str, Callable[[], object]] = {
        "cwm_core": lambda: recorder_of_it.record(suite),
        "empty native hook": lambda: call_with_empty_hook(suite),
        "sys.settrace oracle": lambda: oracle.trace(oracle.Tracer(lambda name: name.startswith(folder)), suite),
        "unrecorded": suite,
    }
    benchmark.pedantic(runs[recorder], rounds=5)
