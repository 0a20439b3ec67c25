"""Trees as text again."""

from .parser import PRECEDENCE, RIGHT


def show(tree, least=0):
    """Text with no more parentheses than needed."""
    kind = tree[0]
    if kind in ("number", "name"):
        return str(tree[1])
    if kind == "neg":
        return f"-{show(tree[1], 3)}"
    if kind == "call":
        return f"{tree[1]}({', '.join(show(argument) for argument in tree[2])})"
    own = PRECEDENCE[kind]
    left = show(tree[1], own + 1 if kind in RIGHT else own)
    right = show(tree[2], own if kind in RIGHT else own + 1)
    text = f"{left} {kind} {right}"
    return f"({text})" if own < least else text
