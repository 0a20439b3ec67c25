"""Break a module in one place, and keep everything else byte for byte."""

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst
from libcst import matchers as m
from libcst.metadata import (
    ByteSpanPositionProvider,
    CodeRange,
    CodeSpan,
    ExpressionContext,
    ExpressionContextProvider,
    MetadataWrapper,
    WhitespaceInclusivePositionProvider,
)

KINDS = ("remove-function", "swap-arguments", "swap-variables", "delete-statement", "flip-operator")

# Replacements of operators: off-by-one and opposite comparisons, and opposite or related operators.
FLIPS: dict[type[cst.CSTNode], tuple[str, ...]] = {
    cst.LessThan: ("<=", ">="),
    cst.LessThanEqual: ("<", ">"),
    cst.GreaterThan: (">=", "<="),
    cst.GreaterThanEqual: (">", "<"),
    cst.Equal: ("!=",),
    cst.NotEqual: ("==",),
    cst.Is: ("is not",),
    cst.IsNot: ("is",),
    cst.In: ("not in",),
    cst.NotIn: ("in",),
    cst.And: ("or",),
    cst.Or: ("and",),
    cst.Add: ("-",),
    cst.Subtract: ("+",),
    cst.Multiply: ("//",),
    cst.Divide: ("*",),
    cst.FloorDivide: ("*",),
    cst.Modulo: ("//",),
    cst.Power: ("*",),
    cst.LeftShift: (">>",),
    cst.RightShift: ("<<",),
    cst.BitAnd: ("|",),
    cst.BitOr: ("&",),
    cst.AddAssign: ("-=",),
    cst.SubtractAssign: ("+=",),
    cst.MultiplyAssign: ("//=",),
    cst.DivideAssign: ("*=",),
    cst.FloorDivideAssign: ("*=",),
    cst.ModuloAssign: ("//=",),
    cst.LeftShiftAssign: (">>=",),
    cst.RightShiftAssign: ("<<=",),
    cst.BitAndAssign: ("|=",),
    cst.BitOrAssign: ("&=",),
}
_DELETABLE = (cst.SimpleStatementLine, cst.If, cst.For, cst.While, cst.With, cst.Try)


@dataclass(frozen=True)
class Mutation:
    """A change of a module."""

    kind: str
    """Kind of mutation, one of `KINDS`."""
    line: int
    """Line of the first edit, from 1."""
    edits: tuple[tuple[int, int, bytes], ...]
    """Edits (start, end, text) in bytes of the source, in order and without overlap."""

    def apply(self, source: bytes) -> bytes:
        """Return the mutated source."""
        parts, at = [], 0
        for start, end, text in self.edits:
            parts += [source[at:start], text]
            at = end
        return b"".join([*parts, source[at:]])


def find_mutations(source: bytes, kinds: Sequence[str] = KINDS) -> list[Mutation]:
    """Return all mutations that change the text of a module, in the order of `kinds` and of the source.

    - "remove-function" removes a function or method with its decorators and the comments above it.
    - "swap-arguments" swaps two neighboring positional arguments of a call.
    - "swap-variables" swaps two neighboring occurrences of different local variables in a statement or the head of a
      compound statement; outside of functions, of variables of the module.
    - "delete-statement" deletes a statement with its body, except docstrings, imports, definitions, and `pass`.
    - "flip-operator" replaces an operator as in `FLIPS`, or drops a `not`.

    A block that would be empty gets a `pass`. The result parses but may not compile, such as when a `nonlocal` has lost
    its variable.

    Raises:
        ValueError: The module does not parse, is not UTF-8, or has a byte order mark.
    """
    try:
        text = source.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark")
        wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
        finder = _Finder(source)
        wrapper.visit(finder)
    except (cst.ParserSyntaxError, cst.CSTValidationError, RecursionError) as error:
        raise ValueError(f"cannot parse the module: {error}") from None
    found = {kind: [each for each in finder.found if each.kind == kind] for kind in kinds}
    return [each for kind in kinds for each in sorted(found[kind], key=lambda one: one.edits)]


