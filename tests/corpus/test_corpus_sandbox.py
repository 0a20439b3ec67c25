"""One sandbox records many programs, each as if it were alone, whatever the others do."""

import dataclasses
import os
import subprocess
import textwrap
import time

import pytest
from cwm_core import machines, record_source
from cwm_core.corpus.generator import generate
from cwm_core.corpus.sandbox import LIMITS, RecordingSandbox, Run
from hypothesis import given
from hypothesis import strategies as st

REFUSAL = machines.bubblewrap_refusal()
needs_bubblewrap = pytest.mark.skipif(REFUSAL is not None, reason=f"no bubblewrap: {REFUSAL}")
SHORT = dataclasses.replace(LIMITS, seconds=1.0, cpu_seconds=5, memory_bytes=200 << 20)
TOTAL = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return total\n"


@pytest.fixture(scope="module", params=["process"] if REFUSAL else ["bubblewrap", "process"])
def worker(request):
    with RecordingSandbox(sandbox=request.param) as worker:
        yield worker


@pytest.fixture(scope="module")
def isolated():
    with RecordingSandbox(limits=SHORT) as worker:
        yield worker


def body(code):
    return Run("def f():\n" + textwrap.indent(code, "    ") + "\n", "f()")


def test_results_come_in_order(worker):
    calls = [f"f(range({n}))" for n in range(50)]
    answers = list(worker.run(Run(TOTAL, call) for call in calls))
    assert [answer.trace for answer in answers] == [record_source(TOTAL, call) for call in calls]
    assert all(answer.seconds > 0 for answer in answers)


def test_runs_can_be_larger_than_a_pipe(worker):
    padding = "# " + "x" * 100_000 + "\n"
    answers = list(worker.run(Run(padding + TOTAL, f"f(range({n}))") for n in range(40)))
    assert [answer.trace.result for answer in answers] == [str(sum(range(n))) for n in range(40)]


@given(st.lists(st.integers(0, 10**9).map(generate), max_size=3))
def test_any_program_is_recorded_as_without_a_sandbox(worker, drawn):
    answers = list(worker.run(Run(code, call) for code, call in drawn))
    assert [answer.trace for answer in answers] == [record_source(code, call) for code, call in drawn]


def test_whole_programs_read_their_input(worker):
    code = "import sys\nn = int(input())\nprint(sum(map(int, sys.stdin.readline().split())) * n)\nopen(0).read()\n"
    [answer] = worker.run([Run(code, stdin="2\n3 4\nrest", options={"capture_output": True})])
    assert answer.trace.output == "14\n"
    assert answer.trace.exception is None


def test_recorder_options_are_kept(worker):
    [answer] = worker.run([Run(TOTAL, "f(range(100))", options={"max_frames": 7})])
    assert len(answer.trace) == 7
    assert answer.trace.truncated == "max_frames"


FAILURES = [
    (Run("def f(:\n", "f()"), "does not compile"),
    (Run("1 / 0\n", "1"), "raised before the call"),
    (body("import os\nos._exit(3)"), "ended by exit code 3"),
    (body("import os\nos._exit(0)"), "ended without a result"),
    (body("import ctypes\nctypes.string_at(0)"), "ended by signal 11"),
    (body("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"), "ended by signal 9"),
]


def test_failures_have_reasons_and_no_consequences(worker):
    orders = [order for failure, _ in FAILURES for order in (failure, Run(TOTAL, "f([1])"))]
    answers = list(worker.run(orders))
    assert [answer.reason for answer in answers] == [r for _, reason in FAILURES for r in (reason, None)]
    assert all(answer.trace == record_source(TOTAL, "f([1])") for answer in answers[1::2])


