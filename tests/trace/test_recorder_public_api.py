"""The recorder on an interpreter whose frames it does not know: through the public API, with the same traces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CWM_RECORDER_API": "public"}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def test_it_passes_the_tests_of_the_recorder() -> None:
    files = (
        "test_recorder.py",
        "test_recorder_comprehensions.py",
        "test_recorder_lines.py",
        "test_recorder_new_syntax.py",
    )
    options = ["-q", "-p", "no:cacheprovider", *(f"tests/trace/{file}" for file in files)]
    if sys.version_info < (3, 13):  # the dict that the public API leaves on a frame keeps values alive
        options += ["--deselect", "tests/trace/test_recorder.py::test_objects_live_as_long_as_unrecorded"]
    done = run("-m", "pytest", *options)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


PROGRAM = """
import warnings
import cwm_core as cwm

def f(n, key=None):
    for i in range(n):
        key = [i, key]
    return key

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    traces = [cwm.record(f, 2) for _ in range(2)]
print(len(caught), caught[0].category.__name__, "public API" in str(caught[0].message))
print(traces[0].result, traces[0].to_text() == traces[1].to_text())
"""


def test_the_first_recording_warns(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    done = run(str(path))
    assert done.stdout.splitlines() == ["1 RuntimeWarning True", "[1, [0, None]] True"], done.stderr
