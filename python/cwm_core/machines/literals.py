"""Python literals in text that a model wrote: read without running anything, compared type-strictly."""

import ast
import math
import warnings
from collections import Counter
from collections.abc import Hashable

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 100


class _FloatNames(ast.NodeTransformer):
    """Turns nan and inf, which `repr` writes and no literal spells, into constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in ("nan", "inf"):
            return ast.copy_location(ast.Constant(float(node.id)), node)
        return node


def evaluate_literal(text: str) -> object:
    """The value of a Python literal, as `repr` writes it: what `ast.literal_eval` reads, and `nan` and `inf`.

    Raises ValueError for anything else, for more than `MAX_CHARACTERS`, and for nesting beyond `MAX_DEPTH`.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"literal of {len(text)} characters; at most {MAX_CHARACTERS} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, about "\d" and the like
            tree = ast.parse(text.strip(), mode="eval")
        _check_depth(tree)
        return ast.literal_eval(_FloatNames().visit(tree))
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python literal: {error}") from None


def _check_depth(tree: ast.AST) -> None:
    level, depth = [tree], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 3:  # the expression, a sign and a constant are nodes too
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        level = [child for node in level for child in ast.iter_child_nodes(node)]


def identity(value: object) -> Hashable:
    """What is equal for values of equal types and contents, NaN included, and only for those."""
    kind = type(value).__name__
    if isinstance(value, float):
        return kind, "nan" if math.isnan(value) else value
    if isinstance(value, complex):
        return kind, identity(value.real), identity(value.imag)
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(identity, value))
    if isinstance(value, set):
        return kind, frozenset(Counter(map(identity, value)).items())
    if isinstance(value, dict):
        return kind, frozenset(Counter((identity(key), identity(item)) for key, item in value.items()).items())
    return kind, value


def literals_equal(a: str, b: str) -> bool:
    """Whether two texts are the same Python literal, else whether they are the same text, outer blanks aside.

    Type-strict at every depth: 1 is neither True nor 1.0. NaN equals itself, 0.0 equals -0.0; sets and dictionaries
    compare without order. Never raises.
    """
    try:
        return identity(evaluate_literal(a)) == identity(evaluate_literal(b))
    except ValueError:
        return a.strip() == b.strip()
