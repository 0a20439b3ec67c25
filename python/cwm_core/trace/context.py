"""Reduce the source context of a trace to the parts that the execution used.

`narrow` reduces the context of a recorded trace. `touched` does the same for source text and line numbers.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import symtable
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from cwm_core._native import CwmError

from .recorder import Trace

_MARK = "  # << START_OF_TRACE"  # see docs/concepts/trace-format.md
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class ContextTooLarge(CwmError, ValueError):
    """The executed code alone has more tokens than the budget."""

    def __init__(self, tokens: int, budget: int) -> None:
        """Record the number of tokens and the budget."""
        super().__init__(f"the executed code has {tokens} tokens; the budget is {budget}")
        self.tokens = tokens
        self.budget = budget


@dataclass(frozen=True)
class Context:
    """Selected lines of a file, in order."""

    code: str
    lines: tuple[int, ...]
    """Line numbers in the file, from 1, of the lines of `code`."""

    def marked(self, entry: int) -> str:
        """Return the code with the entry mark on a line.

        Args:
            entry: Number of the line in the file.

        Raises:
            ValueError: The context does not contain the line.
        """
        if entry not in self.lines:
            raise ValueError(f"the context does not contain line {entry} of the file")
        shown = physical_lines(self.code)
        at = self.lines.index(entry)
        shown[at] = shown[at].rstrip("\n") + _MARK + "\n"
        return "".join(shown)


def physical_lines(source: str) -> list[str]:
    r"""Split a source at `\n`, `\r\n`, and `\r`, as the interpreter counts lines, and end each line in `\n`."""
    return io.StringIO(source, newline=None).readlines()


def whole_file(source: str) -> Context:
    r"""Return the whole file as a context, with lines that end in `\n`."""
    lines = physical_lines(source)
    return Context("".join(lines), tuple(range(1, len(lines) + 1)))


def touched(
    source: str,
    lines: Iterable[int],
    *,
    budget: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Context:
    """Return the parts of a file that an execution used, in file order, with comments and layout unchanged.

    A part is a whole function, the head of a class, or another statement of a module or class, including the comments
    directly above it. Each part has a distance from the execution:

    - Distance 0: parts that contain an executed line, and imports from `__future__`.
    - Distance n + 1: parts that a part at distance n refers to. These are the definitions of the global names it reads,
      the fields of a class, and the members accessed as `self.name`, `cls.name`, or `Class.name`, including inherited
      ones.

    A member is shown with the head of its class. A class without selected members keeps its shortest one.

    If the result exceeds the budget, parts are dropped until the rest fits: those at the greatest distance first, and
    within a distance those at the end of the file first.

    Args:
        source: Source of a module.
        lines: Numbers, from 1, of the executed lines.
        budget: Maximum number of tokens; None for no limit.
        count_tokens: Function that counts the tokens of a text, such as `Tokenizer.count`. Required with a budget.

    Returns:
        The selected lines.

    Raises:
        ContextTooLarge: The parts at distance 0 exceed the budget.
        SyntaxError: The source is not valid Python.
        ValueError: The file does not have one of the lines, or `count_tokens` is missing.
    """
    if budget is not None and count_tokens is None:
        raise ValueError("a budget needs count_tokens")
    file = _file(source)
    distances = file.distances(set(lines))
    order = sorted(distances, key=lambda part: (distances[part], part.start))
    context = file.context(order)
    if budget is None or count_tokens is None or count_tokens(context.code) <= budget:
        return context
    fits = sum(distance == 0 for distance in distances.values())
    best = file.context(order[:fits])
    if (tokens := count_tokens(best.code)) > budget:
        raise ContextTooLarge(tokens, budget)
    exceeds = len(order)
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        context = file.context(order[:middle])
        if count_tokens(context.code) <= budget:
            fits, best = middle, context
        else:
            exceeds = middle
    return best


def entry_line(trace: Trace) -> int | None:
    """Return the number, from 1, of the line in the context with the entry mark, or None if there is none."""
    marked = [n for n, line in enumerate(physical_lines(trace.context), 1) if line.rstrip("\n").endswith(_MARK)]
    # A program can contain the same comment. The first frame is on the marked line, or on a decorator above it.
    first = trace.frames[0].lineno if len(trace) else None
    return next((n for n in marked if first is not None and n >= first), marked[0] if marked else None)


def narrow(trace: Trace, *, budget: int | None = None, count_tokens: Callable[[str], int] | None = None) -> Trace:
    """Return the trace with a context reduced to the parts of the file that it used.

    The frames and their line numbers do not change. Frames of other files have no effect. The entry mark does not count
    toward the budget.

    Args:
        trace: Trace whose context is a whole file, as recorded.
        budget: Maximum number of tokens of the context; None for no limit.
        count_tokens: Function that counts the tokens of a text. Required with a budget.

    Returns:
        The same execution with the smaller context.

    Raises:
        ContextTooLarge: The executed parts exceed the budget.
        SyntaxError: The context is not valid Python.
        ValueError: `count_tokens` is missing.
    """
    entry = entry_line(trace)
    source = physical_lines(trace.context)
    if entry is not None:
        source[entry - 1] = source[entry - 1].rstrip("\n").removesuffix(_MARK) + "\n"
    executed = {(frame.lineno, frame.line) for frame in trace.frames}
    shown = dict(enumerate((line.rstrip("\n") + "\n" for line in source), 1))
    lines = {number for number, line in executed if number is not None and shown.get(number) == line}
    if entry is not None:
        lines.add(entry)
    context = touched("".join(source), lines, budget=budget, count_tokens=count_tokens)
    return trace.with_context(context.code if entry is None else context.marked(entry))


@dataclass(eq=False)
class _Part:
    """Lines `start` to `end`, from 1, that are either all shown or all dropped."""

    start: int
    end: int
    parent: _Part | None = None
    nodes: list[ast.stmt] = field(default_factory=list)
    members: list[_Part] = field(default_factory=list)  # if this is the head of a class
    bound: dict[str, list[_Part]] = field(default_factory=lambda: defaultdict(list))  # members by name


class _File:
    """The parts of a module and the references between them."""

    def __init__(self, source: str) -> None:
        self.lines = physical_lines(source)
        body, self.functions = _parsed(self.lines)
        self.parts: list[_Part] = []
        self.module = _Part(0, 0)
        self._add(body, self.module, 0)
        self.starts = [part.start for part in self.parts]

    def distances(self, lines: set[int]) -> dict[_Part, int]:
        """Return the distance of each part that the execution of these lines used."""
        reached: dict[_Part, int] = {}
        pending: deque[tuple[int, _Part]] = deque()
        for line in sorted(lines):
            pending.append((0, self._part_at(line)))
        if lines:
            pending.extend((0, part) for part in self.parts if any(map(_is_future_import, part.nodes)))
        while pending:
            distance, part = pending.popleft()
            if part in reached:
                continue
            reached[part] = distance
            if part.parent is not None:
                pending.appendleft((distance, part.parent))
            pending.extend((distance + 1, found) for found in self._leads_to(part))
        return reached

    def context(self, parts: Iterable[_Part]) -> Context:
        """Return the lines of these parts, of the parts needed to parse them, and the blank lines before each."""
        kept = set(parts)
        for part in list(kept):
            head = part.parent
            while head is not None:
                kept.add(head)
                head = head.parent
        pending = list(kept)
        while pending:
            part = pending.pop()
            if part.members and kept.isdisjoint(part.members):
                shortest = min(part.members, key=lambda member: member.end - member.start)
                kept.add(shortest)
                pending.append(shortest)
        numbers: list[int] = []
        for part in sorted(kept, key=lambda part: part.start):
            start = part.start
            while numbers and start - 1 > numbers[-1] and not self._text(start - 1):
                start -= 1
            numbers.extend(range(start, part.end + 1))
        return Context("".join(self.lines[n - 1] for n in numbers), tuple(numbers))

    def _add(self, body: list[ast.stmt], scope: _Part, before: int) -> None:
        """Add the parts of a body that starts after the line `before`."""
        last: _Part | None = None
        for node in body:
            start, end = _first_line(node), node.end_lineno or node.lineno
            # Statements that share a line, such as `a = 1; b = 2`, are one part.
            if last is not None and not last.members and (start <= last.end or self._continues(last.end)):
                last.end = max(last.end, end)
                last.nodes.append(node)
                self._bind(scope, node, last)
                before = last.end
                continue
            while start - 1 > before and (self._text(start - 1).startswith("#") or self._continues(start - 1)):
                start -= 1
            head_end = self._head_end(node) if isinstance(node, ast.ClassDef) else None
            last = _Part(start, head_end or end, None if scope is self.module else scope, [node])
            scope.members.append(last)
            self.parts.append(last)
            self._bind(scope, node, last)
            if isinstance(node, ast.ClassDef) and head_end is not None:
                self._add(node.body, last, head_end)
            before = end

    def _head_end(self, node: ast.ClassDef) -> int | None:
        """Return the last line of the head of a class, or None if its body starts on the same line."""
        line = _first_line(node.body[0]) - 1
        while line > node.lineno and (not self._text(line) or self._text(line).startswith("#")):
            line -= 1
        return None if line < node.lineno or self._continues(line) else line

    def _bind(self, scope: _Part, node: ast.stmt, part: _Part) -> None:
        for name in set(_bound_names(node)):
            scope.bound[name].append(part)

    def _text(self, line: int) -> str:
        return self.lines[line - 1].strip()

    def _continues(self, line: int) -> bool:
        return self.lines[line - 1].rstrip("\n").endswith("\\")

    def _part_at(self, line: int) -> _Part:
        if not 1 <= line <= len(self.lines):
            raise ValueError(f"line {line} is out of range for a file of {len(self.lines)} lines")
        at = bisect_right(self.starts, line) - 1
        if at >= 0 and line <= self.parts[at].end:
            return self.parts[at]
        return _Part(line, line)  # a blank line or comment, which the first frame of a module can be on

    def _leads_to(self, part: _Part) -> Iterator[_Part]:
        for node in part.nodes:
            for name in self._reads(node):
                found = self.module.bound.get(name)
                if found is None and not hasattr(builtins, name):
                    found = self.module.bound.get("*")
                yield from found or ()
                if part.parent is not None and not isinstance(node, _Function):
                    yield from part.parent.bound.get(name, ())  # the body of a class sees its own names
            for owner_name, attribute in _attributes(node):
                owners = [part.parent] if owner_name is None else self.module.bound.get(owner_name, ())
                for owner in owners:
                    yield from self._members(owner, attribute, set())
        no_field = _Function | ast.ClassDef | ast.Expr  # Expr: a docstring
        yield from (member for member in part.members if not any(isinstance(node, no_field) for node in member.nodes))

    def _members(self, owner: _Part | None, name: str, seen: set[_Part]) -> Iterator[_Part]:
        """Yield the parts that bind a name in a class or else in its bases."""
        if owner is None or owner in seen or not owner.members:
            return
        seen.add(owner)
        if name in owner.bound:
            yield from owner.bound[name]
            return
        for node in owner.nodes:
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                if isinstance(base, ast.Name):
                    for part in self.module.bound.get(base.id, ()):
                        yield from self._members(part, name, seen)

    def _reads(self, node: ast.stmt) -> set[str]:
        """Return the names that a statement reads, without the local variables of a function."""
        if isinstance(node, _Function):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            parts: list[ast.AST | None] = [*node.decorator_list, *arguments.defaults, *arguments.kw_defaults]
            parts += [node.returns, *(argument.annotation for argument in every if argument is not None)]
            names = self.functions.get((node.name, node.lineno), set())
        elif isinstance(node, ast.ClassDef) and self._head_end(node) is not None:
            parts, names = [*node.decorator_list, *node.bases, *node.keywords], set()
        else:
            parts, names = [node], set()
        nodes = (child for part in parts if part is not None for child in ast.walk(part))
        return names | {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


@lru_cache(maxsize=16)  # many traces share a file
def _file(source: str) -> _File:
    return _File(source)


def _parsed(lines: list[str]) -> tuple[list[ast.stmt], dict[tuple[str, int], set[str]]]:
    """Return the statements of a module and the global names of its functions.

    A recorded call is a two-line `main` after the source of a file. Many calls share the file, which is parsed once.
    """
    if lines[-2:-1] == ["def main():\n"] and len(lines) > 2:
        with contextlib.suppress(SyntaxError):  # the source continues into these lines
            body, functions = _parsed_file("".join(lines[:-2]))
            call, names = _parsed_file("\n" * (len(lines) - 2) + "".join(lines[-2:]))
            return [*body, *call], functions | names
    return _parsed_file("".join(lines))


@lru_cache(maxsize=16)
def _parsed_file(text: str) -> tuple[list[ast.stmt], dict[tuple[str, int], set[str]]]:
    return ast.parse(text).body, dict(_functions(symtable.symtable(text, "<context>", "exec")))


def _functions(table: symtable.SymbolTable) -> Iterator[tuple[tuple[str, int], set[str]]]:
    """Yield the global names that each function and its inner definitions use, by name and line of the function."""
    for child in table.get_children():
        if child.get_type() == "function":
            yield (child.get_name(), child.get_lineno()), _globals(child)
        else:
            yield from _functions(child)


def _globals(table: symtable.SymbolTable) -> set[str]:
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*map(_globals, table.get_children()))


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, _Function | ast.ClassDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _is_future_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds or changes in its scope; `*` for a wildcard import."""
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
                continue  # inner names belong to another scope
            case ast.Lambda():
                continue
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name.split(".")[0] for alias in names)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.Attribute(value=ast.Name(id=name), ctx=ast.Store()):
                yield name
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()):
                yield name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
            case ast.MatchMapping(rest=str(name)):
                yield name
        pending.extend(ast.iter_child_nodes(node))


def _attributes(node: ast.stmt) -> Iterator[tuple[str | None, str]]:
    """Yield (name, attribute) for each `name.attribute`; the name is None for the first parameter and `super()`."""
    own = None
    if isinstance(node, _Function):
        arguments = [*node.args.posonlyargs, *node.args.args]
        own = arguments[0].arg if arguments else None
    for child in ast.walk(node):
        match child:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                yield (None if name == own else name), attribute
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attribute):
                yield None, attribute
