"""Find the line numbers of predicted frames, which state only the text of a line."""

from __future__ import annotations

import dis
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType

_MARK = "  # << START_OF_TRACE\n"
_RESUMABLE = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
# Execution never continues at the instruction after one of these.
_LEAVING = frozenset({
    "RETURN_VALUE", "RETURN_CONST", "RERAISE", "RAISE_VARARGS", "JUMP_FORWARD", "JUMP_BACKWARD",
    "JUMP_BACKWARD_NO_INTERRUPT",
})  # fmt: skip
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)

UNKNOWN = -1
"""Index of a function, or number of a line, that the program does not have."""

Places = frozenset[tuple[int, int]]
"""Possible places of a frame: pairs of the index of a function and a line in it."""


@dataclass(frozen=True)
class _Function:
    name: str
    first: int
    lines: frozenset[int]
    successors: dict[int, frozenset[int]]
    resumable: bool


class ProgramLines:
    """The lines of a trace's context, and the lines that may follow each.

    Line numbers are those of the code given to `record_source`. Its context begins with an empty line, number 0, and
    ends with the lines of `main()`. The program is compiled, but not run, to find out which line may follow which. If
    this Python cannot compile it, only the texts decide.
    """

    def __init__(self, context: str) -> None:
        """Compile `context`, a result of `cwm_core.trace.source_context`."""
        self.texts = _unmarked(context)
        self._numbers: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(self.texts):
            self._numbers[text].append(number)
        try:
            module = compile("".join(self.texts), "<cwm>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            self._functions: list[_Function] = []
        else:
            self._functions = [_function(code) for code in _functions(module)]

    def can_stop(self, number: int) -> bool:
        """Return whether a frame can be on this line."""
        if self._functions:
            return any(number in function.lines for function in self._functions)
        return 0 < number < len(self.texts) and not self.texts[number].isspace()

    def name(self, places: Places) -> str:
        """Return the qualified names of the functions of the places, joined by "or"; "?" if there are none."""
        names = {self._functions[function].name if function != UNKNOWN else "?" for function, _ in places}
        return " or ".join(sorted(names)) or "?"

    def call(self, text: str) -> Places:
        """Return the places of a CALL frame: where a function begins, or where a suspended one may resume."""
        return frozenset(
            (index, line)
            for index, function in enumerate(self._functions)
            for line in (function.lines if function.resumable else (function.first,))
            if self._has(line, text)
        ) or self._anywhere((UNKNOWN,), text)

    def follow(self, places: Places, text: str) -> Places:
        """Return the places of a LINE frame: lines with this text that may follow one of `places`, else `within`."""
        return frozenset(
            (index, line)
            for index, before in places
            if index != UNKNOWN
            for line in self._functions[index].successors.get(before, ())
            if self._has(line, text)
        ) or self.within(places, text)

    def stay(self, places: Places, text: str) -> Places:
        """Return the places of a RETURN or EXCEPTION frame: those of `places` with this text, else `within`."""
        return frozenset(place for place in places if self._has(place[1], text)) or self.within(places, text)

    def within(self, places: Places, text: str) -> Places:
        """Return the lines with this text in the functions of the places, else anywhere in the program."""
        indices = {index for index, _ in places}
        return frozenset(
            (index, line)
            for index in indices
            if index != UNKNOWN
            for line in self._functions[index].lines
            if self._has(line, text)
        ) or self._anywhere(indices, text)

    def _anywhere(self, indices: Iterable[int], text: str) -> Places:
        return frozenset((index, line) for index in indices for line in self._numbers.get(text, [UNKNOWN]))

    def _has(self, line: int, text: str) -> bool:
        return 0 <= line < len(self.texts) and self.texts[line] == text


def _unmarked(context: str) -> list[str]:
    """Return the lines of a context without the mark of the entry, which is the last one, as action lines show them."""
    lines = list(io.StringIO(context, newline="\n"))
    for at in reversed(range(len(lines))):
        if lines[at].endswith(_MARK):
            lines[at] = lines[at].removesuffix(_MARK) + "\n"
            break
    return lines


def _functions(module: CodeType) -> list[CodeType]:
    """Return all code of a module except its own body, which is never recorded."""
    found: list[CodeType] = []
    waiting = [module]
    while waiting:
        inner = [constant for constant in waiting.pop().co_consts if isinstance(constant, CodeType)]
        found += inner
        waiting += inner
    return found


def _function(code: CodeType) -> _Function:
    line = code.co_firstlineno - 1
    lines, numbers = {line}, dict[int, int]()
    successors: defaultdict[int, set[int]] = defaultdict(set)
    instructions = list(dis.get_instructions(code))
    for instruction in instructions:
        if instruction.positions and instruction.positions.lineno is not None:
            line = instruction.positions.lineno - 1
            lines.add(line)
        numbers[instruction.offset] = line
    for place, instruction in enumerate(instructions):
        line = numbers[instruction.offset]
        target = numbers.get(instruction.argval) if instruction.opcode in _JUMPS else None
        # A backward jump is an event even to the same line.
        if target is not None and (target != line or instruction.argval <= instruction.offset):
            successors[line].add(target)
        if instruction.opname not in _LEAVING and place + 1 < len(instructions):
            following = numbers[instructions[place + 1].offset]
            if following != line:
                successors[line].add(following)
    for instruction in instructions:
        if instruction.opname == "RERAISE":  # continues at any outer handler, without an EXCEPTION frame
            successors[numbers[instruction.offset]] |= lines
    return _Function(
        getattr(code, "co_qualname", code.co_name),
        code.co_firstlineno - 1,
        frozenset(lines),
        {line: frozenset(following) for line, following in successors.items()},
        bool(code.co_flags & _RESUMABLE),
    )
