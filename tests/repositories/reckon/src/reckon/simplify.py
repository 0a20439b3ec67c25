"""Simpler trees of equal value."""

from .evaluate import OPERATIONS

ZERO, ONE = ("number", 0), ("number", 1)


def simplify(tree):
    """Fold constants and drop neutral elements."""
    kind = tree[0]
    if kind in ("number", "name"):
        return tree
    if kind == "neg":
        inner = simplify(tree[1])
        if inner[0] == "number":
            return ("number", -inner[1])
        return inner[1] if inner[0] == "neg" else ("neg", inner)
    if kind == "call":
        return ("call", tree[1], [simplify(argument) for argument in tree[2]])
    left, right = simplify(tree[1]), simplify(tree[2])
    if left[0] == right[0] == "number" and not (kind == "/" and right[1] == 0):
        return ("number", OPERATIONS[kind](left[1], right[1]))
    if kind == "+" and ZERO in (left, right):
        return right if left == ZERO else left
    if kind == "-" and right == ZERO:
        return left
    if kind == "*" and ZERO in (left, right):
        return ZERO
    if kind == "*" and ONE in (left, right):
        return right if left == ONE else left
    if kind in ("/", "^") and right == ONE:
        return left
    return (kind, left, right)
