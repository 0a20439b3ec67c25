"""Programs that isolate one difficulty: tracking a permutation, and composing functions of strings."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

from ..trace import Recorder
from .recordings import Recording

SWAPS = (2, 4, 8, 16, 32)
"""Numbers of swaps in a permutation."""
DEPTHS = (1, 2, 3, 4, 5)
"""Numbers of nested functions of a string."""

_NAMES = ("a", "b", "c", "d", "e")

STRING_FUNCTIONS: Mapping[str, Callable[[str], str]] = {
    "upper": lambda text: f"{text}.upper()",
    "lower": lambda text: f"{text}.lower()",
    "swapcase": lambda text: f"{text}.swapcase()",
    "reverse": lambda text: f"{text}[::-1]",
    "rest": lambda text: f"{text}[1:]",
    "replace": lambda text: f"{text}.replace('A', 'b')",
    "append": lambda text: f"({text} + 'D')",
}
"""Functions that write the expression of a function of strings, by name."""


def swap_recordings(number: int, seed: int = 0) -> list[Recording]:
    """Return `number` recordings for each count in `SWAPS`: five variables exchange their values, two in each line."""
    rng = random.Random(seed)
    return [_record(f"swaps {swaps}/{i}", *_swaps(rng, swaps)) for swaps in SWAPS for i in range(number)]


def string_recordings(number: int, seed: int = 0) -> tuple[list[Recording], dict[str, tuple[str, ...]]]:
    """Return `number` recordings for each depth in `DEPTHS`, and the functions that each of them nests, by id.

    The first depth uses all functions equally often, as far as `number` allows.
    """
    rng = random.Random(seed)
    names = list(STRING_FUNCTIONS)
    recordings, nested = [], {}
    for depth in DEPTHS:
        for i in range(number):
            id = f"strings {depth}/{i}"
            nested[id] = (names[i % len(names)], *(rng.choice(names) for _ in range(depth - 1)))
            text = "".join(rng.choice("ABCabc") for _ in range(rng.randrange(3, 6)))
            recordings.append(_record(id, _nest(nested[id]), f"f({text!r})"))
    return recordings, nested


def expected_if_independent(
    nested: Mapping[str, Sequence[str]], is_right: Mapping[str, bool]
) -> dict[int, float | None]:
    """Return the accuracy at each depth if every function succeeds as often inside a composition as alone.

    Args:
        nested: Functions of each recording, by id.
        is_right: Whether the output is right, by id of the recordings that were scored.

    Returns:
        The mean product of the accuracies of the functions by depth; None if a function was not scored alone.
    """
    alone: dict[str, list[bool]] = {}
    for id, functions in nested.items():
        if len(functions) == 1 and id in is_right:
            alone.setdefault(functions[0], []).append(is_right[id])
    accuracy = {name: sum(found) / len(found) for name, found in alone.items()}
    by_depth: dict[int, list[Sequence[str]]] = {}
    for functions in nested.values():
        by_depth.setdefault(len(functions), []).append(functions)
    if len(accuracy) < len({name for functions in nested.values() for name in functions}):
        return dict.fromkeys(by_depth)
    return {
        depth: sum(math.prod(accuracy[name] for name in functions) for functions in group) / len(group)
        for depth, group in by_depth.items()
    }


def _swaps(rng: random.Random, swaps: int) -> tuple[str, str]:
    pairs = list(permutations(_NAMES, 2))
    lines = [f"    {one}, {other} = {other}, {one}" for one, other in (rng.choice(pairs) for _ in range(swaps))]
    names, values = ", ".join(_NAMES), ", ".join(map(str, rng.sample(range(10), len(_NAMES))))
    return "\n".join([f"def f({names}):", *lines, f"    return {names}", ""]), f"f({values})"


def _nest(functions: Sequence[str]) -> str:
    expression = "s"
    for name in functions:
        expression = STRING_FUNCTIONS[name](expression)
    return f"def f(s):\n    return {expression}\n"


def _record(id: str, code: str, call: str) -> Recording:
    return Recording(id, id.partition("/")[0], Recorder().record_source(code, call))
