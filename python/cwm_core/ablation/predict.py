"""Predict the outputs of programs, directly or through a trace, and repairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..inference import Engine
from ..inference.requests import Request
from ..machines import Sandbox, literals_equal
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import END_OF_TEXT
from ..trace import Trace
from .recipe import FORMS
from .repair import RepairTask, are_solved, repair_document, repair_prompt, repaired

# A prediction may be this much longer than the right one. Models that have learned little seldom end by themselves.
_LONGER = 1.5
_MORE = 16


class Answers(NamedTuple):
    """The answers of a model to the problems of a set."""

    right: list[int]
    """1 for each right answer, 0 for each wrong one."""
    generated: list[int]
    """Number of tokens that the model generated for each answer."""
    sizes: list[int]
    """Frames of each execution, or lines of each program to repair."""


def predict_outputs(engine: Engine, tokenizer: Tokenizer, traces: Sequence[Trace], form: str) -> Answers:
    """Predict the results of recorded programs in a form.

    In the form "outputs", the prompt ends before the value that `main()` returns. In the others, it ends after the mark
    of the second frame, which separates the forms of a model that has learned two. An answer is right if the whole
    prediction parses, ends, and returns the real value.
    """
    prompts, rests = [], []
    for trace in traces:
        ids, parts, _ = tokenizer.trace_tokens(trace.coarsen(**FORMS[form]))
        end = int(parts[-1, 2, 0]) if form == "outputs" else int(parts[0, :, 1].max()) + 2
        prompts.append(ids[:end])
        rests.append(len(ids) - end)
    answers = _generate(engine, tokenizer, prompts, rests)
    right = [
        _is_right(tokenizer, np.concatenate([prompt, answer]), trace)
        for prompt, answer, trace in zip(prompts, answers, traces, strict=True)
    ]
    return Answers(right, [len(answer) for answer in answers], [len(trace) for trace in traces])


def predict_repairs(engine: Engine, tokenizer: Tokenizer, tasks: Sequence[RepairTask], sandbox: Sandbox) -> Answers:
    """Repair programs. An answer is right if the repaired program returns the right values when it runs."""
    prompts = [repair_prompt(tokenizer, task) for task in tasks]
    rests = [
        len(repair_document(tokenizer, task)[0]) - len(prompt) for task, prompt in zip(tasks, prompts, strict=True)
    ]
    answers = _generate(engine, tokenizer, prompts, rests)
    programs = [repaired(tokenizer, task, answer.tolist()) for task, answer in zip(tasks, answers, strict=True)]
    right = [int(solved) for solved in are_solved(tasks, programs, sandbox)]
    return Answers(right, [len(answer) for answer in answers], [task.code.count("\n") for task in tasks])


def _is_right(tokenizer: Tokenizer, ids: NDArray[np.int32], real: Trace) -> int:
    parsed = tokenizer.parse_trace(ids)
    result = parsed.trace.result if parsed.complete else None
    return int(result is not None and literals_equal(str(real.result), result))


def _generate(
    engine: Engine, tokenizer: Tokenizer, prompts: Sequence[NDArray[np.int32]], rests: Sequence[int]
) -> list[NDArray[np.int32]]:
    """Continue each prompt greedily, for the number of tokens of the right answer and some more."""
    stop = [tokenizer.special_tokens[END_OF_TEXT]]
    handles = [
        engine.submit(Request(prompt, int(rest * _LONGER) + _MORE, stop))
        for prompt, rest in zip(prompts, rests, strict=True)
    ]
    while engine.unfinished:
        engine.step()
    return [handle.generation().ids for handle in handles]
