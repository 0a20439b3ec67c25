"""Test code objects that are created and freed during a recording, at addresses that are reused."""

from __future__ import annotations

import collections
import itertools
import marshal
import operator
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import cwm_core as cwm
import pytest
from cwm_core._native import Recording

ROUNDS = 300


def function(n: int, file: str = __file__) -> Callable[[int], Any]:
    """A new function ``f`` with a variable ``v{n}``; its code object is as large as those of the others."""
    namespace: dict[str, Any] = {}
    exec(compile(f"def f(a):\n    v{n:03} = a * 2\n    return v{n:03}\n", file, "exec"), namespace)
    return namespace.pop("f")


def returns_of_f(trace: cwm.Trace) -> list[tuple[dict[str, str], str]]:
    """The variables before each return of ``f``, and the value."""
    return [
        (before.locals, frame.arg)
        for before, frame in itertools.pairwise(trace.frames)
        if frame.event == "return" and before.locals and "a" in before.locals
    ]


def expected(numbers: range) -> list[tuple[dict[str, str], str]]:
    """Return the variables, with unchanged ones as the previous step showed them."""
    return [({"a": "..", f"v{n:03}": str(n * 2)}, str(n * 2)) for n in numbers]


def test_an_address_used_again() -> None:
    addresses: list[int] = []

    def program() -> None:
        for n in range(ROUNDS):
            f = function(n)
            addresses.append(id(f.__code__))
            f(n)
            del f

    assert returns_of_f(cwm.record(program)) == expected(range(ROUNDS))
    assert len(set(addresses)) < ROUNDS / 2


def test_an_address_used_again_in_and_out_of_scope() -> None:
    addresses: dict[bool, set[int]] = {True: set(), False: set()}

    def program() -> None:
        for n in range(ROUNDS):
            in_scope = n % 3 == 0
            f = function(n, __file__ if in_scope else "<elsewhere>")
            addresses[in_scope].add(id(f.__code__))
            f(n)
            del f

    assert returns_of_f(cwm.record(program)) == expected(range(ROUNDS))[::3]
    assert addresses[True] & addresses[False]


def test_an_address_used_again_with_no_other_event_between() -> None:
    stored = [marshal.dumps(function(n).__code__) for n in range(ROUNDS)]

    def program() -> None:
        functions = map(FunctionType, map(marshal.loads, stored), itertools.repeat({}))
        collections.deque(map(operator.call, functions, range(ROUNDS)), maxlen=0)

    assert returns_of_f(cwm.record(program)) == expected(range(ROUNDS))


def test_an_address_used_again_after_a_recording_and_in_the_next_one() -> None:
    kept = function(0)
    addresses: list[int] = []
    for n in range(1, ROUNDS):
        f = function(n)
        addresses.append(id(f.__code__))
        assert returns_of_f(cwm.record(lambda f=f, n=n: (kept(0), f(n)))) == [
            *expected(range(1)),
            *expected(range(n, n + 1)),
        ]
        del f
    assert len(set(addresses)) < ROUNDS / 2


def test_an_address_used_again_while_the_recorder_runs_a_repr() -> None:
    """The code object that was recorded last dies in the midst of an event, and another takes its place."""
    functions = [function(0)]

    class Replaces:
        def __repr__(self) -> str:
            functions.clear()
            functions.append(function(len(addresses)))
            return "R"

    addresses: list[int] = []

    def program() -> None:
        for n in range(ROUNDS):
            addresses.append(id(functions[0].__code__))
            functions[0](n)
            r = Replaces()
            del r

    assert returns_of_f(cwm.record(program)) == expected(range(ROUNDS))
    assert len(set(addresses)) < ROUNDS / 2


def test_threads() -> None:
    """Each thread records, and runs and drops functions that the others made."""
    shared: list[Callable[[int], Any]] = []
    traces: dict[int, list[tuple[dict[str, str], str]]] = {}
    wanted: dict[int, list[tuple[dict[str, str], str]]] = {}
    interval = sys.getswitchinterval()

    def program(thread: int) -> None:
        for n in range(ROUNDS):
            shared.append(function(n))
            f = shared.pop(0)
            wanted[thread] += [({"a": "..", f.__code__.co_varnames[1]: str(n * 2)}, str(n * 2))]
            f(n)
            del f

    def work(thread: int) -> None:
        wanted[thread] = []
        traces[thread] = returns_of_f(cwm.record(program, thread))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert traces == wanted and len(traces) == 4


def test_a_recording_that_is_dropped_while_it_runs() -> None:
    """Its code objects die after it."""
    f = function(0)
    recording = Recording([__file__], [])
    recording.start()
    f(0)
    del recording
    sys.settrace(None)
    del f
    assert returns_of_f(cwm.record(lambda: function(1)(1))) == expected(range(1, 2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child() -> None:
    def program() -> int:
        f = function(0)
        f(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            del f
            os._exit(sum(function(n)(n) for n in range(10)))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert cwm.record(program).result == str(sum(range(0, 20, 2)))


def test_code_objects_that_live_until_the_interpreter_ends() -> None:
    program = """
import sys, atexit
import cwm_core as cwm
from cwm_core._native import Recording

class AtExit:
    def __del__(self):
        exec(compile("def g(a):\\n    return a\\ng(1)", __file__, "exec"))

recording = Recording([__file__], [])
recording.start()
exec(compile("def f(a):\\n    return a\\nf(1)", __file__, "exec"), globals())
sys.kept = f, AtExit()
cwm.kept = AtExit()
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", f"__file__ = 'p'\n{program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