# Programs that attack the sandbox, with the reasons of their failures; None if they run to the end.
HOSTILE = {
    "fork bomb": ("import os\nwhile True:\n    os.fork()", "limit: processes"),
    "memory bomb": ("return len([bytearray(1 << 20) for _ in range(1000)])", None),
    "long integer": ("return 9 ** 9 ** 9", "limit: seconds"),
    "catastrophic regex": ("import re\nre.match('(a*)*b', 'a' * 40)", "limit: seconds"),
    "kills the worker": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "ended its sandbox"),
    "kills everything": ("import os, signal\nos.kill(-1, signal.SIGKILL)", "ended its sandbox"),
    "ignores signals": (
        "import signal\nfor n in range(1, 32):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except OSError:\n        pass\nwhile True:\n    pass",
        "limit: seconds",
    ),
    "deletes files": (
        "import shutil\nfor name in ('/etc', '/tmp', '/dev'):\n    shutil.rmtree(name, ignore_errors=True)",
        None,
    ),
    "fills the disk": (
        "with open('x', 'wb') as f:\n    while True:\n        f.write(bytes(1 << 20))",
        "ended by signal 25",
    ),
    "leaves a thread": ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", None),
    "leaves a process": ("import subprocess\nsubprocess.Popen(['sleep', '1234.5'], start_new_session=True)", None),
    "replaces builtins": (
        "import builtins\nbuiltins.len = builtins.repr = builtins.print = lambda *_: 0",
        "ended without a result",
    ),
    "patches json": ("import json\njson.dumps = json.loads = lambda *_: '{}'", "ended without a result"),
    "patches os": ("import os\nos.write = os._exit = os.getpid = lambda *_: 0", "ended by exit code 1"),
    "closes descriptors": ("import os\nos.closerange(0, 100)", "ended without a result"),
    "leaves a deep tree": (
        "import os\nfor _ in range(50):\n    os.mkdir('d')\n    os.chdir('d')\nos.chmod('.', 0)",
        "ended its sandbox",
    ),
    "leaves shared memory": (
        "import ctypes\nassert ctypes.CDLL(None).shmget(7, 4096, 0o1666) >= 0\nopen('/dev/shm/x', 'w').close()",
        "ended its sandbox",
    ),
    "writes to all descriptors": (
        "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'A')\n    except OSError:\n        pass",
        "ended without a result",
    ),
    "traces the worker": (
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == -1\n"
        "open(f'/proc/{os.getppid()}/mem', 'wb')",
        None,
    ),
    "talks to the network": ("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)", None),
}
LEAVES_NOTHING = body(
    "import os, builtins, json, threading\n"
    "assert 'work' in os.listdir('/tmp') and not os.listdir('/tmp/work')\n"
    "assert not os.listdir('/dev/shm') and threading.active_count() == 1 and len([]) == 0\n"
    "assert json.loads('[1]') == [1]\n"
    # A killed process may take a moment to vanish.
    "import time\nfor _ in range(30):\n    if sum(name.isdigit() for name in os.listdir('/proc')) == 3:\n"
    "        return 'clean'\n    time.sleep(0.01)\n"
)


@needs_bubblewrap
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_lose_only_themselves(isolated, name):
    code, reason = HOSTILE[name]
    orders = [Run(TOTAL, "f([1])"), body(code), LEAVES_NOTHING, Run(TOTAL, "f([2])")]
    before, hostile, clean, after = isolated.run(orders)
    assert before.trace == record_source(TOTAL, "f([1])")
    assert hostile.reason == reason
    assert clean.trace.result == "'clean'", clean.trace.exception
    assert after.trace == record_source(TOTAL, "f([2])")
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 1234.5" not in running


@given(st.lists(st.integers(0, 10**9).map(generate), min_size=2, max_size=6))
def test_programs_that_share_a_child_are_recorded_alike(worker, drawn):
    answers = list(worker.run((Run(code, call) for code, call in drawn), runs_per_process=4))
    assert [answer.trace for answer in answers] == [record_source(code, call) for code, call in drawn]


def test_a_program_sees_what_earlier_ones_left_in_its_process(worker):
    count = body("import sys\nsys.count = getattr(sys, 'count', 0) + 1\nreturn sys.count")
    assert [answer.trace.result for answer in worker.run([count] * 5, runs_per_process=2)] == ["1", "2", "1", "2", "1"]
    assert [answer.trace.result for answer in worker.run([count] * 3)] == ["1"] * 3


def test_failures_among_programs_that_share_a_child(worker):
    orders = [order for failure, _ in FAILURES for order in (Run(TOTAL, "f([1])"), failure)]
    answers = list(worker.run(orders, runs_per_process=8))
    assert [answer.reason for answer in answers] == [r for _, reason in FAILURES for r in (None, reason)]
    assert all(answer.trace == record_source(TOTAL, "f([1])") for answer in answers[::2])


