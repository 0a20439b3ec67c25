"""Test every kind of callable and block: the entry follows the trace format, and the trace equals the oracle."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import cwm_core as cwm
import oracle
import pytest


def add(a: int, b: int = 2) -> int:
    total = a + b
    return total


def steps(n: int) -> Iterator[int]:
    for i in range(n):
        got = yield i
        assert got is None


async def waits(n: int) -> int:
    await asyncio.sleep(0)
    return n


async def ticks(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@logged
def wrapped(a: int) -> int:
    return a + 1


@functools.cache
def cached(a: int) -> int:
    return a + 1


@functools.singledispatch
def dispatched(a: object) -> str:
    return "object"


@dispatched.register
def _(a: int) -> str:
    return "int"


class Counter:
    made = 0

    def __init__(self, start: int) -> None:
        self.count = start

    def __repr__(self) -> str:
        return f"Counter({self.count})"

    def __call__(self, by: int) -> int:
        self.count += by
        return self.count

    def method(self, by: int) -> int:
        return self.count - by

    @classmethod
    def from_class(cls, start: int) -> Counter:
        return cls(start)

    @staticmethod
    def static(a: int) -> int:
        return a * 2


# The function, its arguments, the line that the first frame is on, and the result.
ENTRIES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str, str | None]] = {
    "function": (add, (1,), "def add(a: int, b: int = 2) -> int:\n", "3"),
    "lambda": (lambda a: a, (1,), '    "lambda": (lambda a: a, (1,), ', "1"),
    "generator": (steps, (2,), "def steps(n: int) -> Iterator[int]:\n", None),
    "coroutine": (waits, (2,), "async def waits(n: int) -> int:\n", "2"),
    "async generator": (ticks, (2,), "", None),
    "wrapper": (wrapped, (1,), "    @functools.wraps(function)\n", "2"),
    "dispatch": (dispatched, (1,), "@dispatched.register\n", "'int'"),
    "partial": (functools.partial(functools.partial(add, 1), b=5), (), "def add(", "6"),
    "bound method": (Counter(5).method, (1,), "    def method(", "4"),
    "class method": (Counter.from_class, (1,), "    @classmethod\n", "Counter(1)"),
    "static method": (Counter.static, (1,), "    @staticmethod\n", "2"),
    "class": (Counter, (3,), "    def __init__(", "Counter(3)"),
}


@pytest.mark.filterwarnings("ignore:no frames were recorded")  # of the async generator
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_equal_the_oracle(name: str) -> None:
    function, args, line, result = ENTRIES[name]
    recorder = cwm.Recorder(scope=[__file__])
    trace = recorder.record(function, *args)
    expected = oracle.trace(oracle.Tracer(__file__.__eq__), functools.partial(function, *args))
    ours = [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in trace.frames]
    assert ours == expected
    if line:
        assert trace.frames[0].event == "call" and trace.frames[0].line.startswith(line)
    if result is not None:
        assert trace.result == result
    # The scope of the default is found through every kind of wrapping.
    if name != "dispatch":
        assert cwm.record(function, *args).frames[:] == trace.frames[:]


def test_a_callable_object() -> None:
    trace = cwm.record(Counter(1), 2)
    assert trace.result == "3" and trace.frames[0].locals == {"self": "Counter(1)", "by": "2"}


def test_a_cache_hit_records_nothing() -> None:
    cached.cache_clear()
    assert len(cwm.record(cached, 1)) == 3
    with pytest.warns(RuntimeWarning, match="no frames were recorded"):
        trace = cwm.record(cached, 1)
    assert len(trace) == 0 and trace.result == "2"


def test_an_async_generator_is_its_own_result() -> None:
    with pytest.warns(RuntimeWarning, match="no frames were recorded"):
        trace = cwm.record(ticks, 2)
    assert len(trace) == 0 and trace.result == "<async_generator object ticks>"


def test_generators_and_coroutines_end_where_they_should() -> None:
    assert [f.arg for f in cwm.record(steps, 2).frames if f.event == "return"] == ["0", "1", "None"]
    trace = cwm.record(waits, 3)
    assert [f.arg for f in trace.frames if f.event == "return"] == ["None", "3"]


def test_a_module(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("x = 1\ndef f():\n    return x\ny = f()\n")
    trace = cwm.Recorder().record_file(script)
    assert [f.event for f in trace.frames] == ["call", "line", "line", "line", "call", "line", "return", "return"]
    assert trace.frames[3].locals == {"x": "..", "f": "<function f>"}


def test_a_block_has_a_trace_for_each_activation() -> None:
    it = steps(3)
    next(it)
    with cwm.Recorder() as traces:
        add(1)
        next(it)
        wrapped(1)
        asyncio.run(waits(1))
        list(map(add, [1, 2]))
    entered = [trace.frames[0].line for trace in traces]
    assert len(traces) == 7
    assert [len(trace) for trace in traces][:1] == [4]
    assert entered[1] == "        got = yield i\n" and entered[0] == entered[5] == entered[6]
    assert sys.gettrace() is None


def test_a_generator_that_began_before_the_block() -> None:
    it = steps(2)
    with cwm.Recorder() as traces:
        values = list(it)
    assert values == [0, 1]
    assert [trace.frames[0].event for trace in traces] == ["call"] * 3
