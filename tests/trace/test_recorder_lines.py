"""Code whose lines no compiler made: a recording shows the line that ``frame.f_lineno`` is for a plain tracer."""

from __future__ import annotations

import functools
import marshal
import opcode
import struct
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import cwm_core as cwm
import oracle
from hypothesis import given
from hypothesis import strategies as st

LARGEST = 2**31 - 1


def loop(n: int) -> str:
    text = ""
    for i in range(n):
        text += "ab"[i % 2]

    return text


def handler(n: int) -> int:
    try:
        both = [n, n]
        raise ValueError(both)
    except ValueError as error:
        shown = str(error)
    finally:
        last = n + 1
    return len(shown) + last


def closure(n: int) -> Any:
    def inner(k: int) -> int:
        return k + n

    class Body:
        twice = n * 2

    return (
        [inner(k) for k in range(2)],
        Body.twice,
    )


def generator(n: int) -> Iterator[int]:
    while n:
        n -= 1
        yield n


def raising(n: Any) -> Any:
    m = n + 1
    return m.missing


FUNCTIONS = [loop, handler, closure, generator, raising]


class Tracer(oracle.Tracer):
    """Keeps the numbers of the lines too; None for 0, which is none."""

    def __init__(self) -> None:
        super().__init__(__file__.__eq__)
        self.numbers: list[int | None] = []

    def shown(self, frame: Any, event: str, arg: Any) -> oracle.OracleFrame:
        self.numbers.append(frame.f_lineno or None)
        return super().shown(frame, event, arg)


def copied(code: CodeType, first_line: int) -> CodeType:
    """A copy with this ``co_firstlineno``: marshal makes code that ``code.replace`` refuses."""
    mark = 0x13572468
    data = marshal.dumps(code.replace(co_firstlineno=mark))
    return marshal.loads(data.replace(struct.pack("<i", mark), struct.pack("<i", first_line)))


def assert_equals_the_oracle(code: CodeType, first_line: int) -> None:
    tracer, recorder = Tracer(), cwm.Recorder()
    # From 3.12 on, the second run of a code object can have other events than the first. 3.11 reads the lines of
    # instructions past the end of the line table from memory that nobody wrote, and keeps them in the code object.
    traced = copied(code, first_line)
    recorded = traced if sys.version_info < (3, 12) else copied(code, first_line)
    expected = oracle.trace(tracer, functools.partial(FunctionType(traced, globals()), 3))
    frames = recorder.record(FunctionType(recorded, globals()), 3).frames
    assert [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in frames] == expected
    assert [f.lineno for f in frames] == tracer.numbers
    assert expected


def entries(code: CodeType) -> list[bytes]:
    """The entries of the line table: each begins with a byte of 128 or more (``Objects/locations.md`` of CPython)."""
    starts = [i for i, byte in enumerate(code.co_linetable) if byte & 0x80]
    return [code.co_linetable[i:j] for i, j in zip(starts, [*starts[1:], None], strict=True)]


def moved(by: int, units: int) -> bytes:
    """An entry without columns for as many units of code, ``by`` lines after the one before."""
    number, entry = (-by << 1) | 1 if by < 0 else by << 1, bytearray([0x80 | 13 << 3 | units - 1])
    while number >= 0x40:
        entry.append(number & 0x3F | 0x40)
        number >>= 6
    return bytes([*entry, number])


def table(parts: list[bytes], code: CodeType) -> bytes:
    """A line table that does not go beyond the code: 3.11 itself writes past its memory then."""
    left, taken = len(code.co_code) // 2, b""
    for part in parts:
        left -= (part[0] & 7) + 1
        if left < 0:
            break
        taken += part
    return taken


def longer(function: Callable[..., Any], by: int) -> CodeType:
    """Its code after ``by`` instructions that do nothing, with the line table as it was."""
    code = function.__code__
    return code.replace(co_code=bytes([opcode.opmap["NOP"], 0]) * by + code.co_code)


def test_bytecode_longer_than_its_line_table() -> None:
    for by in (1, 2, 7, 40):
        for function in (loop, generator, raising):
            assert_equals_the_oracle(longer(function, by), function.__code__.co_firstlineno)


lines = st.sampled_from([0, 1, -1, 10, -10, 1 << 15, -(1 << 15), 1 << 20, -(1 << 20), 1 << 30, -(1 << 30)])
parts = st.sampled_from([entry for function in FUNCTIONS for entry in entries(function.__code__)])
no_line = st.integers(0, 7).map(lambda units: bytes([0x80 | 15 << 3 | units]))
tables = st.lists(parts | st.builds(moved, lines, st.integers(1, 8)) | no_line, max_size=60)
first_lines = st.integers(-2, 100) | st.sampled_from([LARGEST, LARGEST - 3, -LARGEST, -LARGEST - 1, 1 << 30, 1 << 20])


@given(function=st.sampled_from(FUNCTIONS), parts=tables, first_line=first_lines)
def test_any_line_table(function: Callable[..., Any], parts: list[bytes], first_line: int) -> None:
    code = function.__code__
    assert_equals_the_oracle(code.replace(co_linetable=table(parts, code)), first_line)
