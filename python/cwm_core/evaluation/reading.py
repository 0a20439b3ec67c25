"""Extract the value or the arguments from the answer of a chat model. No code runs."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import islice

from ..machines.literals import STRING
from ..machines.programs import parse_expression
from ..tokenizer.special_tokens import REASONING_THINKING_END, REASONING_THINKING_START

# Beginnings and ends of reasoning: as text, and as the names of the model's special tokens.
_THOUGHT_BEGINS = ("<think>", REASONING_THINKING_START)
_THOUGHT_END = re.compile(f"</think>|{re.escape(REASONING_THINKING_END)}")
_MARK = re.compile(r"[\[<]([/\\]?)ANSWER[\]>]", re.I)
_BOX = re.compile(r"\\boxed\s*\{")
_LATEX_STYLE = re.compile(r"\\(?:text|texttt|textbf|mathrm|mathtt|mathbf|verb)\s*\{(.*)\}", re.DOTALL)
_LATEX_ESCAPE = re.compile(r"(?<!\\)\\([{}_%#$&])")
_TYPOGRAPHIC = re.compile("“([^“”\n]*)”|‘([^‘’\n]*)’|\u2212(?=[\\d.])")  # quotes, and a minus sign
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)(`{1,3})(?!`)(.+?)(?<!`)\1(?!`)")
_MARKUP = re.compile(r"\*\*|`+|\\[()\[\]]")
_FORMULA = re.compile(r"(\${1,2})(?!\$)([^$\n]+)\1")
# Labels at the beginning of a line, such as "Output:", "**Answer**:" and "The final answer is".
_LABEL = re.compile(
    r"(?:the )?(?:final |expected |return )?(?:output|answer|result|value|input)s?\s*(?::|=>|->|=|is\b:?)", re.I
)
_SEPARATOR = re.compile(
    r":|=>|->|→|⇒|(?<![=!<>])=(?!=)"
    r"|\b(?:is|be|returns?|gives?|outputs?|prints?|produces?|yields?|equals?|gets?|becomes?|evaluates to|results in)\b"
)
_MOST_SEPARATORS, _MOST_CHARACTERS = 100, 1_000_000  # tried in a line; the characters are those of all tries
_MOST_VARIABLES = 20  # replaced in a statement
_MOST_LINES = 200  # at the end of an answer, searched for a literal over several lines


def answer_of_chat(text: str, *, reasoning: bool) -> str | None:
    """Return the answer in an assistant's message; None if there is none or the reasoning is unfinished.

    The answer is between the last `[ANSWER]` and `[/ANSWER]`, or `<answer>` and `</answer>`, one of which may be
    missing, and an explanation may follow it. Otherwise, it is in the last `\\boxed{...}`, is the code block or value
    at the end of the text, or the last line. Code fences, backticks, bold type, dollar signs around a formula, labels
    such as "Output:" and a final period are removed, and typographic quotes become straight ones. Marks inside string
    literals do not count.
    """
    ends = list(_outside_strings(_THOUGHT_END, text))
    if ends:
        text = text[ends[-1].end() :]
    elif reasoning or text.lstrip().startswith(_THOUGHT_BEGINS):
        return None
    text = _replace_outside_strings(_TYPOGRAPHIC, _straight, text)
    marked = [part for part in _marked(text) if part.strip()]
    for part in [_boxed(part) or part for part in marked]:
        if stated := _code(part) or _leading(part) or _stated(part):
            return stated
    if marked:
        return _bare(marked[0].strip()) or None
    text = _MARK.sub("", text) if _MARK.search(text) else text
    text = _boxed(text) or text
    lines = [line for line in text.splitlines() if line.strip().strip("`~")]
    return _stated(text) or (_bare(lines[-1].strip()) or None if lines else None)


def output_of_answer(answer: str) -> str:
    """Return the value in an answer: of a comparison with a call or a variable, or of an assignment, else the text."""
    text = answer.strip()
    statement = _last_statement(text.removeprefix("assert "))
    if text.startswith("assert "):
        statement = _last_statement(text) or statement
    match statement:
        case ast.Assert(test=value) | ast.Assign(value=value) | ast.Expr(value=value):
            pass
        case _:
            return text.removeprefix("assert ").strip()
    match value:
        case (
            ast.Compare(left=left, ops=[ast.Eq() | ast.Is()], comparators=[right])
            | ast.Call(func=ast.Attribute(attr="assertEqual"), args=[left, right, *_])
        ):
            if isinstance(left, ast.Call | ast.Name) and not _is_call_of_f(right):
                return _segment(text, right)
            if isinstance(right, ast.Call | ast.Name):
                return _segment(text, left)
    if isinstance(statement, ast.Assign):
        return _segment(text, value)
    return text.removeprefix("assert ").strip()


def arguments_of_answer(answer: str) -> str:
    """Return the arguments in an answer: of a call `f(...)`, also in an assertion, or of assignments, else the text.

    Assignments of several variables become keyword arguments. The variable of a single one may also be a label, as in
    `input = [1]`.
    """
    text = answer.strip()
    assigned = _assigned(_statements(text))
    if len(assigned) > 1:
        return ", ".join(f"{name}={_segment(text, value)}" for name, value in assigned.items())
    statement = _last_statement(text)
    value = statement.test if isinstance(statement, ast.Assert) else getattr(statement, "value", None)
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print" and value.args:
        value = value.args[0]
    sides = [value.left, *value.comparators] if isinstance(value, ast.Compare) else [value]
    for side in sides:
        if side is not None and _is_call_of_f(side):
            return _segment(text, side).removeprefix("f").strip()[1:-1]
    for name, value in assigned.items():
        if re.match("(?:input|arg|ans)", name):
            return _segment(text, value)
    return text.removeprefix("assert ").strip()


# ---- marks


def _outside_strings(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Yield the matches outside string literals."""
    strings = [match.span() for match in STRING.finditer(text)]
    for match in pattern.finditer(text):
        before = bisect(strings, (match.start(),)) - 1  # the last string that begins before the match
        if before < 0 or strings[before][1] <= match.end():
            yield match


