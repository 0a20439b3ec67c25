"""Values of trees."""

import operator

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "^": operator.pow}
FUNCTIONS = {"max": max, "min": min, "abs": abs}


def evaluate(tree, **variables):
    """The value; raises KeyError for a name without one."""
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind == "name":
        return variables[tree[1]]
    if kind == "neg":
        return -evaluate(tree[1], **variables)
    if kind == "call":
        arguments = [evaluate(argument, **variables) for argument in tree[2]]
        return FUNCTIONS[tree[1]](*arguments)
    left = evaluate(tree[1], **variables)
    right = evaluate(tree[2], **variables)
    return OPERATIONS[kind](left, right)
