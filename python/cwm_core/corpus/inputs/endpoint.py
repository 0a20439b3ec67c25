"""Ask a language model for calls. Its answer is parsed and not run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..functions.kinds import FunctionKind
from .slices import text

if TYPE_CHECKING:
    from ..functions.discovery import Function

MAX_CALLS = 20
"""Maximum number of calls from one answer."""
_MAX_SOURCE = 20_000  # characters of a module to show


def calls(function: Function, generate: Callable[[list[dict[str, str]]], str]) -> Iterator[str]:
    """Yield up to `MAX_CALLS` calls: the lines of the model's answer that are calls of the function."""
    answer = generate(messages(function))
    found = 0
    for line in answer.splitlines():
        written = _call(line.strip().strip("`").strip(), function)
        if written is not None:
            yield function.wrap.replace("{}", written)
            found += 1
            if found == MAX_CALLS:
                return


def messages(function: Function) -> list[dict[str, str]]:
    """Return the chat messages that ask for calls of a function."""
    source = "\n".join(function.code.split("\n")[function.first_line - 1 : function.end_lineno])
    where = f" of the module {function.module}" if function.module else ""
    around = f"The module:\n```python\n{function.code}\n```\n" if len(function.code) <= _MAX_SOURCE else ""
    question = (
        f"{around}The function {function.qualname}{where}:\n```python\n{source}\n```\n"
        f"Write {MAX_CALLS} calls of it which together run every line and both ways of every branch, one a line, "
        "each a single Python expression that uses only the names of the module and builtins. Some may raise. Write "
        "only the calls."
    )
    return [{"role": "user", "content": question}]


def _call(line: str, function: Function) -> str | None:
    """Return a line as the text of an expression that calls the function, or None if it is not one."""
    if len(line) > 2000:
        return None
    try:
        tree = ast.parse(line, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    name = function.called.rpartition(".")[2]
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if called == name:
                return text(tree)
            case ast.Attribute(attr=called) if called == name and function.kind is FunctionKind.PROPERTY:
                return text(tree)
    return None
