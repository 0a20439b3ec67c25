"""Record random whole programs: traces equal those of the oracle, and the programs behave as without a recorder."""

from __future__ import annotations

import contextlib
import io
import re
import resource
import signal
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cwm_core as cwm
import oracle
from children import in_a_child
from cwm_core._native import call_with_empty_hook
from hypothesis import assume, given
from programs import programs

CALL = "f(1, [2], 's')"


class Outcome(NamedTuple):
    """Return the behavior of a program: its final value or exception, and its output."""

    end: str
    printed: str


def told(end: str, printed: io.StringIO) -> Outcome:
    return Outcome(*(re.sub("0x[0-9a-fA-F]+", "0x", text) for text in (end, printed.getvalue())))


def outcome(code: str, call: Callable[[Callable[[], Any]], Any]) -> Outcome:
    """Return the behavior of the program `code`, whose `main` is run by `call`."""
    with oracle.running_main(code, CALL) as main, contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            end = "returned " + oracle.render(call(main))
        except Exception as error:
            end = "raised " + oracle.render(error)
    return told(end, printed)


def plainly(code: str) -> Outcome:
    signal.alarm(5)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
    return outcome(code, lambda main: main())


def traced(code: str) -> tuple[list[oracle.OracleFrame], Outcome]:
    tracer = oracle.Tracer("<cwm>".__eq__, max_frames=3000)
    end = outcome(code, lambda main: oracle.call_traced(tracer, main))
    if tracer.disturbed:
        raise oracle.NoVerdictError
    return [oracle.without_addresses(frame) for frame in tracer.frames], end


def recorded(code: str) -> tuple[list[oracle.OracleFrame], Outcome]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trace = cwm.Recorder(max_bytes=1 << 26).record_source(code, CALL)
    assume(trace.truncated != "max_bytes")  # its values grow until memory ends
    frames = [oracle.without_addresses(oracle.OracleFrame(f.event, f.locals, f.line, f.arg)) for f in trace.frames]
    end = f"raised {trace.exception}" if trace.result is None else f"returned {trace.result}"
    return frames, Outcome(end, re.sub("0x[0-9a-fA-F]+", "0x", printed.getvalue()))


@given(code=programs)
def test_random_programs(code: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a literal that is called, a coroutine that nobody awaits
        try:
            compile(code, "<cwm>", "exec", dont_inherit=True)
        except SyntaxError:
            assume(False)
        plain = in_a_child(plainly, code)
        assume(plain is not None)
        frames, end = recorded(code)
        assert end == plain or end == outcome(code, call_with_empty_hook)
        expected = in_a_child(traced, code)
        assume(expected is not None and expected[1] == plain)
        if frames != expected[0]:
            assume(expected == in_a_child(traced, code))
            # A Python tracer keeps values alive, on 3.11 and 3.12 in the dicts it asks for: a dropped generator ends
            # elsewhere.
            assume(not any(frame.arg == "GeneratorExit()" for frame in [*frames, *expected[0]]))
            # Two objects can have one address, one after the other: then a string that holds it is unchanged, or not.
            assume(
                not any("0x" in text for frame in frames for text in [*(frame.locals or {}).values(), frame.arg or ""])
            )
        assert frames == expected[0]
