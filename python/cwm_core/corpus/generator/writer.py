"""The statement level, which all families share: names, literals, assignments, blocks, and functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .program import GeneratedProgram

NAMES = {
    "int": ["a", "b", "k", "n", "x", "y", "p", "total", "count", "size", "best"],
    "str": ["s", "w", "r", "text", "word", "name"],
    "list": ["t", "v", "z", "items", "row", "nums"],
    "texts": ["l", "q", "parts"],
    "dict": ["d", "m", "table", "index"],
    "set": ["u", "h", "seen", "group"],
    "bool": ["ok", "found", "flag"],
    "tuple": ["pair", "point"],
}
WORDS = ["red", "blue", "cat", "dog", "sun", "tea"]
LETTERS = "ABCDEFGH"

Made = tuple[str, str]
"""Kind and text of an expression, or an empty kind and a whole statement."""


class Writer:
    """Writes one program. Every line occurs once, so that the line alone shows where execution is.

    Use only randrange, choice, choices, and sample of `rng`: their streams for integer seeds are the same on every
    Python version.

    Attributes:
        rng: Source of all choices.
        variables: Names in scope by kind.
    """

    def __init__(self, rng: random.Random) -> None:
        """Start a program without lines."""
        self.rng = rng
        self.variables: dict[str, list[str]] = {kind: [] for kind in NAMES}
        self._definitions: list[str] = []
        self._parameters: list[str] = []
        self._arguments: list[str] = []
        self._lines: list[str] = []
        self._depth = 1
        self._last = ""

    # ---- names and literals ------------------------------------------------------------------------------------------

    def new_name(self, kind: str) -> str:
        """Return a name that is not in use, or raise IndexError if all are."""
        taken = {name for names in self.variables.values() for name in names}
        return self.rng.choice([name for name in NAMES[kind] if name not in taken])

    def any(self, kind: str) -> str:
        """Return a variable of a kind in scope, or raise IndexError if there is none."""
        return self.rng.choice(self.variables[kind])

    def has(self, *kinds: str) -> bool:
        """Return whether there are variables of all these kinds."""
        return all(self.variables[kind] for kind in kinds)

    def number(self) -> str:
        """Return an integer of one digit, or sometimes of two or three."""
        low, high = self.rng.choices([(1, 10), (10, 100), (100, 1000)], [6, 3, 1])[0]
        return str(self.rng.randrange(low, high))

    def digit(self) -> str:
        """Return a small positive integer."""
        return str(self.rng.randrange(1, 10))

    def letter(self) -> str:
        """Return a string of one letter."""
        return f"'{self.rng.choice(LETTERS[:5])}'"

    def letters(self, low: int, high: int) -> str:
        """Return a string of `low` to `high` letters."""
        return repr("".join(self.rng.choice(LETTERS[:5]) for _ in range(self.rng.randrange(low, high + 1))))

    def numbers(self, low: int, high: int) -> str:
        """Return a list of `low` to `high` integers."""
        return f"[{', '.join(self.number() for _ in range(self.rng.randrange(low, high + 1)))}]"

    def words(self, count: int) -> str:
        """Return a string of words with spaces between them."""
        return repr(" ".join(self.rng.choice(WORDS) for _ in range(count)))

    # ---- statements --------------------------------------------------------------------------------------------------

    def parameter(self, kind: str, argument: str) -> str:
        """Add a parameter of the function and its argument, and return its name."""
        name = self.new_name(kind)
        self.variables[kind].append(name)
        self._parameters.append(name)
        self._arguments.append(argument)
        self._last = name
        return name

    def define(self, *lines: str) -> None:
        """Add a definition before the function."""
        self._definitions += lines

    def line(self, text: str) -> None:
        """Add a statement."""
        self._lines.append("    " * self._depth + text)

    def assign(self, kind: str, text: str) -> str:
        """Bind a new variable, or sometimes an existing one, to an expression and return its name.

        Inside a block, the variable exists already, because a new one may be unbound after it.

        Raises:
            IndexError: There is no such variable, or no free name.
        """
        names = self.variables[kind]
        if self._depth > 1 or (names and self.rng.random() < 0.3):
            name = self.rng.choice(names)
        else:
            name = self.new_name(kind)
            names.append(name)
        self.line(f"{name} = {text}")
        self._last = name
        return name

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """Indent the statements of the `with` block under `header`."""
        self.line(header)
        self._depth += 1
        yield
        self._depth -= 1

    def write(self, made: Made) -> None:
        """Add what a production made."""
        kind, text = made
        if kind:
            self.assign(kind, text)
        else:
            self.line(text)

    def statements(
        self, count: int, productions: list[Callable[[], Made]], condition: Callable[[], str] | None = None
    ) -> None:
        """Add `count` statements of random productions, some of them in a branch or a short loop."""
        rng = self.rng
        for _ in range(count):
            form = rng.choices(["plain", "if", "else", "for"], [7, 2, 1, 1])[0]
            if form == "for" and not self.variables["int"]:
                form = "plain"
            if form == "plain" or (condition is None and form != "for"):
                self.write(rng.choice(productions)())
            elif form == "for":
                with self.block(f"for {rng.choice('ij')} in range({rng.randrange(2, 4)}):"):
                    self.write(rng.choice(productions)())
            elif condition is not None:
                with self.block(f"if {condition()}:"):
                    self.write(rng.choice(productions)())
                if form == "else":
                    with self.block("else:"):
                        self.write(rng.choice(productions)())

    def finish(self, result: str = "") -> GeneratedProgram | None:
        """Return the program, or None if two of its lines are equal."""
        if not result:
            result = self._last
            others = [name for names in self.variables.values() for name in names if name != result]
            if others and self.rng.random() < 0.2:
                result += f", {self.rng.choice(others)}"
        lines = [*self._definitions, f"def f({', '.join(self._parameters)}):", *self._lines, f"    return {result}"]
        shown = [line.strip() for line in lines if line.strip() not in ("else:", "try:", "finally:")]
        if len(set(shown)) < len(shown):
            return None
        return GeneratedProgram("".join(f"{line}\n" for line in lines), f"f({', '.join(self._arguments)})")
