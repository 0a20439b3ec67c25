"""Tasks of repair: a broken program and a call that fails, to which a model answers with a line and its replacement."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..corpus.generator import GeneratedProgram
from ..corpus.inputs.mutation import mutate
from ..environments.foraging.mutations import Mutation, find_mutations
from ..inference import trace_prompt
from ..machines import Sandbox, literals_equal
from ..machines.programs import evaluate_call, in_parallel
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import ACTION_SEP, ARG_SEP, END_OF_TEXT, EVENT_SEPS, FRAME_SEP
from ..trace import Recorder, Trace

_KINDS = ("flip-operator", "swap-variables", "swap-arguments")
# Limits of a broken program: it may no longer end, and then may grow.
_MAX_FRAMES = 200
_MAX_BYTES = 1 << 18
_MAX_SECONDS = 2.0
# Calls besides the failing one that a repaired program must return from as the original does, and tries to find them.
_CHECKS = 2
_TRIES = 6


@dataclass(frozen=True)
class RepairTask:
    """A program with one broken line, and calls with the values that the original returns."""

    code: str
    """The broken program."""
    line: str
    """The broken line, with its newline."""
    fixed: str
    """The same line of the original."""
    calls: tuple[str, ...]
    """Calls. The broken program does not return the value of the first one, which the model sees."""
    values: tuple[str, ...]
    """`repr` of what the original returns for each call."""

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Return the task for which an object of `dataclasses.asdict` stands."""
        return cls(row["code"], row["line"], row["fixed"], tuple(row["calls"]), tuple(row["values"]))


def break_program(program: GeneratedProgram, trace: Trace, rng: random.Random) -> RepairTask | None:
    """Change a program in one line so that its call fails; return None if no change does that.

    Programs with generators stay as they are, because Python reports a limit of the recorder that ends one.

    Args:
        program: A program.
        trace: Its execution, which returns.
        rng: Source of the choice.
    """
    if "yield" in program.code:
        return None
    source = program.code.encode()
    mutations = find_mutations(source, _KINDS)
    rng.shuffle(mutations)
    for mutation in mutations:
        code = mutation.apply(source).decode()
        if _in_one_line(mutation, source) and not _returns(code, program.call, str(trace.result)):
            before, after = (text.splitlines(keepends=True)[mutation.line - 1] for text in (code, program.code))
            calls, values = _more_calls(program, rng)
            return RepairTask(code, before, after, (program.call, *calls), (str(trace.result), *values))
    return None


def _in_one_line(mutation: Mutation, source: bytes) -> bool:
    return b"\n" not in source[mutation.edits[0][0] : mutation.edits[-1][1]]


def _record(code: str, call: str) -> Trace:
    return Recorder(max_frames=_MAX_FRAMES, max_bytes=_MAX_BYTES, max_seconds=_MAX_SECONDS).record_source(code, call)


def _returns(code: str, call: str, value: str) -> bool:
    result = _record(code, call).result
    return result is not None and literals_equal(result, value)


def _more_calls(program: GeneratedProgram, rng: random.Random) -> tuple[list[str], list[str]]:
    """Return other calls from which the program returns, and the values."""
    found: dict[str, str] = {}
    for _ in range(_TRIES):
        call = mutate(program.call, program.call, (), rng)
        if call is None or call == program.call or len(found) == _CHECKS:
            continue
        trace = _record(program.code, call)
        if trace.result is not None:
            found[call] = trace.result
    return list(found), list(found.values())


def repair_prompt(tokenizer: Tokenizer, task: RepairTask) -> NDArray[np.int32]:
    """Return the tokens before the answer: the broken program, and the value that its call should return."""
    special = tokenizer.special_tokens
    return np.concatenate(
        [
            trace_prompt(tokenizer, task.code, task.calls[0]),
            [special[EVENT_SEPS["return"]], special[ACTION_SEP]],
            tokenizer.encode(f"    return {task.calls[0]}\n"),
            [special[ARG_SEP]],
            tokenizer.encode(json.dumps(task.values[0])),
            [special[FRAME_SEP], special[ACTION_SEP]],
        ]
    ).astype(np.int32)


def repair_document(tokenizer: Tokenizer, task: RepairTask) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the tokens of a task with its answer, and the loss mask, which covers the answer."""
    special = tokenizer.special_tokens
    prompt = repair_prompt(tokenizer, task)
    answer = [
        *tokenizer.encode(task.line), special[ACTION_SEP], *tokenizer.encode(task.fixed), special[END_OF_TEXT]
    ]  # fmt: skip
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    return ids, np.arange(len(ids)) >= len(prompt)


def repaired(tokenizer: Tokenizer, task: RepairTask, answer: Sequence[int]) -> str | None:
    """Return the program after the replacement that a model wrote; None if the answer is not one.

    Only the first line with the text that the answer names is replaced.
    """
    special, ids = tokenizer.special_tokens, list(answer)
    if ids[-1:] != [special[END_OF_TEXT]] or ids.count(special[ACTION_SEP]) != 1:
        return None
    middle = ids.index(special[ACTION_SEP])
    line, fixed = tokenizer.decode(ids[:middle]), tokenizer.decode(ids[middle + 1 : -1])
    lines = task.code.splitlines(keepends=True)
    if line not in lines:
        return None
    lines[lines.index(line)] = fixed
    return "".join(lines)


def are_solved(tasks: Sequence[RepairTask], programs: Sequence[str | None], sandbox: Sandbox) -> list[bool]:
    """Run repaired programs in a sandbox and return whether each returns as the original does, for all calls.

    The original itself and the broken program, whose outcomes are known, are not run.
    """

    def is_solved(pair: tuple[RepairTask, str | None]) -> bool:
        task, code = pair
        if code is None or code == task.code:
            return False
        if code == task.code.replace(task.line, task.fixed, 1):
            return True
        value = evaluate_call(code, f"[{', '.join(task.calls)}]", sandbox=sandbox).value
        return value is not None and literals_equal(value, f"[{', '.join(task.values)}]")

    return in_parallel(is_solved, zip(tasks, programs, strict=True))
