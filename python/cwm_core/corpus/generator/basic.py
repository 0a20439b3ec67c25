"""Generate seeded random programs to record: short ones that terminate and have small values.

A program is drawn from a typed grammar: integers, strings, lists, and dicts; assignments, branches, loops, calls,
recursion, and exceptions. Every loop runs over something whose length is known when the program is written, and the
writer counts the most steps that a statement can take. So a program ends within `MAX_STEPS` by construction.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .program import GeneratedProgram

MAX_STEPS = 14  # in the bodies of generated functions, without the frames of main() and the entry
UNKNOWN_LENGTH = 1000  # too long for a loop to run over
LETTERS = "ABCDE"
NAMES = {"int": "abknxy", "str": "sw", "list": "tv", "dict": "d"}


def generate(seed: int) -> GeneratedProgram:
    """Return the program of a seed: the same on every Python version and under every hash seed."""
    # Use only randrange, choice, choices, and sample: their streams for integer seeds are stable since Python 3.2.
    rng = random.Random(seed)
    if rng.random() < 0.06:
        return _recursive(rng)
    return _Writer(rng).program()


def _recursive(rng: random.Random) -> GeneratedProgram:
    """Return a function that calls itself on a smaller integer, a shorter string, or a shorter list."""
    kind = rng.choice(["int", "str", "list"])
    name = rng.choice(NAMES[kind])
    if kind == "int":
        base = f"if {name} {rng.choice(['== 0', '< 1'])}:"
        result = str(rng.randrange(6))
        step = rng.choice([f"{name} + f({name} - 1)", f"f({name} - 1) + {rng.randrange(1, 5)}", f"f({name} - 1) * 2"])
        argument = str(rng.randrange(1, 4))
    elif kind == "str":
        base = rng.choice([f"if not {name}:", f"if {name} == '':", f"if len({name}) == 0:"])
        result = rng.choice(["''", f"'{rng.choice(LETTERS)}'"])
        step = rng.choice([f"f({name}[1:]) + {name}[0]", f"{name}[0] + f({name}[1:])", f"{name}[-1] + f({name}[:-1])"])
        argument = repr("".join(rng.sample(LETTERS, rng.randrange(1, 4))))
    else:
        base = rng.choice([f"if not {name}:", f"if len({name}) == 0:"])
        result, step = rng.choice(
            [
                ("0", f"{name}[0] + f({name}[1:])"),
                (str(rng.randrange(1, 5)), f"f({name}[1:]) + {name}[0]"),
                ("0", f"max({name}[0], f({name}[1:]))"),
                ("[]", f"f({name}[1:]) + [{name}[0]]"),
                ("[]", f"[{name}[0] + {rng.randrange(1, 4)}] + f({name}[1:])"),
            ]
        )
        argument = repr(rng.sample(range(1, 10), rng.randrange(1, 4)))
    code = f"def f({name}):\n    {base}\n        return {result}\n    return {step}\n"
    return GeneratedProgram(code, f"f({argument})")


class _Writer:
    """Writes one program. Tracks the variables in scope by type, and a bound on the length of every sequence."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.scope: dict[str, list[str]] = {"int": [], "str": [], "list": [], "dict": []}
        self.longest: dict[str, int] = {}  # bounds on the lengths of strings and lists
        self.fixed: set[str] = set()  # variables that a running loop depends on
        self.written: set[str] = set()  # each line occurs once, so that the line alone shows where execution is
        self.helpers: list[str] = []
        self.helper_call: tuple[str, int] | None = None  # name and steps
        self.raises: str | None = None  # the exception that the helper may raise
        self.depth = 0
        self.branching = False
        self.assigned: list[str] = []

    # ---- the program -------------------------------------------------------------------------------------------------

    def program(self) -> GeneratedProgram:
        rng = self.rng
        parameters, arguments = [], []
        for kind in rng.sample(["int", "int", "str", "list", "dict"], rng.choice([1, 1, 2])):
            name = self.new_name(kind)
            parameters.append(name)
            arguments.append(self.literal(kind, name))
            self.declare(kind, name)
        if rng.random() < 0.2:
            self.helper()
        body: list[str] = []
        steps = 0
        for _ in range(rng.choice([1, 2, 2, 3])):
            made = self.statement(MAX_STEPS - steps - 1)
            if made is not None:
                body += made[0]
                steps += made[1]
        code = "".join(self.helpers) + f"def f({', '.join(parameters)}):\n"
        code += "".join(f"    {line}\n" for line in [*body, f"return {self.result()}"])
        return GeneratedProgram(code, f"f({', '.join(arguments)})")

    def helper(self) -> None:
        """Write a function of one integer, which may raise, for later statements to call."""
        rng = self.rng
        name = rng.choice(["g", "q"])
        x = rng.choice(NAMES["int"])
        small = rng.randrange(1, 6)
        step = f"{x} {rng.choice(['+', '-', '*'])} {rng.randrange(1, 4)}"
        kind = rng.choice(["plain", "branch", "raise"])
        lines = [f"def {name}({x}):\n"]
        if kind == "branch":
            lines += [f"    if {x} {rng.choice('<>')} {small}:\n", f"        return {rng.choice([small, x])}\n"]
        elif kind == "raise":
            error = rng.choice(["ValueError", "KeyError", "IndexError"])
            lines += [f"    if {x} {rng.choice('<>')} {small}:\n", f"        raise {error}('{rng.choice(LETTERS)}')\n"]
        lines.append(f"    return {step}\n")
        self.helpers = lines
        self.helper_call = (name, 3 if kind == "plain" else 5)
        self.raises = error if kind == "raise" else None

    def result(self) -> str:
        rng = self.rng
        recent = self.assigned[-1] if self.assigned else self.any_of(self.kinds())
        other = self.any_of(self.kinds())
        if other != recent and rng.random() < 0.2:
            return f"{recent}, {other}"
        return recent

    # ---- statements: each returns its lines and the most steps they can take -----------------------------------------

    def statement(self, budget: int) -> tuple[list[str], int] | None:
        """Return a statement of at most `budget` steps whose lines do not occur in the program yet."""
        choices: list[tuple[Callable[[int], tuple[list[str], int] | None], int]] = [
            (self.assign, 6),
            (self.update, 6),
        ]
        if not self.branching:
            choices += [(self.branch, 5)]
        if self.depth == 0:
            choices += [(self.for_loop, 6), (self.while_loop, 2), (self.try_block, 3)]
            if self.helper_call:
                choices += [(self.call, 8)]
        makers, weights = zip(*choices, strict=True)
        for _ in range(20):
            written, scope = set(self.written), {kind: list(names) for kind, names in self.scope.items()}
            assigned, longest = list(self.assigned), dict(self.longest)
            made: tuple[list[str], int] | None = self.rng.choices(makers, weights)[0](budget)
            if made is not None and made[1] <= budget:
                lines = [line.strip() for line in made[0] if line.strip() not in ("else:", "try:")]
                if len(set(lines)) == len(lines) and written.isdisjoint(lines):
                    self.written.update(lines)
                    return made
            self.written, self.scope, self.assigned, self.longest = written, scope, assigned, longest
        return None

    def assign(self, budget: int) -> tuple[list[str], int] | None:
        """Bind a variable to a new value."""
        rng = self.rng
        kind = rng.choices(["int", "str", "list", "dict"], [8, 4, 4, 1])[0]
        value = self.expression(kind)
        if value is None:
            return None
        text, longest = value
        free = [name for name in self.scope[kind] if name not in self.fixed]
        if self.depth or (free and rng.random() < 0.3):  # a new name in a branch or loop may be unbound after it
            if not free:
                return None
            name = rng.choice(free)
        else:
            name = self.new_name(kind)
        self.declare(kind, name, longest)
        return [f"{name} = {text}"], 1

    def update(self, budget: int) -> tuple[list[str], int] | None:
        """Change a variable in place."""
        rng = self.rng
        free = {kind: [n for n in self.scope[kind] if n not in self.fixed] for kind in self.scope}
        kinds = [kind for kind in free if free[kind]]
        if not kinds:
            return None
        kind = rng.choice(kinds)
        name = rng.choice(free[kind])
        if kind == "int":
            by = self.other(name) if rng.random() < 0.4 else rng.randrange(1, 6)
            line = f"{name} {rng.choice(['+=', '+=', '-='])} {by}"
        elif kind == "str":
            letter = self.letter()
            self.longest[name] += 1
            line = f"{name} += {letter}" if rng.random() < 0.7 else f"{name} = {letter} + {name}"
        elif kind == "list":
            form = rng.choice(["append", "append", "append", "insert", "set", "pop", "sort", "reverse"])
            if form in ("append", "insert"):
                self.longest[name] += 1
            line = {
                "append": f"{name}.append({self.int_atom()})",
                "insert": f"{name}.insert(0, {self.int_atom()})",
                "set": f"{name}[0] = {self.int_atom()}",
                "pop": f"{name}.pop({rng.choice(['', '0'])})",
                "sort": f"{name}.sort()",
                "reverse": f"{name}.reverse()",
            }[form]
        else:
            key = self.letter()
            form = rng.choice(["set", "set", "add", "count"])
            line = {
                "set": f"{name}[{key}] = {self.int_atom()}",
                "add": f"{name}[{key}] += {rng.randrange(1, 4)}",
                "count": f"{name}[{key}] = {name}.get({key}, 0) + 1",
            }[form]
        self.assigned.append(name)
        return [line], 1

    def branch(self, budget: int) -> tuple[list[str], int] | None:
        """Write an `if`, with or without an `elif` or `else`."""
        if budget < 3:
            return None
        rng = self.rng
        lines, cost = [f"if {self.condition()}:"], 1
        self.branching = True
        block = self.block(budget - 2, 1)
        self.branching = False
        if block is None:
            return None
        body, most = block
        lines += body
        form = rng.choice(["if", "else", "else", "elif"])
        if form != "if":
            if form == "elif":
                lines.append(f"elif {self.condition()}:")
                cost += 1
            else:
                lines.append("else:")
            self.branching = True
            block = self.block(budget - 2, 1)
            self.branching = False
            if block is None:
                return None
            lines += block[0]
            most = max(most, block[1])
        return lines, cost + most

    def for_loop(self, budget: int) -> tuple[list[str], int] | None:
        """Write a loop over a range, a list, or a string."""
        rng = self.rng
        over = rng.choices(["range", "list", "str"], [4, 4, 3])[0]
        source = None
        if over == "range":
            name, kind = rng.choice(["i", "j"]), "int"
            times = rng.randrange(2, 5)
            iterable = f"range({times})"
            if rng.random() < 0.25:
                start = rng.randrange(1, 4)
                iterable = f"range({start}, {start + times})"
        else:
            kind = {"list": "int", "str": "str"}[over]
            name = "e" if over == "list" else "c"
            sources = [n for n in self.scope[over] if self.longest[n] <= 4]
            if not sources:
                return None
            source = rng.choice(sources)
            iterable, times = source, self.longest[source]
        each = (budget - 1) // max(times, 1) - 1
        if each < 1 or name in self.scope[kind]:
            return None
        protected = {variable for variable in (name, source) if variable is not None} - self.fixed
        self.fixed |= protected
        self.scope[kind].append(name)
        self.longest[name] = 1
        block = self.loop_body(each, rng.choice([1, 1, 2]))
        self.scope[kind].remove(name)  # unbound if the loop body never ran
        self.fixed -= protected
        if block is None:
            return None
        body, most = block
        return [f"for {name} in {iterable}:", *body], times * (1 + most) + 1

    def while_loop(self, budget: int) -> tuple[list[str], int] | None:
        """Write a loop that counts a new variable up to a bound or down to zero."""
        rng = self.rng
        name = self.new_name("int")
        times = rng.randrange(2, 4)
        each = (budget - 2) // times - 2
        if each < 1:
            return None
        start, step = rng.randrange(3), rng.choice([1, 1, 2])
        end = start + times * step
        first, test, change = (
            (f"{name} = {end}", f"while {name} > {start}:", f"{name} -= {step}")
            if rng.random() < 0.5
            else (f"{name} = {start}", f"while {name} < {end}:", f"{name} += {step}")
        )
        self.declare("int", name)
        self.fixed.add(name)
        block = self.loop_body(each, 1)
        self.fixed.discard(name)
        if block is None:
            return None
        body, most = block
        body = [*body, f"    {change}"] if rng.random() < 0.7 else [f"    {change}", *body]
        return [first, test, *body], 2 + times * (2 + most)

    def try_block(self, budget: int) -> tuple[list[str], int] | None:
        """Write a statement that may fail, and a handler."""
        rng = self.rng
        kind, error = rng.choice([("list", "IndexError"), ("dict", "KeyError"), ("int", "ZeroDivisionError")])
        if not self.scope[kind] or budget < 6:
            return None
        source = rng.choice(self.scope[kind])
        attempt = {
            "list": f"{source}[{rng.randrange(1, 4)}]",
            "dict": f"{source}[{self.letter()}]",
            "int": f"{rng.randrange(1, 10)} // {source}",
        }[kind]
        name = self.new_name("int")
        self.declare("int", name)
        lines = ["try:", f"    {name} = {attempt}", f"except {error}:", f"    {name} = {rng.randrange(10)}"]
        return lines, 5

    def call(self, budget: int) -> tuple[list[str], int] | None:
        """Write a call of the helper."""
        assert self.helper_call is not None
        function, steps = self.helper_call
        text = f"{function}({self.int_atom()})"
        name = self.new_name("int")
        self.declare("int", name)
        line = f"{name} = {text}"
        if self.raises is None:
            return [line], steps + 1
        lines = ["try:", f"    {line}", f"except {self.raises}:", f"    {name} = {self.rng.randrange(10)}"]
        return lines, steps + 6

    def loop_body(self, budget: int, count: int) -> tuple[list[str], int] | None:
        """Return a block that runs several times. The lengths that it changes are unknown afterwards."""
        before = len(self.assigned)
        block = self.block(budget, count)
        for name in self.assigned[before:]:
            self.longest[name] = UNKNOWN_LENGTH
        return block

    def block(self, budget: int, count: int) -> tuple[list[str], int] | None:
        """Return up to `count` indented statements within the budget, or None if not even one fits."""
        lines: list[str] = []
        steps = 0
        self.depth += 1
        for _ in range(count):
            made = self.statement(budget - steps) if steps < budget else None
            if made is None:
                break
            lines += [f"    {line}" for line in made[0]]
            steps += made[1]
        self.depth -= 1
        return (lines, steps) if lines else None

    # ---- expressions -------------------------------------------------------------------------------------------------

    def expression(self, kind: str) -> tuple[str, int] | None:
        """Return an expression of a type and a bound on its length, or None if nothing in scope can be used."""
        rng = self.rng
        if kind == "int":
            return self.int_expression(), 0
        if kind == "dict":
            keys = rng.sample(LETTERS, rng.randrange(3))
            return "{" + ", ".join(f"'{key}': {rng.randrange(1, 10)}" for key in keys) + "}", 0
        names = self.scope[kind]
        if not names or rng.random() < 0.35:
            if kind == "list" and rng.random() < 0.5 and len(self.scope["int"]) > 1:
                return f"[{', '.join(rng.sample(self.scope['int'], 2))}]", 2
            text = self.literal(kind, "new")
            return text, self.longest.pop("new")
        name = rng.choice(names)
        size = self.longest[name]
        if kind == "str":
            other = rng.choice(names)
            return rng.choice(
                [
                    (f"{name} + {self.letter()}", size + 1),
                    (f"{name} + {other}", size + self.longest[other]),
                    (f"{name}[::-1]", size),
                    (f"{name}[1:]", size),
                    (f"{name}[:2]", min(size, 2)),
                    (f"{name} * 2", size * 2),
                    (f"{name}[-1]", 1),
                    (f"{name}[0]", 1),
                ]
            )
        return rng.choice(
            [
                (f"{name} + [{self.int_atom()}]", size + 1),
                (f"[{self.int_atom()}] + {name}", size + 1),
                (f"{name}[::-1]", size),
                (f"{name}[1:]", size),
                (f"{name}[:2]", min(size, 2)),
                (f"sorted({name})", size),
            ]
        )

    def int_expression(self) -> str:
        rng = self.rng
        atoms = self.scope["int"]
        forms = [str(rng.randrange(10))] if self.depth == 0 else []
        if atoms:
            x = rng.choice(atoms)
            forms += [
                f"{x} + {self.int_atom()}",
                f"{x} + {self.int_atom()}",
                f"{x} - {rng.randrange(1, 5)}",
                f"{x} * {rng.randrange(2, 4)}",
                f"{x} % {rng.randrange(2, 4)}",
                f"{x} // 2",
                f"{rng.choice(['max', 'min'])}({x}, {self.other(x)})",
            ]
        if self.scope["str"]:
            s = rng.choice(self.scope["str"])
            forms += [f"len({s})", f"{s}.count({self.letter()})", f"{s}.find({self.letter()})"]
        if self.scope["list"]:
            t = rng.choice(self.scope["list"])
            forms += [f"len({t})", f"{t}[0]", f"{t}[-1]", f"sum({t})", f"max({t})"]
        if self.scope["dict"]:
            d = rng.choice(self.scope["dict"])
            forms += [f"len({d})", f"{d}.get({self.letter()}, 0)", f"{d}[{self.letter()}]"]
        return rng.choice(forms or [str(rng.randrange(10))])

    def int_atom(self) -> str:
        if self.scope["int"] and self.rng.random() < 0.6:
            return self.rng.choice(self.scope["int"])
        return str(self.rng.randrange(1, 10))

    def other(self, name: str) -> str:
        """Return an integer variable other than `name`, or a literal."""
        names = [n for n in self.scope["int"] if n != name]
        return self.rng.choice(names) if names else str(self.rng.randrange(1, 10))

    def letter(self) -> str:
        """Return a letter: the variable of a loop over a string, or a literal."""
        running = [name for name in self.scope["str"] if name == "c"]
        if running and self.rng.random() < 0.7:
            return running[0]
        return f"'{self.rng.choice(LETTERS)}'"

    def condition(self) -> str:
        rng = self.rng
        forms = []
        if self.scope["int"]:
            x = rng.choice(self.scope["int"])
            forms += [
                f"{x} {rng.choice(['<', '>', '=='])} {rng.randrange(1, 8)}",
                f"{x} {rng.choice(['<', '>', '=='])} {self.other(x)}",
                f"{x} % 2 == {rng.randrange(2)}",
            ]
        if self.scope["str"]:
            forms += [f"{self.letter()} {rng.choice(['in', 'in', 'not in'])} {rng.choice(self.scope['str'])}"]
        if self.scope["list"]:
            t = rng.choice(self.scope["list"])
            forms += [f"{self.int_atom()} in {t}", f"len({t}) {rng.choice(['<', '>'])} {rng.randrange(1, 4)}"]
        if self.scope["dict"]:
            forms += [f"{self.letter()} {rng.choice(['in', 'not in'])} {rng.choice(self.scope['dict'])}"]
        return rng.choice(forms)

    # ---- names and literals ------------------------------------------------------------------------------------------

    def literal(self, kind: str, name: str) -> str:
        rng = self.rng
        if kind == "int":
            return str(rng.randrange(10))
        size = rng.randrange(1, 3) if kind == "dict" else rng.choice([1, 2, 2, 3])
        self.longest[name] = size
        if kind == "str":
            return repr("".join(rng.sample(LETTERS, size)))
        if kind == "list":
            return repr(rng.sample(range(1, 10), size))
        return repr({key: rng.randrange(1, 10) for key in rng.sample(LETTERS, size)})

    def new_name(self, kind: str) -> str:
        free = [name for name in NAMES[kind] if name not in self.scope[kind]]
        return self.rng.choice(free or NAMES[kind])

    def declare(self, kind: str, name: str, longest: int | None = None) -> None:
        if name not in self.scope[kind]:
            self.scope[kind].append(name)
        if longest is not None:
            self.longest[name] = max(longest, self.longest.get(name, 0)) if self.depth else longest
        self.assigned.append(name)

    def any_of(self, kinds: list[str]) -> str:
        return self.rng.choice([name for kind in kinds for name in self.scope[kind]])

    def kinds(self) -> list[str]:
        return [kind for kind in self.scope if self.scope[kind]]
