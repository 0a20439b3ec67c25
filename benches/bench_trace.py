"""Convert traces to text and bytes and back, compared with Python's json on the same frames.

json writes and reads the frames as lists of event, variables, line and value, in one call of its C code. `bytes` in the
extra info is the text written or read; for the stored form, which is compressed, the text form that it stands for.
"""

from __future__ import annotations

import json

import cwm_core as cwm
import pytest

PROGRAMS = {
    "integers": """
def f(n):
    total = 0
    i = 0
    while i < n:
        total += i
        i += 1
    return total
""",
    "long values": """
def f(n):
    seen = []
    text = ""
    for i in range(n):
        seen.append(i * 37 % 1009)
        text += "abcde "
    return seen
""",
    "non-ASCII values": """
def f(n):
    text = ""
    for i in range(n):
        text += "naïve Größe €42 日本語 plain words "
    return text
""",
}
IMPLEMENTATIONS = ["cwm_core", "json"]


@pytest.fixture(scope="module", params=PROGRAMS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trace(name: str) -> cwm.Trace:
    trace = cwm.record_source(PROGRAMS[name], "f(3000)")
    assert trace.truncated is None and len(trace) > 6000
    return trace


@pytest.fixture(scope="module")
def rows(trace: cwm.Trace) -> list[object]:
    return [[frame.event, frame.locals, frame.line, frame.arg] for frame in trace.frames]


def prepare(benchmark, path: str, implementation: str, size: int, trace: cwm.Trace) -> None:
    benchmark.group = f"trace: {path}"
    benchmark.extra_info = {"implementation": implementation, "bytes": size, "events": len(trace)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_to_text(benchmark, name: str, trace: cwm.Trace, rows: list[object], implementation: str) -> None:
    write = {"cwm_core": trace.to_text, "json": lambda: json.dumps(rows)}[implementation]
    prepare(benchmark, f"to text, {name}", implementation, len(write()), trace)
    benchmark(write)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_parse(benchmark, name: str, trace: cwm.Trace, rows: list[object], implementation: str) -> None:
    text = {"cwm_core": trace.to_text(), "json": json.dumps(rows)}[implementation]
    prepare(benchmark, f"parse, {name}", implementation, len(text), trace)
    benchmark({"cwm_core": cwm.Trace.parse, "json": json.loads}[implementation], text)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_to_bytes(benchmark, name: str, trace: cwm.Trace, rows: list[object], implementation: str) -> None:
    write = {"cwm_core": trace.to_bytes, "json": lambda: json.dumps(rows).encode()}[implementation]
    prepare(benchmark, f"to bytes, {name}", implementation, len(trace.to_text()), trace)
    benchmark.extra_info["stored_bytes"] = len(write())
    benchmark(write)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_from_bytes(benchmark, name: str, trace: cwm.Trace, rows: list[object], implementation: str) -> None:
    data = {"cwm_core": trace.to_bytes(), "json": json.dumps(rows).encode()}[implementation]
    prepare(benchmark, f"from bytes, {name}", implementation, len(trace.to_text()), trace)
    benchmark({"cwm_core": cwm.Trace.from_bytes, "json": json.loads}[implementation], data)
