"""Reward judgements: a predicted trace against a fresh recording, beside the same judge with `sys.settrace`.

A judgement records the execution, encodes it, and scores a prediction with step rewards. The rivals differ in the
recorder only. One is the shortest that a Python programmer would write. It renders all variables with `repr`, which is
right for the built-in values here. The other is the oracle of the tests, which renders any value as the format demands.
Both give texts to parse, as any tracer in Python does. With the truth recorded once, a judgement is the scoring alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.evaluation import Problem
from cwm_core.rl.tasks import Execution, Reward, Shares, TraceTask
from llama3 import rank_path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle

STEPS = Shares()
PROGRAMS = {
    "loop": "def f(n):\n    total = 0\n    for i in range(n):\n        total += i * i % 7\n    return total\n",
    "sieve": """def f(n):
    primes = []
    for i in range(2, n):
        for p in primes:
            if i % p == 0:
                break
        else:
            primes.append(i)
    return len(primes)
""",
    "calls": """def g(a, b):
    while b:
        a, b = b, a % b
    return a
def f(n):
    total = 0
    for i in range(n):
        total += g(i, n)
    return total
""",
}
CALLS = {
    "short": {"loop": "f(5)", "sieve": "f(6)", "calls": "f(4)"},
    "long": {"loop": "f(20000)", "sieve": "f(400)", "calls": "f(2500)"},
}
QUICK = {"loop": "f(200)", "sieve": "f(40)", "calls": "f(25)"}  # in place of the long calls, where nothing is measured


def with_settrace(code: str, call: str) -> str:
    """Return the text of the frames that `sys.settrace` sees, for programs whose values are built in."""
    source = f"\n{code}\ndef main():\n    return {call}\n"
    lines, compiled = source.splitlines(keepends=True), compile(source, "<program>", "exec")
    names: dict[str, Any] = {}
    exec(compiled, names)
    known: dict[FrameType, dict[str, str]] = {}
    parts: list[str] = []

    def tracer(frame: FrameType, event: str, arg: Any) -> Any:
        code: CodeType = frame.f_code
        if code.co_filename != "<program>":
            return None
        line = lines[frame.f_lineno - 1]
        if event == "return":
            parts.append(f"<|return_sep|><|action_sep|>{line}<|arg_sep|>{json.dumps(repr(arg))}<|frame_sep|>")
            return None
        shown = {name: repr(value) for name, value in frame.f_locals.items()}
        before = known.get(frame, {})
        changed = {name: ".." if before.get(name) == text else text for name, text in shown.items()}
        known[frame] = shown
        parts.append(f"<|{event}_sep|>{json.dumps(changed)}<|action_sep|>{line}<|frame_sep|>")
        return tracer

    sys.settrace(tracer)
    try:
        names["main"]()
    finally:
        sys.settrace(None)
    return "".join(parts)


def parsed(text: str, code: str, call: str) -> cwm.Trace:
    return cwm.Trace.parse(text).trace.with_context(cwm.trace.source_context(code, call))


def with_oracle(code: str, call: str) -> cwm.Trace:
    return parsed("".join(map(oracle.frame_text, oracle.record_source(code, call))), code, call)


RECORDERS: dict[str, Callable[[str, str], cwm.Trace]] = {
    "cwm_core": cwm.record_source,
    "sys.settrace": lambda code, call: parsed(with_settrace(code, call), code, call),
    "sys.settrace oracle": with_oracle,
}


@pytest.fixture(scope="module")
def task() -> TraceTask:
    return TraceTask(cwm.Tokenizer.load(rank_path()), shares=STEPS)


def predictions(task: TraceTask, code: str, call: str) -> list[np.ndarray]:
    """Return a prediction that is right, and one whose last frames are missing."""
    ids = task._tokenizer.encode_trace(cwm.record_source(code, call)).tolist()
    right = ids[len(task.prompt(execution(code, call, cwm.record_source(code, call)))) :]
    return [np.array(right, np.int32), np.array(right[: len(right) * 3 // 4], np.int32)]


def execution(code: str, call: str, trace: cwm.Trace) -> Execution:
    return Execution(Problem("", code, call, trace.result), trace)


@pytest.mark.parametrize("recorder", [*RECORDERS, "cwm_core, recorded once"])
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("length", CALLS)
def test_judge(benchmark: Any, task: TraceTask, length: str, program: str, recorder: str, quick: bool) -> None:
    calls = QUICK if quick and length == "long" else CALLS[length]
    code, call = PROGRAMS[program], calls[program]
    predicted = predictions(task, code, call)
    trace = cwm.record_source(code, call)
    expected = [task.score(execution(code, call, trace), tokens) for tokens in predicted]
    once = execution(code, call, trace)

    def judge() -> list[Reward]:
        rewards = []
        for tokens in predicted:
            item = once if recorder.endswith("once") else execution(code, call, RECORDERS[recorder](code, call))
            rewards.append(task.score(item, tokens))
        return rewards

    benchmark.group = f"reward: {length}, {program}"
    benchmark.extra_info = {"implementation": recorder, "events": 2 * len(trace)}
    rounds = 5 if length == "long" else 50
    assert benchmark.pedantic(judge, rounds=rounds, warmup_rounds=1) == expected
