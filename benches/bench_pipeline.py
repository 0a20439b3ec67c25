"""Run the full pipeline, from running programs to packed batches, compared with the same pipeline in Python.

Both record the same calls, write them in the trace format, tokenize them with Llama-3's vocabulary and pack the
documents into rows of 8,192 tokens with targets, loss mask, position ids and segment bounds. The Python pipeline
uses `sys.settrace`, `repr`, `json`, tiktoken and NumPy (`tests/oracle.py` is its tracer). Ours also writes the shards
to disk, and waits for it. The tokens are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cwm_core as cwm
import numpy as np
import pytest
import workloads
from cwm_core.corpus.generator import generate
from cwm_core.data.traces import encode_for_training
from llama3 import SPECIAL, rank_path, tiktoken_encoding

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle

SEQ_LEN = 8192
# The longest value of a variable is about as long as those of real programs, but in `list_append` and `matrix`.
FUNCTIONS = [workload for workload in workloads.WORKLOADS if workload not in (workloads.list_append, workloads.matrix)]
PROGRAMS = [generate(seed) for seed in range(150)]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def functions_in_python(context: Callable[[Any], str]) -> Iterator[tuple[str, list[oracle.OracleFrame]]]:
    for function in FUNCTIONS:
        yield context(function), oracle.record(function)


def programs_in_python(context: Callable[[Any], str]) -> Iterator[tuple[str, list[oracle.OracleFrame]]]:
    for program in PROGRAMS:
        yield context(program), oracle.record_source(program.code, program.call)


def python_documents(traces: Iterable[tuple[str, list[oracle.OracleFrame]]], encoding: Any) -> Iterator[Any]:
    for context, frames in traces:
        first = f"<|begin_of_text|><|trace_context_start|>{context}<|frame_sep|>{oracle.frame_text(frames[0])}"
        rest = "".join(map(oracle.frame_text, frames[1:])) + "<|end_of_text|>"
        prompt, learned = (encoding.encode(text, allowed_special="all") for text in (first, rest))
        yield np.array(prompt + learned, dtype=np.int32), np.arange(len(prompt) + len(learned)) >= len(prompt)


def pack(documents: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Arrays]:
    """Pack documents in order and cut long ones; a row is returned when the next piece does not fit."""
    row: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for tokens, mask in documents:
        targets, learned = np.append(tokens[1:], 0), np.append(mask[1:], False)
        for start in range(0, len(tokens), SEQ_LEN):
            piece = tuple(array[start : start + SEQ_LEN] for array in (tokens, targets, learned))
            if sum(len(part[0]) for part in row) + len(piece[0]) > SEQ_LEN:
                yield finish(row)
                row = []
            row.append(piece)
    yield finish(row)


def finish(row: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Arrays:
    lengths = [len(part[0]) for part in row]
    if sum(lengths) < SEQ_LEN:
        lengths.append(SEQ_LEN - sum(lengths))
    tokens, targets, mask = (np.concatenate(parts) for parts in zip(*row, strict=True))
    padded = [np.pad(array, (0, SEQ_LEN - len(array))) for array in (tokens, targets, mask)]
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return *padded, positions, np.cumsum([0, *lengths], dtype=np.int32)


def our_way(record: Callable[[], Iterable[cwm.Trace]], tokenizer: cwm.Tokenizer, folder: Path) -> cwm.PackedLoader:
    with cwm.ShardWriter(folder, tokenizer) as writer:
        for trace in record():
            ids, loss_mask, spans = encode_for_training(tokenizer, trace)
            writer.add(ids, loss_mask, spans=spans)
    loader = cwm.PackedLoader(folder, SEQ_LEN, epochs=1)
    for _ in loader:
        pass
    return loader


def our_functions() -> Iterator[cwm.Trace]:
    return map(cwm.record, FUNCTIONS)


def our_programs() -> Iterator[cwm.Trace]:
    return (cwm.record_source(program.code, program.call) for program in PROGRAMS)


WAYS = {"functions": (our_functions, functions_in_python), "programs": (our_programs, programs_in_python)}


@pytest.fixture(scope="module")
def tokenizer():
    return cwm.Tokenizer.load(rank_path(), special_tokens=SPECIAL)


@pytest.fixture(scope="module")
def contexts(request):
    """Return the context of a function or program, which every trace has. It is not measured."""
    functions = {function: trace.context for function, trace in zip(FUNCTIONS, our_functions(), strict=True)}
    programs = {program: trace.context for program, trace in zip(PROGRAMS, our_programs(), strict=True)}
    return {**functions, **programs}.__getitem__


@pytest.mark.parametrize("way", WAYS)
def test_ours(benchmark, tokenizer, tmp_path, way):
    """Run long-running functions, and short programs, in which compilation takes a share of the time on both sides."""
    record, _ = WAYS[way]
    events = sum(map(len, record()))
    folders = (tmp_path / str(number) for number in range(1_000_000))
    benchmark.group = f"pipeline: {way}"
    benchmark.extra_info = {"implementation": "cwm_core", "events": events}
    loader = benchmark(lambda: our_way(record, tokenizer, next(folders)))
    assert loader.stats().tokens == sum(len(tokenizer.encode_trace(trace)) for trace in record())


@pytest.mark.parametrize("way", WAYS)
def test_python(benchmark, tokenizer, contexts, way):
    pytest.importorskip("tiktoken")
    record, record_in_python = WAYS[way]
    encoding = tiktoken_encoding()
    traces = list(record())
    benchmark.group = f"pipeline: {way}"
    benchmark.extra_info = {"implementation": "Python", "events": sum(map(len, traces))}

    def python_way() -> None:
        for _ in pack(python_documents(record_in_python(contexts), encoding)):
            pass

    benchmark.pedantic(python_way, rounds=3, warmup_rounds=1)
    ours = np.concatenate([tokenizer.encode_trace(trace) for trace in traces])
    theirs = [tokens for tokens, _ in python_documents(record_in_python(contexts), encoding)]
    assert np.array_equal(ours, np.concatenate(theirs))
