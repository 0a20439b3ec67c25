"""Coarsen traces: the time of each level, compared with writing the same trace as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cwm_core as cwm
import pytest

CODE = """
def parity(n):
    while n > 1:
        n -= 2
    return n
def f(n):
    total = 0
    seen = []
    for i in range(n):
        total += parity(i % 9)
        seen.append(total % 7)
    return seen
"""

LEVELS: dict[str, dict[str, Any]] = {
    "calls only": {"calls_only": True},
    "depth 2": {"max_depth": 2},
    "loop budget 2, 1": {"loop_budget": (2, 1)},
    "changes only": {"changes_only": True},
    "all but calls only": {"max_depth": 2, "loop_budget": (2, 1), "changes_only": True},
}


@pytest.fixture(scope="module")
def trace() -> cwm.Trace:
    return cwm.record_source(CODE, "f(1500)")


def measure(benchmark: Any, trace: cwm.Trace, level: str, function: Callable[[], object]) -> None:
    benchmark.group = f"levels: {level}"
    benchmark.extra_info["events"] = len(trace)
    benchmark(function)


@pytest.mark.parametrize("level", LEVELS)
def test_coarsen(benchmark, trace: cwm.Trace, level: str) -> None:
    benchmark.extra_info["implementation"] = "cwm_core"
    measure(benchmark, trace, level, lambda: trace.coarsen(**LEVELS[level]))


@pytest.mark.parametrize("level", LEVELS)
def test_to_text(benchmark, trace: cwm.Trace, level: str) -> None:
    """Write a full trace as text: a yardstick rather than an alternative."""
    benchmark.extra_info["implementation"] = "to_text of the full trace"
    measure(benchmark, trace, level, trace.to_text)
