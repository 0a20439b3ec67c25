"""Recording: events a second beside the empty native hook (the floor), a Python tracer (the oracle), and hunter.

Each workload is a function of this file. The floor and the rivals run the same calls; hunter prints to a null stream.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core._native import call_with_empty_hook

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle


def integer_loop() -> int:
    total = 0
    i = 0
    while i < 3000:
        total += i
        i += 1
    return total


def dict_counting() -> dict[int, int]:
    counts: dict[int, int] = {}
    for i in range(1500):
        key = i * 7 % 13
        counts[key] = counts.get(key, 0) + 1
    return counts


def list_append() -> list[int]:
    items = []
    for i in range(1000):
        items.append(i)
    return items


def string_building() -> str:
    text = ""
    for _ in range(600):
        text += "ab"
    return text


def fibonacci(n: int = 14) -> int:
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)


def exceptions() -> int:
    caught = 0
    for i in range(600):
        try:
            raise ValueError(i)
        except ValueError:
            caught += 1
    return caught


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __repr__(self) -> str:
        return f"Point({self.x}, {self.y})"


def objects() -> int:
    total = 0
    for i in range(300):
        point = Point(i, i + 1)
        total += point.x
    return total


def generator() -> int:
    def numbers(n: int):
        for i in range(n):  # noqa: UP028
            yield i

    total = 0
    for value in numbers(800):
        total += value
    return total


WORKLOADS = [
    integer_loop,
    dict_counting,
    list_append,
    string_building,
    fibonacci,
    exceptions,
    objects,
    generator,
]


def with_hunter(workload: Callable[[], object]) -> None:
    hunter = pytest.importorskip("hunter")
    tracer = hunter.trace(filename=__file__, action=hunter.VarsSnooper(stream=io.StringIO()))
    try:
        workload()
    finally:
        tracer.stop()


RECORDERS: dict[str, Callable[[Callable[[], object]], object]] = {
    "cwm_core": cwm.record,
    "empty native hook": call_with_empty_hook,
    "sys.settrace oracle": oracle.record,
    "hunter": with_hunter,
}


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_record(benchmark, workload: Callable[[], object], recorder: str) -> None:
    benchmark.group = f"record: {workload.__name__}"
    benchmark.extra_info = {"implementation": recorder, "events": len(cwm.record(workload))}
    if recorder == "hunter":
        pytest.importorskip("hunter")
    benchmark(RECORDERS[recorder], workload)
