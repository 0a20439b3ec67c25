"""Runs a module of CPython's own ``test`` package test by test, in a process of its own.

``python cpython_suite.py MODULE plain|empty|recorded`` prints the outcome of each test as JSON;
``python cpython_suite.py MODULE verdicts`` records each test, twice with the oracle too, and prints how they compare.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import select
import signal
import sys
import unittest
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cwm_core as cwm
import oracle
from cwm_core._native import call_with_empty_hook

MAX_VALUE_CHARS = 200
MAX_FRAMES = 20_000
SECONDS = 20.0

Frames = list[oracle.OracleFrame]


class Outcomes(unittest.TestResult):
    """The outcome of each test by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.by_id: dict[str, str] = {}

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self.by_id[test.id()] = "passed"

    def addSkip(self, test: Any, reason: str) -> None:
        self.by_id[test.id()] = "skipped"

    def addFailure(self, test: Any, err: Any) -> None:
        self.by_id[test.id()] = "failed"

    def addError(self, test: Any, err: Any) -> None:
        self.by_id[test.id()] = "error"

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self.by_id[test.id()] = "expected failure"

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.by_id[test.id()] = "unexpected success"

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.by_id[test.id()] = "failed"


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


class Run(NamedTuple):
    """Outcome of a test, and its frames."""

    outcome: dict[str, str]
    frames: Frames
    disturbed: bool = False


def outcome_of(test: Any, call: Callable[[Callable[[], Any]], Any]) -> dict[str, str]:
    run = test.run
    test.run = lambda result: call(lambda: run(result))
    outcomes = Outcomes()
    unittest.TestSuite([test]).run(outcomes)
    return outcomes.by_id


def plainly(file: str, test: Any) -> Run:
    return Run(outcome_of(test, lambda run: run()), [])


def by_empty_hook(file: str, test: Any) -> Run:
    return Run(outcome_of(test, call_with_empty_hook), [])


def by_oracle(file: str, test: Any) -> Run:
    tracer = oracle.Tracer(file.__eq__, MAX_VALUE_CHARS, MAX_FRAMES)
    outcome = outcome_of(test, lambda run: oracle.call_traced(tracer, run))
    return Run(outcome, tracer.frames, tracer.disturbed)


def by_oracle_elsewhere(file: str, test: Any) -> Run:
    """The oracle with objects elsewhere, another depth of the stack, another count until the next garbage collection:
    what depends on them gets no verdict."""
    ballast = [[object()] for _ in range(777)]
    try:
        return by_oracle(file, test)
    finally:
        del ballast


def recorded(file: str, test: Any) -> Run:
    return Run(outcome_of(test, cwm.Recorder(scope=[file], max_value_chars=MAX_VALUE_CHARS).record), [])


def by_recorder(file: str, test: Any) -> Run:
    recorder = cwm.Recorder(scope=[file], max_value_chars=MAX_VALUE_CHARS, max_frames=2 * MAX_FRAMES)
    outcome = outcome_of(test, recorder.record)
    frames = recorder.last.frames if recorder.last else []
    return Run(outcome, [oracle.OracleFrame(f.event, f.locals, f.line, f.arg) for f in frames])


def in_a_child(function: Callable[[str, Any], Any], file: str, test: Any) -> Any:
    """Return the result of the function from a child process, which leaves nothing behind; a text on failure."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), open(writer, "wb") as pipe:
            pipe.write(pickle.dumps(function(file, test)))
        os._exit(0)
    os.close(writer)
    data = bytearray()
    with open(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], SECONDS)[0]:
            if not (part := pipe.read(1 << 20)):
                break
            data += part
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timed out"
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return pickle.loads(data) if data and status == 0 else f"died: {status}"


def verdict(file: str, test: Any) -> str:
    """``agree``, ``differ: ...``, or ``none: ...`` with the reason why there is no verdict."""
    expected = in_a_child(by_oracle, file, test)
    if isinstance(expected, str):
        return f"none: the oracle {expected}"
    if expected.disturbed:
        return "none: the oracle was disturbed"
    if in_a_child(plainly, file, test) != Run(expected.outcome, []):
        return "none: the test ends otherwise under the oracle"
    if in_a_child(by_oracle_elsewhere, file, test) != expected:
        return "none: two runs of the oracle differ"
    ours = in_a_child(by_recorder, file, test)
    if isinstance(ours, str):
        return f"differ: the recorder {ours}"
    if ours.outcome != expected.outcome:
        return f"differ: outcome {ours.outcome}, the oracle {expected.outcome}"
    for i, (mine, theirs) in enumerate(zip(ours.frames, expected.frames, strict=False)):
        if oracle.without_addresses(mine) != oracle.without_addresses(theirs):
            return f"differ: frame {i} of {len(expected.frames)}: {mine} is not {theirs}"
    if len(ours.frames) != len(expected.frames):
        return f"differ: {len(ours.frames)} frames, the oracle {len(expected.frames)}"
    return "agree"


def main(module: str, mode: str) -> dict[str, str]:
    suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{module}")
    file = sys.modules[f"test.{module}"].__file__
    tests = list(tests_of(suite))
    if mode == "verdicts":
        return {test.id(): verdict(file, test) for test in tests}
    run = {"plain": plainly, "empty": by_empty_hook, "recorded": recorded}[mode]
    outcomes: dict[str, str] = {}
    for test in tests:
        done = in_a_child(run, file, test)
        outcomes |= {test.id(): done} if isinstance(done, str) else done.outcome
    return outcomes


if __name__ == "__main__":
    printed = os.dup(1)
    with contextlib.redirect_stdout(io.StringIO()):
        result = main(*sys.argv[1:])
    with open(printed, "w") as out:
        json.dump(result, out)