@needs_bubblewrap
def test_hostile_programs_among_those_that_share_a_child(isolated):
    lost = [name for name, (_, reason) in HOSTILE.items() if reason not in (None, "limit: processes")]
    orders = [Run(TOTAL, f"f([{number}])") for number in range(3)]
    for name in lost:
        answers = list(isolated.run([*orders, body(HOSTILE[name][0]), *orders], runs_per_process=7))
        assert [answer.trace for answer in answers[:3]] == [record_source(TOTAL, order.call) for order in orders], name
        assert answers[3].reason == HOSTILE[name][1], name
        assert answers[6].trace == record_source(TOTAL, orders[2].call), name


@needs_bubblewrap
def test_a_stopped_sandbox_is_replaced(isolated, monkeypatch):
    monkeypatch.setattr("cwm_core.corpus.sandbox._GRACE", 0.5)
    stop, after = isolated.run([body("import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)"), Run(TOTAL, "f([])")])
    assert stop.reason == "limit: seconds"
    assert after.trace is not None


@needs_bubblewrap
@pytest.mark.parametrize("preload", [None, "json"])
def test_a_sandbox_that_does_not_start_says_so(worker, monkeypatch, tmp_path, preload):
    (tmp_path / "broken.py").write_text("import not_there_at_all\n")
    monkeypatch.setattr(RecordingSandbox, "_arguments", (str(tmp_path / "broken.py"),))
    said = pytest.raises(machines.SandboxError, match=r"(?s)does not start recording.*broken\.py")
    with said, RecordingSandbox(sandbox=worker._sandbox, preload=preload) as broken:
        list(broken.run([Run(TOTAL, "f([1])")]))


def test_hash_seeds():
    order = Run("x = list({'a', 'b', 'c', 'd', 'e'})\ndef f():\n    return x\n", "f()")
    results = set()
    for seed in (0, 0, 1, 2, 3):
        with RecordingSandbox(hash_seed=seed) as worker:
            [answer] = worker.run([order])
            results.add((seed, answer.trace.result))
    assert len({seed for seed, _ in results}) == 4 == len(results)
    assert len({result for _, result in results}) > 1


def test_modules_are_imported_once(tmp_path):
    (tmp_path / "counted.py").write_text("from time import time_ns\nloaded = time_ns()\ndef f():\n    return loaded\n")
    sandbox = "process" if REFUSAL else "bubblewrap"
    orders = [Run("import counted\n", "counted.f()")] * 2
    with RecordingSandbox(sandbox=sandbox, paths=[str(tmp_path)], preload="counted") as worker:
        first, second = worker.run(orders)
    assert first.trace.result == second.trace.result
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "queue.py").write_text("def f():\n    return 1\n")
    for name, reason in (
        ("broken", "it raised ZeroDivisionError"),
        ("absent", "it raised ModuleNotFoundError"),
        ("queue", "another module has its name"),
    ):
        with pytest.raises(ImportError, match=f"cannot import {name} in the sandbox: {reason}"):
            RecordingSandbox(sandbox=sandbox, paths=[str(tmp_path)], preload=name)


def test_calls_in_a_module_of_a_package(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("SCALE = 3\n")
    source = "from . import SCALE\n\ndef main(x):\n    y = x * SCALE\n    return y"
    (tmp_path / "pack" / "part.py").write_text(source)
    order = Run(source, "main(2)", module="pack.part")
    for preload in (None, "pack.part"):
        with RecordingSandbox(
            sandbox="process" if REFUSAL else "bubblewrap", paths=[str(tmp_path)], preload=preload
        ) as worker:
            [answer] = worker.run([order])
        assert answer.trace.result == "6"
        lines = (source + "\ndef main():\n    return main(2)\n").splitlines(keepends=True)
        assert answer.trace.context.splitlines()[5] == "def main():  # << START_OF_TRACE"
        assert all(frame.line == lines[frame.lineno - 1] for frame in answer.trace.frames)
        events = [frame.event for frame in answer.trace.frames]
        assert events == ["call", "line", "call", "line", "line", "return", "return"]


def test_closing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = RecordingSandbox(sandbox="process" if REFUSAL else "bubblewrap")
    answers = worker.run([Run(TOTAL, "f([1])"), body("while True:\n    pass")])
    next(answers)
    started = time.monotonic()
    worker.close()
    worker.close()
    assert time.monotonic() - started < 4
    assert not os.listdir(tmp_path)
