"""Describe traces in natural language: ask a model for a description, and compare what it states with the trace.

A description states values between backticks. `key_values` defines which values it must state, and `faults` which
values it may state. Text that a model wrote never runs.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

from ..machines.literals import evaluate_literal, identity
from ..support.endpoint import AnswerError, AnswerProblem, ContextExceeded
from ..trace import Trace

Message = dict[str, str]
Generate = Callable[[Sequence[Message]], str]
"""Answers a chat, a list of messages with `role` and `content`."""

TEMPLATE = """\
Here is a Python program and a record of one execution of it, step by step.

GeneratedProgram:
```
{code}
```

Execution:
{steps}

Describe in English what happens, in the order in which it happens, so that a reader could follow it without running the
program. State the arguments of the function that is called, how its variables change, and how it ends.

Write every value and every piece of code between backticks. Write values exactly as Python writes them, as in `x` is
`[1, 'a']`. State no value that is not in the program or in its execution; where you count something yourself, write the
number as a word."""

RETRY_TEMPLATE = """\
Some of this does not agree with the execution:
{faults}
Write the whole description again without these faults."""

MAX_VALUE_CHARS = 200
"""Longer values need not be stated."""

_SPAN = re.compile(r"```[^\n]*\n(.*?)```|(`+)(.+?)\2(?!`)", re.DOTALL)
_NUMBERS = re.compile(r"(?:(?<![\w)\]])-)?(?<![\w.])\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w|\.\d)")
_STRINGS = re.compile(r"""(?<!\w)('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""")
# Numbers of the description itself: items of a list, headings, and references to steps and lines.
_ORDINALS = re.compile(
    r"^[ \t]*(?:[#>*-]+[ \t]*)?\d+[.):](?=\s)|\b(?:steps?|lines?|frames?)[ \t]+\d+(?:(?: and | to |, |[-–])\d+)*",
    re.IGNORECASE | re.MULTILINE,
)


class FaultKind(StrEnum):
    """Kind of error in a description."""

    EMPTY = "empty"
    """It states nothing."""
    MISSING_VALUE = "missing value"
    """It does not state a key value."""
    UNSUPPORTED_VALUE = "unsupported value"
    """It states a value that is not in the trace."""


CONTEXT_EXCEEDED = "longer than the model's context"
"""Reason that a trace was given up without another attempt."""


class KeyValue(NamedTuple):
    """A value that a description must state."""

    what: str
    """`argument n`, `final n`, `return value`, `exception`, or `result`."""
    value: str
    """Text of the value."""


class Fault(NamedTuple):
    """An error in a description."""

    reason: FaultKind | AnswerProblem
    """Kind of the fault."""
    detail: str
    """Errors in the description."""


def key_values(trace: Trace) -> list[KeyValue]:
    """Return the values that a description must state, in the order of the trace.

    They are those of the first activation that has variables, which for `record_source` is the function that is called:
    its arguments, its variables before its last line, and its return value or the exception that left it. The result or
    exception of the whole trace follows. Values that are shown in part, longer than `MAX_VALUE_CHARS`, or written
    `<...>` are left out.
    """
    states = trace.states()
    found: list[KeyValue] = []
    if (inside := next((number for number, state in enumerate(states) if state), None)) is not None:
        frames = _activation(trace, inside)
        own = [states[number] or {} for number in frames if states[number] is not None]
        found += [KeyValue(f"argument {name}", value) for name, value in own[0].items()]
        found += [KeyValue(f"final {name}", value) for name, value in own[-1].items()]
        found += _end(trace, frames)
    if trace.result is not None:
        found.append(KeyValue("result", trace.result))
    if trace.exception is not None:
        found.append(KeyValue("exception", trace.exception))
    return [key for key in dict.fromkeys(found) if _can_be_stated(key.value)]


def faults(trace: Trace, description: str) -> list[Fault]:
    """Return the errors in a description; an empty list if it agrees with the trace.

    A description states the Python literals in the code between backticks (of nested literals, the outermost) and the
    numbers in the prose, except those that number items, steps, or lines.

    - A key value that is a literal must equal a stated literal or a part of one, in type too. Any other key value must
      occur in the description as text.
    - A stated literal must equal a value of the trace, a part of one, or a literal of its source, or the code between
      the backticks must be a piece of that source. A number in the prose must equal a number there, of any type.
    """
    if not description.strip():
        return [Fault(FaultKind.EMPTY, "")]
    source = source_of(trace)
    spans = [(match[1] or match[3]).strip() for match in _SPAN.finditer(description)]
    prose = _ORDINALS.sub(" ", _SPAN.sub(" ` ", description))
    numbers = {float(number) for number in _NUMBERS.findall(prose)}

    said = {literal for span in spans for literal in _literals(span, parts=True)}
    found = [
        Fault(FaultKind.MISSING_VALUE, f"{key.what}: {key.value}")
        for key in key_values(trace)
        if not _states(key.value, said, numbers, description)
    ]
    known = {literal for value in _values(trace) for literal in _literals(value, parts=True)}
    for text in (source, *(frame.line for frame in trace.frames)):
        known.update(_literals(text, parts=True))
    for span in spans:
        if span and not _is_code_of(span, source):
            wrong = set(_literals(span, parts=False)) - known
            found += [Fault(FaultKind.UNSUPPORTED_VALUE, span)] if wrong else []
    known_numbers = {number for literal in known for number in _numbers_of(literal)}
    found += [Fault(FaultKind.UNSUPPORTED_VALUE, f"{number:g}") for number in sorted(numbers - known_numbers)]
    return list(dict.fromkeys(found))


def steps(trace: Trace) -> str:
    """Return the execution as text for a prompt: a numbered line for each frame, with the variables that changed."""
    lines = []
    for number, frame in enumerate(trace.frames, 1):
        changed = ", ".join(f"{name} = {value}" for name, value in (frame.locals or {}).items() if value != "..")
        if frame.arg is not None:
            changed = {"return": "returns ", "exception": "raises "}[frame.event] + frame.arg
        lines.append(f"{number}. {frame.event}: {frame.line.strip()}" + (f"    # {changed}" if changed else ""))
    return "\n".join(lines)


class Describer:
    """Requests descriptions from a model, and retries if one has errors.

    Attributes:
        failures: Numbers of failed attempts by reason: a `FaultKind`, an `AnswerProblem`, or `CONTEXT_EXCEEDED`.
        described: Number of traces that were described.
        given_up: Number of traces for which all attempts failed.
    """

    def __init__(self, generate: Generate, *, attempts: int = 3, template: str = TEMPLATE) -> None:
        """Prepare to ask.

        Args:
            generate: Language model to ask.
            attempts: Maximum number of attempts for a trace.
            template: Prompt with the fields `{code}` and `{steps}`.

        Raises:
            ValueError: The template lacks a field, or `attempts` is less than 1.
        """
        if attempts < 1:
            raise ValueError(f"attempts: expected at least 1, got {attempts}")
        if missing := [field for field in ("{code}", "{steps}") if field not in template]:
            raise ValueError(f"the template lacks the field {missing[0]}")
        self.failures: Counter[str] = Counter()
        self.described = 0
        self.given_up = 0
        self._generate = generate
        self._attempts = attempts
        self._template = template

    def __call__(self, trace: Trace) -> str | None:
        """Return a description without faults, or None if no attempt gave one.

        An answer that cannot be used (`AnswerError`) is a failed attempt. A trace that does not fit the context of the
        model (`ContextExceeded`) gets no other attempt. All other exceptions of `generate` are raised, because an
        endpoint that is down says nothing about the trace.
        """
        fields = {"{code}": source_of(trace).strip("\n"), "{steps}": steps(trace)}
        question = re.sub(r"\{code\}|\{steps\}", lambda match: fields[match[0]], self._template)
        asked: list[Message] = [{"role": "user", "content": question}]
        messages = asked
        for _ in range(self._attempts):
            try:
                answer = self._generate(messages)
            except ContextExceeded:
                self.failures[CONTEXT_EXCEEDED] += 1
                break
            except AnswerError as error:
                wrong = [Fault(error.reason, str(error))]
            else:
                wrong = faults(trace, answer)
                said = "\n".join(f"- {fault.reason}: {fault.detail}" for fault in wrong[:10])
                # Show only the last attempt, so that the chat does not grow.
                messages = [
                    *asked,
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": RETRY_TEMPLATE.replace("{faults}", said)},
                ]
            if not wrong:
                self.described += 1
                return answer
            self.failures[wrong[0].reason] += 1
        self.given_up += 1
        return None

    def cancel(self) -> None:
        """Cancel the running requests, if `generate` can do so, as `ChatModel` can."""
        cancel = getattr(self._generate, "cancel", None)
        if cancel is not None:
            cancel()


def source_of(trace: Trace) -> str:
    """Return the context without the mark of the entry."""
    return trace.context.replace("  # << START_OF_TRACE\n", "\n")


def _activation(trace: Trace, inside: int) -> list[int]:
    """Return the frames of the activation that a frame belongs to, from its call to its return."""
    depth, depths, events = 0, [], [frame.event for frame in trace.frames]
    for event in events:
        depth += event == "call"
        depths.append(depth)
        depth -= event == "return"
    own = [number for number, other in enumerate(depths) if other == depths[inside]]
    begin = max((number for number in own if number <= inside and events[number] == "call"), default=own[0])
    end = min((number for number in own if number >= inside and events[number] == "return"), default=own[-1])
    return [number for number in own if begin <= number <= end]


def _end(trace: Trace, frames: Sequence[int]) -> list[KeyValue]:
    """Return how the activation of these frames ended; nothing if the trace ends before it does."""
    last = trace.frames[frames[-1]]
    if last.event != "return":
        return []
    # An activation that an exception leaves returns None, and its caller shows the exception.
    raised = last.arg == "None" and any(trace.frames[number].event == "exception" for number in frames)
    after = trace.frames[frames[-1] + 1] if frames[-1] + 1 < len(trace) else None
    if raised and after is None and trace.exception is not None:
        return []  # the exception of the whole trace
    if raised and after is not None and after.event == "exception":
        return [KeyValue("exception", after.arg or "")]
    return [KeyValue("return value", last.arg or "")]


def _can_be_stated(value: str) -> bool:
    return len(value) <= MAX_VALUE_CHARS and not value.startswith("<") and not value.endswith("...")


def _states(value: str, said: set[Hashable], numbers: set[float], description: str) -> bool:
    try:
        literal = evaluate_literal(value)
    except ValueError:
        return value in description
    own = identity(literal)
    return own in said or any(number in numbers for number in _numbers_of(own))


def _values(trace: Trace) -> set[str]:
    values = {value for frame in trace.frames for value in (frame.locals or {}).values()}
    values |= {frame.arg for frame in trace.frames if frame.arg is not None}
    return (values | {trace.result or "", trace.exception or ""}) - {"..", ""}


def _is_code_of(span: str, source: str) -> bool:
    """Return whether a text is a piece of the source, in whole words, that is more than one literal."""
    try:
        evaluate_literal(span)
    except ValueError:
        return re.search(rf"(?<!\w){re.escape(span)}(?!\w)", source) is not None
    return False


def _literals(text: str, *, parts: bool) -> Iterator[Hashable]:
    """Yield the identities of the literals in a piece of code, and, with `parts`, of literals within them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes such as "\d"
            pending: list[ast.AST] = [ast.parse(text.strip())]
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        for found in [*_NUMBERS.findall(_STRINGS.sub(" ", text)), *_STRINGS.findall(text)]:
            yield from _identity_of(found)
        return
    while pending:
        node = pending.pop()
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.expr):
            try:
                value = ast.literal_eval(node)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                pass
            else:
                yield identity(value)
                if not parts or not isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
                    continue
        pending += children


def _identity_of(text: str) -> Iterator[Hashable]:
    try:
        yield identity(evaluate_literal(text))
    except ValueError:
        return


def _numbers_of(literal: Hashable) -> Iterator[float]:
    """Yield the number that the identity of a literal stands for, if it is one that can be compared as a float."""
    match literal:
        case ("int" | "float", int() | float() as number):
            with suppress(OverflowError):
                yield float(number)