def _marked(text: str) -> list[str]:
    """Return the texts between marks, last first; marks may be missing or repeated."""
    marks = list(_outside_strings(_MARK, text)) or list(_MARK.finditer(text))
    edges = [*(mark.start() for mark in marks), len(text)][1:]
    parts = [text[mark.end() : edge] for mark, edge in zip(marks, edges, strict=True) if not mark[1]]
    if marks and not parts:  # the question may end with the opening mark
        parts = [text[: marks[0].start()]]
    return parts[::-1]


def _boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{...}` without LaTeX's escapes, or None."""
    boxes = list(_outside_strings(_BOX, text))
    if not boxes:
        return None
    text, depth = text[boxes[-1].end() :], 1
    for brace in _outside_strings(re.compile(r"(?<!\\)[{}]"), text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            content = text[: brace.start()].strip()
            while style := _LATEX_STYLE.fullmatch(content):
                content = style[1].strip()
            return _LATEX_ESCAPE.sub(r"\1", content)
    return None


def _straight(match: re.Match[str]) -> str:
    """Return a text in typographic quotes with the quotes that Python has, and a minus sign as a hyphen."""
    double, single = match[1], match[2]
    if double is not None:
        return '"' + re.sub("[‘’]", "'", double) + '"'
    return "-" if single is None else f"'{single}'"


# ---- values within prose


def _stated(text: str) -> str | None:
    """Return the last statement of code or of the last code block, or the value at the end of prose, or None."""
    blocks = [block for block in _FENCE.finditer(text) if block[2].strip()]
    if blocks and not text[blocks[-1].end() :].strip():
        return _code(blocks[-1][2]) or _prose(blocks[-1][2])
    found = _code(text) or _prose(text)
    return found or next((code for block in reversed(blocks) if (code := _code(block[2]))), None)


def _leading(text: str) -> str | None:
    """Return the value that is the first paragraph or line of a text, before an explanation, or None."""
    text = text.strip()
    for begin in (re.split(r"\n[ \t]*\n", text, maxsplit=1)[0], text.partition("\n")[0]):
        head = _bare(begin.strip())
        statement = _last_statement(head, alone=True)
        # An assignment is a step of an explanation rather than the answer.
        if not isinstance(statement, ast.Assign) and (stated := _stated_by(statement, head)):
            return stated
    return None


def _code(text: str) -> str | None:
    """Return the last statement of a program if it states a value; for `print(f(1))  # 5`, return the 5."""
    text = textwrap.dedent(text).strip()
    body = _statements(text)
    if not body:
        return text if _are_keywords(text) else None
    if len(_assigned(body)) > 1:
        return text
    statement = body[-1]
    value = getattr(statement, "value", None)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print":
        *_, comment = text.rpartition("#")
        return _prose(comment) if "#" in text else None
    text, statement = _with_variables(text, body)
    return _stated_by(statement, text)


def _prose(text: str) -> str | None:
    """Return the value at the end of a text: its last lines, or a part of the last one."""
    lines = [line for line in text.strip().splitlines() if line.strip()][-_MOST_LINES:]
    if not lines:
        return None
    for begin in reversed(range(len(lines))):
        whole = textwrap.dedent("\n".join(lines[begin:])).strip()
        if stated := _stated_by(_last_statement(whole, alone=True), whole):
            return stated
    return _in_line(lines[-1].strip())


