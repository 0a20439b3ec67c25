"""Change the text of a call slightly: its literals, containers, and arguments."""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Sequence

from .slices import text

_INTEGERS = (0, 1, -1, 2, 3, 7, 10, 100)
_CHARACTERS = "aB0 _-.,:/()[]=%<\n"


def mutate(call: str, other: str, literals: Sequence[str], rng: random.Random) -> str | None:
    """Return a call that differs in one or two places, or None if no change was possible.

    Args:
        call: An expression.
        other: Another call of the same function, whose parts may be used.
        literals: Literals to use, as text.
        rng: Generator of random numbers; the same state gives the same call.
    """
    tree = ast.parse(call, mode="eval").body
    donors = _values(ast.parse(other, mode="eval").body)
    for _ in range(rng.choice((1, 1, 2))):
        places = _places(tree)
        if not places:
            return None
        node, field, index = rng.choice(places)
        old = getattr(node, field) if index is None else getattr(node, field)[index]
        new = _changed(old, donors, literals, rng)
        if new is None:
            if index is not None and isinstance(node, ast.List | ast.Set | ast.Tuple):
                del getattr(node, field)[index]
        elif index is None:
            setattr(node, field, new)
        else:
            getattr(node, field)[index] = new
    return text(tree)


_Place = tuple[ast.AST, str, int | None]


def _places(tree: ast.expr) -> list[_Place]:
    """Return the places of arguments and elements, at any depth, that can be changed."""
    found: list[_Place] = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="__import__" | "setattr" | "getattr")):
                continue
            case ast.Call():
                found += [(node, "args", i) for i, a in enumerate(node.args) if not _is_fixed(a)]
                found += [(keyword, "value", None) for keyword in node.keywords if not _is_fixed(keyword.value)]
            case ast.List() | ast.Set() | ast.Tuple():
                found += [(node, "elts", i) for i, item in enumerate(node.elts) if not _is_fixed(item)]
            case ast.Dict():
                found += [(node, "values", i) for i in range(len(node.values))]
                found += [(node, "keys", i) for i, key in enumerate(node.keys) if key is not None]
            case ast.NamedExpr():
                found.append((node, "value", None))
            case ast.UnaryOp(operand=ast.Constant()):
                found.append((node, "operand", None))
            case ast.BinOp(left=left, right=right):
                found += [(node, "left", None)] if isinstance(left, ast.Constant) else []
                found += [(node, "right", None)] if isinstance(right, ast.Constant) else []
    return found


def _is_fixed(node: ast.expr) -> bool:
    """Return whether the rest of the call depends on a part: because it binds names, or is unpacked."""
    return isinstance(node, ast.Starred | ast.NamedExpr) or any(isinstance(n, ast.NamedExpr) for n in ast.walk(node))


def _values(tree: ast.expr) -> list[ast.expr]:
    """Return the arguments and elements of a call that can stand by themselves."""
    found = []
    for node, field, index in _places(tree):
        value = getattr(node, field) if index is None else getattr(node, field)[index]
        if not any(isinstance(n, ast.NamedExpr) for n in ast.walk(value)):
            found.append(value)
    return found


def _changed(
    node: ast.expr, donors: Sequence[ast.expr], literals: Sequence[str], rng: random.Random
) -> ast.expr | None:
    """Return a similar value, or another one altogether; None to leave it out."""
    way = rng.random()
    if donors and way < 0.25:
        return rng.choice(donors)
    if literals and way < 0.4:
        return ast.parse(rng.choice(literals), mode="eval").body
    new: ast.expr = ast.Constant(rng.choice((None, 0, 1, "", "a", True)))
    match node:
        case ast.Constant(value=bool() | None as value):
            new = ast.Constant(rng.choice([v for v in (True, False, None, 0, "", 1) if v is not value]))
        case ast.Constant(value=int(value)):
            new = _number(rng.choice((value + 1, value - 1, -value, value * 2, value // 2, *_INTEGERS)))
        case ast.Constant(value=float(value)):
            new = _number(rng.choice((-value, value / 2, value + 1, 0.0, 1e9, float(rng.randint(-5, 5)))))
        case ast.Constant(value=str(value)):
            new = ast.Constant(_text(value, literals, rng))
        case ast.Constant(value=bytes(value)):
            new = ast.Constant(_text(value.decode("latin-1"), (), rng).encode("utf-8"))
        case ast.List(elts=items) | ast.Set(elts=items) | ast.Tuple(elts=items):
            new = _container(node, items, donors, rng)
        case ast.Dict(keys=keys) if keys and rng.random() < 0.5:
            gone = rng.randrange(len(keys))
            new = ast.Dict(keys[:gone] + keys[gone + 1 :], node.values[:gone] + node.values[gone + 1 :])
    return new


def _number(value: float) -> ast.expr:
    """Return the expression of a number. A negative one is an operation."""
    return ast.parse(repr(value) if math.isfinite(value) else "0", mode="eval").body


def _container(node: ast.expr, items: list[ast.expr], donors: Sequence[ast.expr], rng: random.Random) -> ast.expr:
    """Return a container with one element less or more, in another order, or with at most one element."""
    items = list(items)
    way = rng.randrange(5)
    if not items or way == 0:
        items.insert(rng.randint(0, len(items)), rng.choice(donors) if donors else ast.Constant(0))
    elif way == 1:
        del items[rng.randrange(len(items))]
    elif way == 2:
        items.insert(rng.randint(0, len(items)), rng.choice(items))
    elif way == 3:
        rng.shuffle(items)
    else:
        items = items[: rng.randint(0, 1)]
    if isinstance(node, ast.Set) and not items:
        return ast.Call(ast.Name("set", ast.Load()), [], [])
    if isinstance(node, ast.Set):
        return ast.Set(items)
    return ast.List(items, ast.Load()) if isinstance(node, ast.List) else ast.Tuple(items, ast.Load())


def _text(value: str, literals: Sequence[str], rng: random.Random) -> str:
    """Return a text with one edit: of a character, of the case, or with a text of the function."""
    at = rng.randint(0, len(value))
    texts = [t for t in map(ast.literal_eval, literals) if isinstance(t, str)]
    if texts and rng.random() < 0.3:
        return value[:at] + rng.choice(texts) + value[at:]
    character = rng.choice(_CHARACTERS)
    return rng.choice(
        (
            value[:at] + value[at + 1 :],
            value[:at] + character + value[at:],
            value[:at] + character + value[at + 1 :],
            value[:at] + value[:at] + value[at:],
            value.swapcase(),
            value[at:],
            value[:at],
        )
    )
