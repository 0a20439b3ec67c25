"""Measure the cost of the grammar constraint per token, with Llama-3's vocabulary on every token of recorded traces.

A step computes the allowed tokens as an array of booleans, and advances past the next token. Two plain alternatives
give the same answers: trying each token of the vocabulary, and parsing the whole text again, which decides only for one
token whether it was well formed. A step on a GPU takes 10 ms and more at 32 B parameters.
`median_us` and `p99_us` in the extra info are those of single steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cwm_core as cwm
import numpy as np
import pytest
import texts
from cwm_core.corpus.generator import generate
from llama3 import rank_path

pytest.importorskip("torch")

from cwm_core.inference import TraceConstraint, TraceGrammar

Step = Callable[[TraceConstraint, list[int], int], object]


@pytest.fixture(scope="module")
def tokenizer() -> cwm.Tokenizer:
    return cwm.Tokenizer.load(rank_path())


@pytest.fixture(scope="module")
def traces(quick: bool) -> list[cwm.Trace]:
    """Return traces of short random programs and of a workload of a thousand frames."""
    programs = [generate(seed) for seed in range(3)]
    short = [cwm.record_source(program.code, program.call) for program in programs]
    return short if quick else [*short, *texts.recorded_workloads()[:1]]


def test_compile(benchmark, tokenizer):
    """Compile the vocabulary, once for all contexts."""
    benchmark.group = "grammar: compile the vocabulary"
    benchmark.extra_info = {"implementation": "cwm_core"}
    benchmark.pedantic(lambda: TraceGrammar(tokenizer), rounds=3)


def test_compile_context(benchmark, tokenizer):
    """Compile the lines of a context of a thousand lines."""
    benchmark.group = "grammar: compile a context"
    benchmark.extra_info = {"implementation": "cwm_core"}
    context = "".join(f"    value_{i} = compute({i}, value_{i - 1})\n" for i in range(1000))
    grammar = TraceGrammar(tokenizer)
    benchmark.pedantic(lambda: grammar.for_context(context), rounds=10, warmup_rounds=1)


def one_by_one(constraint: TraceConstraint, ids: list[int], at: int) -> object:
    return [constraint.allows(token) for token in range(128_256)]


@pytest.mark.parametrize("lines", ["any lines", "lines of the source"])
@pytest.mark.parametrize("way", ["cwm_core", "each token by itself", "parsing all again"])
def test_step(benchmark, tokenizer, traces, lines, way):
    """Take one step at a time along the tokens of each trace; for the slow alternatives, one step in 97."""
    steps: dict[str, Step] = {
        "cwm_core": lambda constraint, ids, at: constraint.allowed(),
        "each token by itself": one_by_one,
        "parsing all again": lambda constraint, ids, at: tokenizer.parse_trace(ids[: at + 1]),
    }
    step, every = steps[way], 1 if way == "cwm_core" else 97
    grammar, seconds = TraceGrammar(tokenizer), []

    def along_all() -> None:
        for trace in traces:
            ids = tokenizer.encode_trace(trace)
            context = tokenizer.trace_tokens(trace).context_length
            held = grammar if lines == "any lines" else grammar.for_context(trace.context)
            constraint = held.constraint(ids[:context])
            for at in range(context, len(ids)):
                start = time.perf_counter()
                if at % every == 0:
                    step(constraint, ids, at)
                constraint.advance(int(ids[at]))
                if at % every == 0:
                    seconds.append(time.perf_counter() - start)

    benchmark.group = f"grammar: a step, {lines}"
    benchmark.pedantic(along_all, rounds=1)
    median, p99 = np.percentile(seconds, [50, 99]) * 1e6
    benchmark.extra_info.update(implementation=way, tokens=len(seconds), median_us=median, p99_us=p99)