def _in_line(line: str) -> str | None:
    """Return the value in a line of prose: the text in backticks, else the text after a label or a verb."""
    for match in reversed(list(_INLINE.finditer(line))):
        if _is_literal(match[2].strip()):
            return match[2].strip()
    bare = _bare(line)
    most = min(_MOST_SEPARATORS, _MOST_CHARACTERS // (len(bare) + 1))
    ends = [match.end() for match in islice(_outside_strings(_SEPARATOR, bare), most)]
    inline = [match[2].strip() for match in reversed(list(_INLINE.finditer(line)))]
    for part in (bare, *(_without_period(bare[end:].strip()) for end in ends), *inline):
        if stated := _stated_by(_last_statement(part, alone=True), part):
            return stated
    return None


def _bare(text: str) -> str:
    """Return the text without Markdown and prose around the value; code stays unchanged except for a final period."""
    if _is_code(text):
        return _without_period(text)
    text = re.sub(r"^(?:[>#*+] +|#+ *)", "", text)
    text = _replace_outside_strings(_FORMULA, lambda formula: formula[2].strip(), text)
    text = _replace_outside_strings(_MARKUP, lambda _: "", text).strip()
    text = _LABEL.sub("", text, count=1).strip() if _LABEL.match(text) else text
    return _without_period(text)


def _without_period(text: str) -> str:
    """Return the text without the final period of a sentence, also after a digit: `repr` never writes `3.`."""
    rest = text.removesuffix(".").rstrip()
    return rest if rest != text and _is_code(rest) and (rest[-1:].isdigit() or not _is_code(text)) else text


def _replace_outside_strings(pattern: re.Pattern[str], by: Callable[[re.Match[str]], str], text: str) -> str:
    places = {match.start() for match in _outside_strings(pattern, text)}
    return pattern.sub(lambda match: by(match) if match.start() in places else match[0], text)


# ---- syntax


def _statements(text: str) -> list[ast.stmt]:
    """Return the statements of a Python text; none for other text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes such as "\d"
            return ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []


def _last_statement(text: str, *, alone: bool = False) -> ast.stmt | None:
    """Return the last statement of a Python text; None for other text, and for several statements if `alone`."""
    body = _statements(text)
    return body[-1] if body and (not alone or len(body) == 1) else None


def _variables(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """Return the values that statements assign to variables, without those that a name may change afterwards."""
    found: dict[str, ast.expr] = {}
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = value
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.Expr() | ast.Assert():
                pass
            case _:
                return {}
    return found


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """Return the values by variable if all statements assign literals to different variables, else nothing."""
    found = _variables(body)
    return found if len(found) == len(body) and all(map(_is_literal_tree, found.values())) else {}


def _with_variables(text: str, body: list[ast.stmt]) -> tuple[str, ast.stmt]:
    """Return a text with its last statement, in which values replace variables, as in `x = [1]; f(x)`."""
    *before, last = body
    assigned = _variables(before).items()
    variables = {name: value for name, value in assigned if _is_literal_tree(value) or _is_call_of_f(value)}
    names = [node for node in ast.walk(last) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    used = [node for node in names if node.id in variables]
    if not used or len(used) > _MOST_VARIABLES:
        return text, last

    class Values(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return variables[node.id] if node in used else node

    try:
        text = ast.unparse(Values().visit(last))
    except (RecursionError, ValueError):
        return text, last
    return text, _last_statement(text) or last


def _is_code(text: str) -> bool:
    return parse_expression(text) is not None or (text.startswith("assert ") and _last_statement(text) is not None)


def _is_literal(text: str) -> bool:
    tree = parse_expression(text)
    return tree is not None and _is_literal_tree(tree)


def _is_literal_tree(tree: ast.expr) -> bool:
    return not isinstance(tree, ast.Call | ast.Compare) and _is_value(tree)


def _are_keywords(text: str) -> bool:
    """Return whether a text is keyword arguments, such as `a=1, b=2`."""
    call = parse_expression(f"f({text})")
    return isinstance(call, ast.Call) and bool(call.keywords) and all(_is_value(word.value) for word in call.keywords)


def _stated_by(statement: ast.stmt | None, text: str) -> str | None:
    """Return the text of a statement if it states a value, else None."""
    if statement is None or not _is_statement_of_value(statement):
        return None
    return _without_period(_segment(text, statement))


def _is_statement_of_value(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=value) | ast.Assign(value=value):
            return _is_value(value)
        case ast.Assert(test=ast.Compare() | ast.Call() as test):
            return _is_value(test)
    return False


def _is_value(tree: ast.expr) -> bool:
    """Return whether an expression states a value, unlike the words of a sentence, which parse as names."""
    if isinstance(tree, ast.Compare):
        return any(_is_value(side) for side in (tree.left, *tree.comparators) if not isinstance(side, ast.Call))
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if id(node) in called:
            continue
        if isinstance(node, (ast.Attribute, ast.Lambda)):
            return False
        if isinstance(node, ast.Name) and node.id not in ("nan", "inf", "int", "list", "dict", "set", "str", "float"):
            return False
        waiting += ast.iter_child_nodes(node)
    return not (isinstance(tree, ast.Name) and tree.id not in ("nan", "inf"))


def _is_call_of_f(tree: object) -> bool:
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "f"


def _segment(text: str, node: ast.stmt | ast.expr) -> str:
    return ast.get_source_segment(text, node) or text
