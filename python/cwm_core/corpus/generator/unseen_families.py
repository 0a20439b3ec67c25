"""Families of programs for evaluation alone. No model that this package trains has seen what they are made of."""

from __future__ import annotations

from .program import GeneratedProgram
from .writer import Made, Writer


def shifts(w: Writer) -> GeneratedProgram | None:
    """Shifts, complements, powers, and `divmod` of small integers."""
    rng = w.rng
    for _ in range(rng.randrange(1, 3)):
        w.parameter("int", str(rng.randrange(1, 32)))

    def shift() -> Made:
        return "int", f"{w.any('int')} {rng.choice(['<<', '>>'])} {rng.randrange(1, 4)}"

    def complement() -> Made:
        return "int", f"~{w.any('int')}"

    def power() -> Made:
        return "int", f"{w.any('int')} ** 2"

    def quotient() -> Made:
        return "tuple", f"divmod({w.any('int')}, {rng.randrange(2, 8)})"

    def in_place() -> Made:
        return "", f"{w.any('int')} {rng.choice(['<<=', '>>='])} {rng.randrange(1, 4)}"

    w.statements(rng.randrange(2, 5), [shift, shift, complement, power, quotient, in_place])
    return w.finish()


def swaps(w: Writer) -> GeneratedProgram | None:
    """Variables and elements that exchange their values: the state is a permutation."""
    rng = w.rng
    if rng.random() < 0.5:
        names = [w.parameter("int", value) for value in map(str, rng.sample(range(10), rng.randrange(3, 5)))]
        for _ in range(rng.randrange(2, 6)):
            one, other = rng.sample(names, 2)
            w.line(f"{one}, {other} = {other}, {one}")
        return w.finish(", ".join(names))
    size = rng.randrange(3, 5)
    t = w.parameter("list", str(rng.sample(range(10), size)))
    for _ in range(rng.randrange(2, 5)):
        i, j = rng.sample(range(size), 2)
        w.line(f"{t}[{i}], {t}[{j}] = {t}[{j}], {t}[{i}]")
    return w.finish(t)


def closures(w: Writer) -> GeneratedProgram | None:
    """Functions that return functions: captured variables, `nonlocal`, and calls of what they return."""
    rng = w.rng
    outer, inner, n = rng.choice(["make", "counter"]), rng.choice(["step", "inner"]), rng.choice("nk")
    if rng.random() < 0.5:
        more = rng.choice(["", f" + {w.digit()}"])
        body = [f"        return e {rng.choice('+-*')} {n}{more}"]
    else:
        more = rng.choice(["", " * 2", f" + {w.digit()}"])
        body = [f"        nonlocal {n}", f"        {n} {rng.choice(['+=', '-='])} e{more}", f"        return {n}"]
    w.define(f"def {outer}({n}):", f"    def {inner}(e):", *body, f"    return {inner}")
    x = w.parameter("int", w.number())
    w.line(f"call = {outer}({rng.choice([x, w.digit()])})")
    for _ in range(rng.randrange(1, 3)):
        w.assign("int", f"call({rng.choice([x, w.digit()])})")
    return w.finish()


def pairs(w: Writer) -> GeneratedProgram | None:
    """Loops over `zip` and `enumerate`, and `any`, `all`, `map`, and `filter`."""
    rng = w.rng
    size = rng.randrange(2, 5)
    t = w.parameter("list", str([rng.randrange(1, 20) for _ in range(size)]))
    form = rng.choice(["zip", "enumerate", "functions"])
    if form == "functions":
        w.assign("bool", f"{rng.choice(['any', 'all'])}(map({rng.choice(['bool', 'abs'])}, {t}))")
        w.assign("list", f"list(map({rng.choice(['str', 'float', 'hex'])}, {t}))")
        w.assign("list", f"list(filter({rng.choice(['None', 'bool'])}, {t}))")
        return w.finish()
    total = w.assign("int", w.digit())
    if form == "zip":
        v = w.parameter("list", str([rng.randrange(1, 20) for _ in range(size)]))
        with w.block(f"for i, j in zip({t}, {v}):"):
            w.line(f"{total} {rng.choice(['+=', '-='])} i {rng.choice('+-*')} j")
    else:
        with w.block(f"for i, j in enumerate({t}{rng.choice(['', f', {w.digit()}'])}):"):
            w.line(f"{total} {rng.choice(['+=', '-='])} {rng.choice(['i * j', 'j - i', 'j', 'i'])}")
    if rng.random() < 0.5:
        w.line(f"{total} {rng.choice(['+=', '-='])} {w.number()}")
    return w.finish()


def stacks(w: Writer) -> GeneratedProgram | None:
    """A list as a stack: a loop over instructions that push, add, and multiply."""
    rng = w.rng
    instructions: list[str] = []
    depth = 0
    for _ in range(rng.randrange(3, 6)):
        pushes = depth < 2 or rng.random() < 0.6
        depth += 1 if pushes else -1
        instructions.append(w.digit() if pushes else rng.choice("+*"))
    s, c = w.parameter("str", repr("".join(instructions))), rng.choice("ce")
    add, multiply = (rng.choice(["", f" + {w.digit()}", f" % {rng.randrange(5, 12)}"]) for _ in range(2))
    w.line("stack = []")
    with w.block(f"for {c} in {s}:"):
        with w.block(f"if {c} == '+':"):
            w.line(f"stack.append(stack.pop() + stack.pop(){add})")
        with w.block(f"elif {c} == '*':"):
            w.line(f"stack.append(stack.pop() * stack.pop(){multiply})")
        with w.block("else:"):
            w.line(f"stack.append(int({c}){rng.choice(['', f' + {w.digit()}', f' * {w.digit()}'])})")
    return w.finish(rng.choice(["stack[-1]", "stack", "sum(stack)"]))
