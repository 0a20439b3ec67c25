"""Suites to record with `pytest --cwm-record`, and what of their traces tests look at."""

import json
import os
import re
import subprocess
import sys

import cwm_core as cwm

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


def run(root, *arguments, plugins=()):
    """Return the output of pytest and that of `tell`."""
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
