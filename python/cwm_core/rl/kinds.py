"""Tasks and their items from the tables `[tasks.NAME]` of a configuration."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..corpus.contests import read_contests
from ..environments import read_tasks
from ..evaluation import read_problems
from ..evaluation.answers import Style
from ..machines import Sandbox
from ..support.imports import import_object
from ..tokenizer import Tokenizer
from .tasks import (
    CodingTask,
    EpisodeTask,
    InputTask,
    MathJudge,
    MathTask,
    OutputTask,
    RLTask,
    Shares,
    SoftwareTask,
    TraceTask,
    read_mathematics,
    record_executions,
)

logger = logging.getLogger(__name__)

Made = tuple[RLTask | EpisodeTask, Sequence[Any]]
"""A task and its items."""


def make_tasks(
    tables: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer
) -> tuple[dict[str, RLTask | EpisodeTask], dict[str, Sequence[Any]]]:
    """Return the tasks of tables by name, and their items.

    The key `kind` of a table is a built-in kind, or the import path of a function. The other keys are its arguments
    after the tokenizer. `items`, for the built-in kinds, is a file of JSON lines.

    Raises:
        ValueError: A kind is unknown, an argument is missing or wrong, or there are no items; the message names the
            table.
    """
    made: dict[str, RLTask | EpisodeTask] = {}
    items: dict[str, Sequence[Any]] = {}
    for name, table in tables.items():
        options = dict(table)
        kind = options.pop("kind", None)
        try:
            if not isinstance(kind, str) or (kind not in KINDS and ":" not in kind):
                raise ValueError(f"kind must be one of {', '.join(KINDS)}, or an import path, got {kind!r}")
            made[name], items[name] = (KINDS.get(kind) or import_object(kind))(tokenizer, name=name, **options)
            if not items[name]:
                raise ValueError("the task has no items")
        except (TypeError, ValueError) as error:
            raise ValueError(f"[tasks.{name}] {error}") from None
    return made, items


def _trace(
    tokenizer: Tokenizer,
    *,
    name: str,
    items: str,
    shares: Mapping[str, float] | None = None,
    max_frames: int = 2000,
    max_length: int = 0,
    sandbox: Sandbox = "bubblewrap",
    **options: Any,
) -> Made:
    """Record the problems of a file, and leave out traces of more than `max_length` tokens, if it is positive."""
    if shares is not None:
        options["shares"] = Shares(**shares)
    task = TraceTask(tokenizer, name=name, **options)
    executions, left_out = record_executions(read_problems(items, required=()), max_frames=max_frames, sandbox=sandbox)
    short = [one for one in executions if not max_length or len(tokenizer.encode_trace(one.trace)) <= max_length]
    reasons = Counter(left_out.values()) + Counter({"too long": len(executions) - len(short)})
    if reasons:
        logger.warning("task %s: %d problems of %s are left out: %s", name, reasons.total(), items, dict(reasons))
    return task, short


def _output(tokenizer: Tokenizer, *, name: str, items: str, **options: Any) -> Made:
    return OutputTask(tokenizer, name=name, **options), read_problems(items)


def _input(tokenizer: Tokenizer, *, name: str, items: str, **options: Any) -> Made:
    return InputTask(tokenizer, name=name, **options), read_problems(items)


def _coding(tokenizer: Tokenizer, *, name: str, items: str, **options: Any) -> Made:
    return CodingTask(tokenizer, name=name, **options), list(read_contests(items))


def _software(tokenizer: Tokenizer, *, name: str, items: str, **options: Any) -> Made:
    return SoftwareTask(tokenizer, name=name, **options), list(read_tasks(items))


def _mathematics(
    tokenizer: Tokenizer,
    *,
    name: str,
    items: str,
    style: Style = "reasoning",
    max_tokens: int = 65_536,
    **options: Any,
) -> Made:
    judge = MathJudge(style=style, **options)
    return MathTask(tokenizer, judge, style=style, max_tokens=max_tokens, name=name), list(read_mathematics(items))


KINDS: dict[str, Callable[..., Made]] = {
    "trace": _trace,
    "output": _output,
    "input": _input,
    "coding": _coding,
    "software": _software,
    "mathematics": _mathematics,
}
"""Built-in kinds of tasks: functions of the tokenizer and the keys of a table."""
