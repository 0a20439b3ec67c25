"""Run the suite of a package (toolz) under pytest: alone, recorded by the plugin, and with a Python tracer instead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Records the same as the plugin with sys.settrace: events of the package's frames, with the texts that changed, in one
# list per outermost call. Writes them, each with the source of its file, as compressed JSON lines.
TRACER = """
import gzip, json, os, sys
from pathlib import Path
import pytest
from cwm_core.trace.calls import CallSample, priority

FOLDER = os.environ["CWM_BENCH_FOLDER"] + os.sep
MAX_FRAMES = 10_000
sample, traces = CallSample(1, 20), []
test, number, current, root = "", 0, None, None

def is_in_scope(file):
    return file.startswith(FOLDER) and os.sep + "tests" + os.sep not in file

def text(value):
    try:
        return repr(value)[:1000]
    except Exception:
        return object.__repr__(value)

def begin(frame, event, arg):
    global current, root, number
    code = frame.f_code
    if not is_in_scope(code.co_filename):
        return None
    if root is None:
        number += 1
        function, site = code.co_qualname, f"{frame.f_back.f_code.co_filename}:{frame.f_back.f_lineno}"
        current = [] if sample.add(function, site, priority(0, test, function, site, number)) else None
        if current is not None:
            traces.append((code.co_filename, current))
        root = frame
    shown = {}
    def local(frame, event, arg):
        global root
        if current is not None and len(current) < MAX_FRAMES:
            if event in ("line", "call"):
                texts = {name: text(value) for name, value in frame.f_locals.items()}
                current.append((event, frame.f_lineno, {n: t for n, t in texts.items() if shown.get(n) != t}))
                shown.update(texts)
            else:
                current.append((event, frame.f_lineno, text(arg)))
        if event == "return" and frame is root:
            root = None
        return local
    return local(frame, event, arg)

@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_call(item):
    global test, root
    test, root = item.nodeid, None
    sys.settrace(begin)
    yield
    sys.settrace(None)

def pytest_sessionfinish():
    with gzip.open("traces.jsonl.gz", "wt", compresslevel=6) as file:
        for source, frames in traces:
            file.write(json.dumps([Path(source).read_text(), frames]) + "\\n")

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"tracer: {len(traces)} traces, {sum(len(frames) for _, frames in traces)} frames")
"""


def processor_seconds() -> float:
    """Return the processor time of finished child processes. The clock would measure other processes too."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.benchmark(timer=processor_seconds)
@pytest.mark.parametrize("recorder", ["cwm_core", "sys.settrace tracer", "unrecorded"])
def test_record_a_suite(benchmark, tmp_path: Path, recorder: str) -> None:
    """Run whole processes, so that work that does not depend on the recorder (imports, collection) counts in all."""
    toolz = pytest.importorskip("toolz")
    (tmp_path / "settrace_tracer.py").write_text(TRACER)
    env = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(tmp_path),
        "CWM_BENCH_FOLDER": os.path.dirname(toolz.__file__),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--pyargs", "toolz", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tmp_path)]
    runs = iter(range(1000))

    def suite() -> str:
        plugin = ["-p", "cwm_core.trace.pytest_plugin", "--cwm-package", "toolz", "--cwm-record", f"stores{next(runs)}"]
        more = {"cwm_core": plugin, "sys.settrace tracer": ["-p", "settrace_tracer"], "unrecorded": []}[recorder]
        done = subprocess.run([*command, *more], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        return done.stdout

    benchmark.group = "pytest: the suite of toolz"
    benchmark.extra_info["implementation"] = recorder
    said = benchmark.pedantic(suite, rounds=5)
    benchmark.extra_info["said"] = [line for line in said.splitlines() if line.startswith(("cwm:", "tracer:"))]
    assert " passed" in said