class _Finder(cst.CSTVisitor):
    """Collects mutations in `found`."""

    METADATA_DEPENDENCIES = (
        ByteSpanPositionProvider,
        ExpressionContextProvider,
        WhitespaceInclusivePositionProvider,
    )

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.found: list[Mutation] = []
        self.line_starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", source))]
        # Variables in each open statement; None where names are not candidates, as in signatures.
        self.statements: list[list[cst.Name] | None] = [None]
        self.functions = 0
        self.bound: set[str] = set()
        self.outside: list[list[cst.Name]] = []
        self.inside: list[list[cst.Name]] = []
        self.bound_outside: set[str] = set()

    # ---- positions

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        span: CodeSpan = self.get_metadata(ByteSpanPositionProvider, node)
        return span.start, span.start + span.length

    def add(self, kind: str, *edits: tuple[int, int, bytes]) -> None:
        if any(self.source[start:end] != text for start, end, text in edits):
            line = bisect.bisect_right(self.line_starts, edits[0][0])
            self.found.append(Mutation(kind, line, edits))

    def swap(self, kind: str, a: cst.CSTNode, b: cst.CSTNode) -> None:
        (start, end), (other_start, other_end) = self.span(a), self.span(b)
        first, second = self.source[start:end], self.source[other_start:other_end]
        if first != second:
            self.add(kind, (start, end, second), (other_start, other_end, first))

    # ---- statements and functions

    def visit_Module(self, node: cst.Module) -> None:
        self.visit_block(node.body)

    def visit_IndentedBlock(self, node: cst.IndentedBlock) -> None:
        self.visit_block(node.body)

    def visit_block(self, body: Sequence[cst.CSTNode]) -> None:
        for node in body:
            if isinstance(node, cst.FunctionDef):
                self.remove("remove-function", node, sole=len(body) == 1)
            elif isinstance(node, _DELETABLE) and not _is_kept(node):
                self.remove("delete-statement", node, sole=len(body) == 1)

    def remove(self, kind: str, node: cst.CSTNode, *, sole: bool) -> None:
        """Remove whole lines, with the comments above."""
        lines: CodeRange = self.get_metadata(WhitespaceInclusivePositionProvider, node)
        start = self.line_starts[lines.start.line - 1]
        has_end = lines.end.column == 0 and lines.end.line <= len(self.line_starts)
        end = self.line_starts[lines.end.line - 1] if has_end else len(self.source)
        text = b""
        if sole:
            at = self.span(node)[0]
            indent = self.source[self.line_starts[bisect.bisect_right(self.line_starts, at) - 1] : at]
            newline = re.search(rb"(\r\n|\r|\n|)\Z", self.source[start:end])
            text = indent + b"pass" + (newline[1] if newline else b"")
        self.add(kind, (start, end, text))

    # ---- arguments and operators

    def visit_Call(self, node: cst.Call) -> None:
        for a, b in itertools.pairwise(node.args):
            if not (a.star or b.star or a.keyword or b.keyword):
                self.swap("swap-arguments", a, b)

    def flip(self, operator: cst.CSTNode) -> None:
        start, end = self.span(operator)
        for text in FLIPS.get(type(operator), ()):
            self.add("flip-operator", (start, end, text.encode()))

    def visit_BinaryOperation(self, node: cst.BinaryOperation) -> None:
        formats = isinstance(node.operator, cst.Modulo) and isinstance(node.left, cst.BaseString)
        if not formats:
            self.flip(node.operator)

    def visit_BooleanOperation(self, node: cst.BooleanOperation) -> None:
        self.flip(node.operator)

    def visit_ComparisonTarget(self, node: cst.ComparisonTarget) -> None:
        self.flip(node.operator)

    def visit_AugAssign(self, node: cst.AugAssign) -> None:
        self.flip(node.operator)

    def visit_UnaryOperation(self, node: cst.UnaryOperation) -> None:
        if isinstance(node.operator, cst.Not):
            start, end = self.span(node.operator)
            blanks = re.compile(rb"[ \t]*").match(self.source, end)
            self.add("flip-operator", (start, blanks.end() if blanks else end, b""))

    # ---- variables

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef):
            if self.functions == 0:
                self.bound = set()
            self.functions += 1
        if isinstance(node, _NO_VARIABLES):
            self.statements.append(None)
        elif isinstance(node, _STATEMENTS):
            self.statements.append([])
        return super().on_visit(node)

    def on_leave(self, original_node: cst.CSTNode) -> None:
        super().on_leave(original_node)
        if isinstance(original_node, (*_NO_VARIABLES, *_STATEMENTS)):
            names = self.statements.pop()
            if names:
                (self.inside if self.functions else self.outside).append(names)
        if isinstance(original_node, cst.FunctionDef):
            self.functions -= 1
            if self.functions == 0:
                self.swap_variables(self.inside, self.bound)
                self.inside = []

    def leave_Module(self, original_node: cst.Module) -> None:
        self.swap_variables(self.outside, self.bound_outside)

    def swap_variables(self, statements: list[list[cst.Name]], bound: set[str]) -> None:
        for names in statements:
            variables = [name for name in names if name.value in bound]
            variables.sort(key=self.span)
            for a, b in itertools.pairwise(variables):
                self.swap("swap-variables", a, b)

    def visit_Param(self, node: cst.Param) -> None:
        (self.bound if self.functions else self.bound_outside).add(node.name.value)

    def visit_Name(self, node: cst.Name) -> None:
        context = self.get_metadata(ExpressionContextProvider, node, None)
        statement = self.statements[-1]
        if statement is None or context not in (ExpressionContext.LOAD, ExpressionContext.STORE):
            return
        if context is ExpressionContext.STORE:
            (self.bound if self.functions else self.bound_outside).add(node.value)
        statement.append(node)

    # Skip children that are names but not variables.

    def visit_Call_func(self, node: cst.Call) -> None:
        if isinstance(node.func, cst.Name):
            self.statements.append(None)

    def leave_Call_func(self, node: cst.Call) -> None:
        if isinstance(node.func, cst.Name):
            self.statements.pop()

    def visit_Arg_keyword(self, node: cst.Arg) -> None:
        self.statements.append(None)

    def leave_Arg_keyword(self, node: cst.Arg) -> None:
        self.statements.pop()

    def visit_Attribute_attr(self, node: cst.Attribute) -> None:
        self.statements.append(None)

    def leave_Attribute_attr(self, node: cst.Attribute) -> None:
        self.statements.pop()


_NO_VARIABLES = (
    cst.Annotation,
    cst.ClassDef,
    cst.ExceptHandler,
    cst.ExceptStarHandler,
    cst.FunctionDef,
    cst.Global,
    cst.Import,
    cst.ImportFrom,
    cst.MatchCase,
    cst.Nonlocal,
    cst.Parameters,
)
_STATEMENTS = (
    cst.For,
    cst.If,
    cst.Match,
    cst.SimpleStatementLine,
    cst.SimpleStatementSuite,
    cst.Try,
    cst.TryStar,
    cst.While,
    cst.With,
)


def _is_kept(node: cst.CSTNode) -> bool:
    """Return whether a statement is never deleted."""
    if isinstance(node, cst.SimpleStatementLine):
        first = node.body[0]
        is_text = isinstance(first, cst.Expr) and isinstance(first.value, (cst.BaseString, cst.Ellipsis))
        return len(node.body) > 1 or is_text or isinstance(first, (cst.Import, cst.ImportFrom, cst.Pass))
    definitions = m.FunctionDef() | m.ClassDef() | m.Import() | m.ImportFrom()
    return bool(m.findall(node, definitions))
