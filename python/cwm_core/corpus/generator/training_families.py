"""Families of programs to train on. None shares a production with `unseen_families`, beyond the statement level."""

from __future__ import annotations

from collections.abc import Callable

from .program import GeneratedProgram
from .writer import Made, Writer

# ---- arithmetic ------------------------------------------------------------------------------------------------------


def arithmetic(w: Writer) -> GeneratedProgram | None:
    """Integers of two and three digits: sums, differences, products, quotients, remainders, and comparisons."""
    rng = w.rng
    for _ in range(rng.randrange(1, 4)):
        w.parameter("int", str(rng.choice([rng.randrange(10), rng.randrange(10, 100), rng.randrange(100, 1000)])))

    def binary() -> Made:
        other = w.any("int") if rng.random() < 0.4 else w.number()
        return "int", f"{w.any('int')} {rng.choice(['+', '+', '-', '-'])} {other}"

    def scaled() -> Made:
        return "int", f"{w.any('int')} {rng.choice(['*', '//', '%'])} {rng.choice([2, 3, 4, 5, 7, 9, 10, 11, 100])}"

    def nested_binary() -> Made:
        left = f"({w.any('int')} {rng.choice('+-')} {w.number()})"
        return "int", f"{left} {rng.choice(['*', '//', '%'])} {rng.randrange(2, 10)}"

    def function() -> Made:
        a = w.any("int")
        return "int", rng.choice(
            [f"abs({a} - {w.number()})", f"max({a}, {w.number()})", f"min({a}, {w.number()})", f"{a} % 10 * 10"]
        )

    def in_place() -> Made:
        return "", f"{w.any('int')} {rng.choice(['+=', '+=', '-=', '-=', '//='])} {w.number()}"

    def condition() -> str:
        a = w.any("int")
        return rng.choice([f"{a} > {w.number()}", f"{a} < {w.number()}", f"{a} % {rng.randrange(2, 5)} == 0"])

    w.statements(rng.randrange(2, 5), [binary, binary, scaled, nested_binary, function, in_place], condition)
    return w.finish()


# ---- strings, slices, formatting -------------------------------------------------------------------------------------


def strings(w: Writer) -> GeneratedProgram | None:
    """Methods of strings: cases, searches, replacements, tests, splits and joins."""
    rng = w.rng
    w.parameter("str", rng.choice([w.letters(2, 5), w.words(1), w.words(2)]))
    if rng.random() < 0.4:
        w.parameter("str", w.letters(1, 3))

    def case() -> Made:
        return "str", f"{w.any('str')}.{rng.choice(['upper', 'lower', 'title', 'capitalize', 'swapcase'])}()"

    def replace() -> Made:
        return "str", f"{w.any('str')}.replace({w.letter()}, {rng.choice([w.letter(), w.letters(0, 2)])})"

    def search() -> Made:
        return "int", f"{w.any('str')}.{rng.choice(['find', 'count', 'rfind'])}({w.letter()})"

    def test() -> Made:
        method = rng.choice(["startswith", "endswith"])
        return "bool", f"{w.any('str')}.{method}({w.letter()})"

    def classify() -> Made:
        return "bool", f"{w.any('str')}.{rng.choice(['isupper', 'islower', 'isalpha', 'isdigit'])}()"

    def concatenate() -> Made:
        return "str", f"{w.any('str')} + {w.any('str') if rng.random() < 0.4 else w.letters(1, 2)}"

    def repeat() -> Made:
        return "str", f"{w.any('str')} * {rng.randrange(2, 4)}"

    def pad() -> Made:
        method = rng.choice(["ljust", "rjust", "center"])
        return "str", f"{w.any('str')}.{method}({rng.randrange(4, 9)}, {rng.choice(['.', '-', '*'])!r})"

    def strip() -> Made:
        return "str", f"{w.any('str')}.{rng.choice(['strip', 'lstrip', 'rstrip'])}({w.letters(1, 2)})"

    def split() -> Made:
        return "texts", f"{w.any('str')}.split({rng.choice([w.letter(), w.letter(), ''])})"

    def join() -> Made:
        return "str", f"{rng.choice(['-', '+', '', ' '])!r}.join({w.any('str')})"

    def condition() -> str:
        return rng.choice([f"{w.letter()} in {w.any('str')}", f"len({w.any('str')}) > {rng.randrange(1, 6)}"])

    productions = [case, replace, search, test, classify, concatenate, repeat, pad, strip, split, join]
    w.statements(rng.randrange(2, 5), productions, condition)
    return w.finish()


def slicing(w: Writer) -> GeneratedProgram | None:
    """Slices of strings and lists, with steps and negative bounds, read, assigned, and deleted."""
    rng = w.rng
    if rng.random() < 0.5:
        w.parameter("str", w.letters(3, 6))
    if not w.has("str") or rng.random() < 0.5:
        w.parameter("list", w.numbers(3, 6))

    def bounds() -> str:
        low = rng.choice(["", str(rng.randrange(1, 4)), str(-rng.randrange(1, 4))])
        high = rng.choice(["", str(rng.randrange(2, 6)), str(-rng.randrange(1, 3))])
        step = rng.choice(["", "", "", ":2", ":-1", ":3"])
        return f"{low}:{high}{step}"

    def kind() -> str:
        return rng.choice([kind for kind in ("str", "list") if w.has(kind)])

    def cut() -> Made:
        of = kind()
        return of, f"{w.any(of)}[{bounds()}]"

    def rotate() -> Made:
        of = kind()
        name, at = w.any(of), rng.randrange(1, 4)
        return of, f"{name}[{at}:] + {name}[:{at}]"

    def assign_slice() -> Made:
        low = rng.randrange(0, 3)
        return "", f"{w.any('list')}[{low}:{low + rng.randrange(0, 3)}] = {w.numbers(0, 2)}"

    def delete() -> Made:
        return "", f"del {w.any('list')}[{rng.randrange(0, 2)}:{rng.randrange(1, 4)}]"

    def length() -> Made:
        return "int", f"len({w.any(kind())}[{bounds()}])"

    def condition() -> str:
        name = w.any(kind())
        return rng.choice([f"{name}[:1] == {name}[-1:]", f"len({name}) > {rng.randrange(1, 5)}"])

    productions = [cut, cut, rotate, length]
    if w.has("list"):
        productions += [assign_slice, delete]
    w.statements(rng.randrange(2, 5), productions, condition)
    return w.finish()


def formatting(w: Writer) -> GeneratedProgram | None:
    """Strings from values: f-strings with widths and conversions, `str`, `%`, `format`, and joins of numbers."""
    rng = w.rng
    w.parameter("int", w.number())
    w.parameter("str", rng.choice([w.letters(1, 3), w.words(1)]))
    if rng.random() < 0.4:
        w.parameter("int", w.number())

    def f_string() -> Made:
        spec = rng.choice(["", "", ":3", ":03", ":>4", ":<4", ":04d"])
        a, s = w.any("int"), w.any("str")
        return "str", rng.choice(
            [f"f'{{{s}}}={{{a}{spec}}}'", f"f'{{{a}{spec}}}-{{{s}}}'", f"f'<{{{s}!r}}>'", f"f'{{{a}}}:{{{a} + 1}}'"]
        )

    def percent() -> Made:
        return (
            "str",
            f"'{rng.choice(['%d', '%3d', '%03d'])}{rng.choice([',', '/', ' '])}%s' % ({w.any('int')}, {w.any('str')})",
        )

    def text_of() -> Made:
        return "str", rng.choice([f"str({w.any('int')})", f"str({w.any('int')}).zfill({rng.randrange(3, 6)})"])

    def add_text() -> Made:
        return "str", f"{w.any('str')} + str({w.any('int')})"

    def number_of() -> Made:
        return "int", f"int(str({w.any('int')}) + {w.digit()!r})"

    def digits() -> Made:
        return "int", f"len(str({w.any('int')} * {rng.randrange(2, 20)}))"

    def method() -> Made:
        return "str", f"'{{}}{rng.choice(['.', '+', '; '])}{{}}'.format({w.any('str')}, {w.any('int')})"

    def change() -> Made:
        return "", f"{w.any('int')} += {w.number()}"

    def condition() -> str:
        return f"len({w.any('str')}) {rng.choice('<>')} {rng.randrange(1, 6)}"

    w.statements(
        rng.randrange(2, 5),
        [f_string, f_string, percent, text_of, add_text, number_of, digits, method, change],
        condition,
    )
    return w.finish()


# ---- containers ------------------------------------------------------------------------------------------------------


def lists(w: Writer) -> GeneratedProgram | None:
    """Methods of lists, aliases and copies, and loops over lists that accumulate."""
    rng = w.rng
    name = w.parameter("list", w.numbers(2, 5))
    w.parameter("int", w.number())

    def change() -> Made:
        t = w.any("list")
        return "", rng.choice(
            [
                f"{t}.append({w.any('int')})",
                f"{t}.append({w.number()})",
                f"{t}.extend({w.numbers(1, 2)})",
                f"{t}.insert({rng.randrange(0, 3)}, {w.number()})",
                f"{t}.remove({t}[0])",
                f"{t}.pop({rng.choice(['', '0', '1', '-1'])})",
                f"{t}.reverse()",
                f"{t}.sort({rng.choice(['', 'reverse=True'])})",
                f"{t}[{rng.choice(['0', '1', '-1'])}] = {w.any('int')}",
                f"{t}[0] += {w.number()}",
            ]
        )

    def read() -> Made:
        t = w.any("list")
        return "int", rng.choice(
            [f"{t}[{rng.choice(['0', '1', '-1', '-2'])}]", f"sum({t})", f"max({t})", f"min({t})", f"len({t})",
             f"{t}.index({t}[-1])", f"{t}.count({w.number()})", f"{t}.pop()"]
        )  # fmt: skip

    def copy() -> Made:
        t = w.any("list")
        return "list", rng.choice([f"list({t})", f"{t}.copy()", f"{t} + {w.numbers(1, 2)}", f"sorted({t})", t])

    def condition() -> str:
        t = w.any("list")
        return rng.choice([f"{t}[0] > {w.number()}", f"{w.any('int')} in {t}", f"len({t}) > {rng.randrange(2, 5)}"])

    if rng.random() < 0.4:
        total = w.assign("int", rng.choice(["0", "1", f"{name}[0]"]))
        with w.block(f"for e in {name}:"):
            test = rng.choice([f"e > {w.number()}", f"e % 2 == {rng.randrange(2)}", f"e < {total}", ""])
            step = rng.choice(
                [f"{total} += e", f"{total} -= e", f"{total} = max({total}, e)", f"{total} += {w.digit()}"]
            )
            if test:
                with w.block(f"if {test}:"):
                    w.line(step)
            else:
                w.line(step)
    w.statements(rng.randrange(1, 4), [change, change, read, copy], condition)
    return w.finish()


def nested(w: Writer) -> GeneratedProgram | None:
    """Containers in containers: lists of lists, dicts of lists, lists of tuples, and dicts of dicts."""
    rng = w.rng
    form = rng.choice(["lists", "dict", "tuples", "dicts"])
    keys = rng.sample("ABCD", 2)
    digits = [w.number() for _ in range(4)]
    w.parameter("int", w.number())
    argument = {
        "lists": f"[[{digits[0]}, {digits[1]}], [{digits[2]}]]",
        "dict": f"{{'{keys[0]}': [{digits[0]}], '{keys[1]}': [{digits[1]}, {digits[2]}]}}",
        "tuples": f"[('{keys[0]}', {digits[0]}), ('{keys[1]}', {digits[1]})]",
        "dicts": f"{{'{keys[0]}': {{'x': {digits[0]}}}, '{keys[1]}': {{'x': {digits[1]}, 'y': {digits[2]}}}}}",
    }[form]
    t = w.parameter("list" if form in ("lists", "tuples") else "dict", argument)
    at = rng.choice(["0", "1", "-1"]) if form in ("lists", "tuples") else f"'{rng.choice(keys)}'"
    a = w.variables["int"][0]

    def read() -> Made:
        inner = {"lists": "0", "dict": "0", "tuples": "1", "dicts": "'x'"}[form]
        return "int", rng.choice([f"{t}[{at}][{inner}]", f"len({t}[{at}])", f"{t}[{at}][{inner}] + {a}", f"len({t})"])

    def change() -> Made:
        other, size = w.number(), rng.randrange(2)
        key = rng.choice("ABEF")
        forms = {
            "lists": [f"{t}[{at}].append({a})", f"{t}.append([{other}])", f"{t}[{size}][0] = {other}",
                      f"{t}[{at}] = [{a}, {other}]", f"{t}[{size}][0] += {other}"],
            "dict": [f"{t}[{at}].append({a})", f"{t}['{key}'] = [{other}]", f"{t}[{at}][0] += {other}",
                     f"{t}.setdefault('{key}', []).append({other})"],
            "tuples": [f"{t}.append(('{key}', {other}))", f"{t}[{at}] = ('{key}', {a})", f"{t}.reverse()"],
            "dicts": [f"{t}[{at}]['x'] = {other}", f"{t}[{at}]['y'] = {a}", f"{t}['{key}'] = {{'x': {other}}}",
                      f"{t}[{at}]['x'] += {other}"],
        }  # fmt: skip
        return "", rng.choice(forms[form])

    def number() -> Made:
        return "", f"{a} {rng.choice(['+=', '-='])} {w.number()}"

    def condition() -> str:
        return rng.choice([f"len({t}) > {rng.randrange(1, 4)}", f"{a} > {w.number()}"])

    if rng.random() < 0.45:
        header, value = {
            "lists": (f"for e in {t}:", rng.choice(["e[0]", "len(e)", "sum(e)", "e[-1]"])),
            "dict": (f"for c in {t}:", rng.choice([f"{t}[c][0]", f"len({t}[c])", f"sum({t}[c])"])),
            "tuples": (f"for c, e in {t}:", rng.choice(["e", "e * 2", "e % 10"])),
            "dicts": (f"for c, e in {t}.items():", rng.choice(["e['x']", "len(e)", "e.get('y', 0)"])),
        }[form]
        total = w.assign("int", str(rng.randrange(3)))
        with w.block(header):
            w.line(f"{total} {rng.choice(['+=', '+=', '-='])} {value}")
    w.statements(rng.randrange(1, 4), [read, change, change, number], condition)
    return w.finish()


def dicts(w: Writer) -> GeneratedProgram | None:
    """Methods of dicts, counting, grouping, inversion, and loops over items."""
    rng = w.rng
    keys = rng.sample("ABCDE", rng.randrange(1, 4))
    d = w.parameter("dict", "{" + ", ".join(f"'{key}': {w.number()}" for key in keys) + "}")
    s = w.parameter("str", w.letters(2, 4))
    w.parameter("int", w.digit())

    def key() -> str:
        return w.letter()

    def change() -> Made:
        at = key()
        return "", rng.choice(
            [
                f"{d}[{at}] = {w.number()}",
                f"{d}[{at}] = {d}.get({at}, 0) + {w.digit()}",
                f"{d}.pop({at}, None)",
                f"{d}.update({{{at}: {w.number()}}})",
                f"{d}.setdefault({at}, {w.number()})",
                f"{d}['{rng.choice(keys)}'] += {w.number()}",
            ]
        )

    def read() -> Made:
        return "int", rng.choice(
            [f"{d}.get({key()}, 0)", f"len({d})", f"sum({d}.values())", f"{d}['{rng.choice(keys)}']",
             f"{d}.get({s}[0], {w.digit()})", f"max({d}.values())"]
        )  # fmt: skip

    def view() -> Made:
        return "list", rng.choice([f"list({d})", f"sorted({d})", f"list({d}.values())", f"sorted({d}.items())"])

    def condition() -> str:
        return rng.choice([f"{key()} in {d}", f"len({d}) > {rng.randrange(1, 4)}", f"{key()} not in {d}"])

    form = rng.choice(["count", "items", "invert", "none", "none"])
    if form == "count":
        with w.block(f"for c in {s}:"):
            w.line(
                rng.choice(
                    [f"{d}[c] = {d}.get(c, 0) + 1", f"{d}[c] = {d}.get(c, 0) + {w.digit()}", f"{d}[c] = {s}.index(c)"]
                )
            )
    elif form == "items":
        total = w.assign("int", rng.choice(["0", "1", "100"]))
        with w.block(f"for c, e in {d}.items():"):
            step = rng.choice([f"{total} += e", f"{total} -= e", f"{total} = max({total}, e)"])
            test = rng.choice(["", f"e > {w.number()}", f"c in {s}"])
            if test:
                with w.block(f"if {test}:"):
                    w.line(step)
            else:
                w.line(step)
    elif form == "invert":
        new = w.assign("dict", "{}")
        if new != d:
            with w.block(f"for c in {d}:"):
                w.line(
                    rng.choice([f"{new}[{d}[c]] = c", f"{new}[c] = {d}[c] + {w.number()}", f"{new}[c] = {d}[c] % 10"])
                )
    w.statements(rng.randrange(1, 4), [change, change, read, view], condition)
    return w.finish()


def sets(w: Writer) -> GeneratedProgram | None:
    """Sets of small integers: their methods and operators, and loops that collect what was seen.

    The display of small integers in a set has the same order on every run, unlike that of strings.
    """
    rng = w.rng

    def some() -> str:
        return "{" + ", ".join(map(str, sorted(rng.sample(range(8), rng.randrange(1, 4))))) + "}"

    w.parameter("set", some())
    if rng.random() < 0.6:
        w.parameter("set", some())
    else:
        w.parameter("list", f"[{', '.join(str(rng.randrange(8)) for _ in range(rng.randrange(2, 5)))}]")

    def change() -> Made:
        element = rng.randrange(8)
        return "", rng.choice(
            [f"{w.any('set')}.add({element})", f"{w.any('set')}.discard({element})",
             f"{w.any('set')}.update({some()})", f"{w.any('set')} |= {some()}", f"{w.any('set')} -= {some()}"]
        )  # fmt: skip

    def combine() -> Made:
        other = w.any("set") if rng.random() < 0.5 else some()
        method = rng.choice(["union", "intersection", "difference", "symmetric_difference"])
        return "set", rng.choice([f"{w.any('set')}.{method}({other})", f"{w.any('set')} {rng.choice('|&-^')} {other}"])

    def read() -> Made:
        return rng.choice(
            [("int", f"len({w.any('set')})"), ("list", f"sorted({w.any('set')})"), ("int", f"sum({w.any('set')})"),
             ("bool", f"{w.any('set')} <= {some()}"), ("bool", f"{rng.randrange(8)} in {w.any('set')}")]
        )  # fmt: skip

    def condition() -> str:
        return rng.choice([f"{rng.randrange(8)} in {w.any('set')}", f"len({w.any('set')}) > {rng.randrange(1, 4)}"])

    if w.has("list"):
        t, u = w.any("list"), w.any("set")
        with w.block(f"for e in {t}:"), w.block(f"if e {rng.choice(['in', 'not in'])} {u}:"):
            w.line(
                rng.choice(
                    [f"{u}.add(e + {rng.randrange(3)})", f"{u}.discard(e)", f"{u}.add(e % {rng.randrange(2, 4)})"]
                )
            )
    w.statements(rng.randrange(2, 4), [change, combine, combine, read], condition)
    return w.finish()


def comprehensions(w: Writer) -> GeneratedProgram | None:
    """List, dict, and set comprehensions, with conditions and conditional expressions."""
    rng = w.rng
    w.parameter("list", w.numbers(2, 4))
    if rng.random() < 0.6:
        w.parameter("int", w.digit())
    if rng.random() < 0.5:
        w.parameter("str", w.letters(2, 4))

    def value() -> str:
        forms = [
            "e",
            f"e + {w.number()}",
            f"e - {w.digit()}",
            f"e * {rng.randrange(2, 5)}",
            f"e % {rng.randrange(2, 6)}",
            f"e // {rng.randrange(2, 5)}",
            f"{w.digit()} if e > {w.number()} else e",
        ]
        if w.has("int"):
            forms += [f"e + {w.any('int')}", f"e * {w.any('int')}"]
        return rng.choice(forms)

    def test() -> str:
        return rng.choice(
            ["", "", f" if e > {w.number()}", f" if e % 2 == {rng.randrange(2)}", f" if e < {w.number()}"]
        )

    def of_list() -> Made:
        return "list", f"[{value()} for e in {w.any('list')}{test()}]"

    def of_range() -> Made:
        return "list", f"[{value()} for e in range({rng.randrange(2, 5)}){test()}]"

    def of_string() -> Made:
        s = w.any("str")
        return rng.choice(
            [("texts", f"[c + {w.letter()} for c in {s}]"), ("list", f"[{s}.count(c) for c in {s}]"),
             ("dict", f"{{c: {s}.find(c) for c in {s}}}"), ("str", f"''.join([c for c in {s} if c != {w.letter()}])"),
             ("texts", f"[c * {rng.randrange(2, 4)} for c in {s} if c > {w.letter()}]")]
        )  # fmt: skip

    def of_dict() -> Made:
        return "dict", f"{{e: {value()} for e in {w.any('list')}{test()}}}"

    def reduce() -> Made:
        return "int", f"{rng.choice(['sum', 'len'])}([{value()} for e in {w.any('list')}{test()}])"

    productions = [of_list, of_list, of_range, of_dict, reduce]
    if w.has("str"):
        productions += [of_string, of_string]
    w.statements(rng.randrange(1, 4), productions, lambda: f"len({w.any('list')}) > {rng.randrange(1, 4)}")
    return w.finish()


def sorting(w: Writer) -> GeneratedProgram | None:
    """Sort numbers, strings, and tuples, and find their minima and maxima, with keys."""
    rng = w.rng
    kind = rng.choice(["numbers", "strings", "tuples"])
    count = rng.randrange(3, 5)
    makers: dict[str, Callable[[], str]] = {
        "numbers": w.number,
        "strings": lambda: w.letters(1, 3),
        "tuples": lambda: f"({w.letter()}, {w.digit()})",
    }
    elements = makers[kind]
    t = w.parameter("list", f"[{', '.join(elements() for _ in range(count))}]")

    def key() -> str:
        return rng.choice(
            {
                "numbers": [
                    f"lambda e: e % {rng.randrange(2, 10)}",
                    "lambda e: -e",
                    f"lambda e: abs(e - {w.number()})",
                    "str",
                ],
                "strings": ["len", f"lambda c: c.count({w.letter()})", "lambda c: c[-1]", "lambda c: (len(c), c)"],
                "tuples": [
                    "lambda e: e[1]",
                    "lambda e: -e[1]",
                    "lambda e: (e[1], e[0])",
                    f"lambda e: e[1] % {rng.randrange(2, 5)}",
                ],
            }[kind]
        )

    def ordered() -> Made:
        return "list", f"sorted({t}, key={key()}{rng.choice(['', '', ', reverse=True'])})"

    def in_place() -> Made:
        return "", f"{t}.sort(key={key()})"

    def first() -> Made:
        of = {"numbers": "int", "strings": "str", "tuples": "tuple"}[kind]
        return of, f"{rng.choice(['min', 'max'])}({t}, key={key()})"

    def plain() -> Made:
        return "list", f"sorted({t}{rng.choice(['', ', reverse=True'])})"

    def add() -> Made:
        return "", f"{t}.append({elements()})"

    w.statements(rng.randrange(1, 4), [ordered, ordered, in_place, first, plain, add])
    if rng.random() < 0.3:
        w.line(f"{t} = {t}[{rng.choice([':2', '1:', '::-1'])}]")
    return w.finish()


# ---- functions, generators, classes, exceptions ----------------------------------------------------------------------


def generators(w: Writer) -> GeneratedProgram | None:
    """Generator functions and how they are consumed: `list`, `sum`, `next`, and loops with a break."""
    rng = w.rng
    n = rng.choice("nk")
    form = rng.choice(["range", "while", "filter", "running"])
    value = rng.choice(
        ["i", f"i * {rng.randrange(2, 6)}", f"i + {w.digit()}", f"i % {rng.randrange(2, 4)}", f"{n} - i"]
    )
    name = rng.choice(["gen", "g"])
    every = f"    for i in range({n}):"
    lines = {
        "range": [every, f"        yield {value}"],
        "while": [
            f"    while {n} > {rng.randrange(2)}:",
            f"        yield {n} * {rng.randrange(1, 5)}",
            f"        {n} -= {rng.randrange(1, 3)}",
        ],
        "filter": [every, f"        if i % 2 == {rng.randrange(2)}:", f"            yield {value}"],
        "running": [f"    total = {w.digit()}", every, f"        total += {value}", "        yield total"],
    }[form]
    if rng.random() < 0.2:
        lines.append(f"    yield {w.number()}")
    w.define(f"def {name}({n}):", *lines)
    x = w.parameter("int", str(rng.randrange(2, 5)))
    call = f"{name}({x})"
    use = rng.choice(["list", "sum", "for", "next", "break"])
    if use in ("list", "sum"):
        kind = "list" if use == "list" else "int"
        result = w.assign(kind, f"{use}({call})")
        more = f"+ [{w.number()}]" if use == "list" else f"{rng.choice('+-*')} {w.digit()}"
        w.line(f"{result} = {result} {more}")
    elif use == "next":
        w.line(f"it = {call}")
        first = w.assign("int", "next(it)")
        w.line(f"{first} {rng.choice(['+=', '-='])} next(it, {w.number()})")
    else:
        total = w.assign("int", w.digit())
        with w.block(f"for e in {call}:"):
            if use == "break":
                with w.block(f"if e > {w.digit()}:"):
                    w.line("break")
            w.line(f"{total} {rng.choice(['+=', '-='])} e")
    return w.finish()


def classes(w: Writer) -> GeneratedProgram | None:
    """Small classes with a representation, methods that change and read attributes, and sometimes a subclass."""
    rng = w.rng
    cls = rng.choice(["P", "Box", "Node"])
    field = rng.choice(["a", "n", "v"])
    w.define(
        f"class {cls}:",
        f"    def __init__(self, {field}):",
        f"        self.{field} = {rng.choice([field, field, f'{field} + {w.digit()}', f'{field} * 2'])}",
        "    def __repr__(self):",
        f"        return f'{cls}({{self.{field}}})'",
    )
    change, read = rng.choice(["add", "grow", "set"]), rng.choice(["get", "twice", "area"])
    step = {"add": f"+= {rng.choice(['b', f'b + {w.digit()}', 'b * 2'])}", "grow": "*= b",
            "set": f"= {rng.choice(['b', f'b + {w.digit()}', f'b - self.{field}'])}"}[change]  # fmt: skip
    w.define(f"    def {change}(self, b):", f"        self.{field} {step}")
    value = {"get": f"self.{field}", "twice": f"self.{field} * 2", "area": f"self.{field} * {rng.randrange(2, 9)}"}[
        read
    ]
    w.define(
        f"    def {read}(self):", f"        return {value}{rng.choice(['', f' + {w.number()}', f' - {w.digit()}'])}"
    )
    made = cls
    if rng.random() < 0.3:
        made = rng.choice(["Q", "Sub"])
        w.define(
            f"class {made}({cls}):",
            f"    def {read}(self):",
            f"        return self.{field} {rng.choice('+-')} {w.number()}",
        )
    x = w.parameter("int", w.number())
    w.line(f"o = {made}({rng.choice([x, f'{x} + {w.digit()}'])})")

    def mutate() -> Made:
        return "", f"o.{change}({rng.choice([x, w.digit(), w.number()])})"

    def assign_field() -> Made:
        return "", f"o.{field} {rng.choice(['+=', '-=', '='])} {w.number()}"

    def call() -> Made:
        return "int", f"o.{read}()"

    def get() -> Made:
        return "int", f"o.{field}{rng.choice(['', f' + {x}', f' % {rng.randrange(2, 9)}'])}"

    w.statements(rng.randrange(1, 4), [mutate, mutate, assign_field, call, get], lambda: f"o.{field} > {w.number()}")
    return w.finish(rng.choice(["o", f"o.{read}()", f"o.{field}", "", ""]))


def exceptions(w: Writer) -> GeneratedProgram | None:
    """Raising and handling: in place or in a called function, with else and finally, by type, with the message used."""
    rng = w.rng
    x = w.parameter("int", str(rng.randrange(0, 8)))
    form = rng.choice(["call", "call", "index", "key", "zero", "convert"])
    error = rng.choice(["ValueError", "KeyError", "TypeError", "RuntimeError"])
    if form == "call":
        n = rng.choice("nk")
        helper = rng.choice(["check", "g"])
        test = f"{n} {rng.choice(['<', '>', '=='])} {rng.randrange(1, 7)}"
        w.define(
            f"def {helper}({n}):",
            f"    if {test}:",
            f"        raise {error}({rng.choice([w.letter(), w.words(1), n])})",
            f"    return {n} {rng.choice('+-*')} {w.number()}",
        )
        attempt = f"{helper}({rng.choice([x, f'{x} + {rng.randrange(1, 4)}', f'{x} * 2'])})"
    elif form == "index":
        t = w.parameter("list", w.numbers(1, 4))
        attempt, error = f"{t}[{rng.choice([x, str(rng.randrange(4))])}]", "IndexError"
    elif form == "key":
        d = w.parameter("dict", f"{{{w.letter()}: {w.number()}, {w.letter()}: {w.number()}}}")
        attempt, error = f"{d}[{w.letter()}]", "KeyError"
    elif form == "zero":
        attempt, error = (
            f"{w.number()} {rng.choice(['//', '%'])} {rng.choice([x, f'({x} - {rng.randrange(1, 5)})'])}",
            "ZeroDivisionError",
        )
    else:
        s = w.parameter("str", rng.choice([repr(w.number()), w.letters(1, 2)]))
        attempt, error = f"int({s})", "ValueError"
    if rng.random() < 0.3:
        w.line(f"{x} {rng.choice(['+=', '-='])} {rng.randrange(1, 5)}")
    result = w.new_name("int")
    w.variables["int"].append(result)
    caught = rng.choice([error, error, "Exception", f"({error}, AttributeError)"])
    used = rng.random() < 0.3 and form in ("call", "key")
    with w.block("try:"):
        w.line(f"{result} = {attempt}")
    with w.block(f"except {caught}{' as e' if used else ''}:"):
        w.line(f"{result} = {'e.args[0]' if used else rng.choice([w.number(), x, f'-{w.digit()}'])}")
    if rng.random() < 0.3:
        with w.block("else:"):
            w.line(f"{result} += {w.number()}")
    if rng.random() < 0.3:
        with w.block("finally:"):
            w.line(f"{x} {rng.choice(['+=', '-='])} {w.digit()}")
    return w.finish(rng.choice([result, result, f"{result}, {x}"]))


def recursion(w: Writer) -> GeneratedProgram | None:
    """Functions that call themselves: over integers, strings and lists, with one or two calls, or an accumulator."""
    makers = [_countdown, _two_calls, _accumulator, _digits, _string_recursion, _list_recursion, _remainders]
    parameters, test, base, step, arguments = w.rng.choice(makers)(w)
    code = f"def f({parameters}):\n    if {test}:\n        return {base}\n    return {step}\n"
    return GeneratedProgram(code, f"f({arguments})")


Recursion = tuple[str, str, str, str, str]
"""Parameters, test of the base case, its result, the recursive result, and arguments."""


def _countdown(w: Writer) -> Recursion:
    c = w.digit()
    step = [f"f(n - 1) + n * {c}", f"f(n - 1) * 2 + {c}", f"n - f(n - 1) + {c}", f"f(n - 1) * n + {c}"]
    test = f"n {w.rng.choice(['<', '<='])} {w.rng.randrange(1, 3)}"
    return "n", test, w.digit(), w.rng.choice([*step, f"{w.number()} - f(n - 1)"]), str(w.rng.randrange(2, 6))


def _two_calls(w: Writer) -> Recursion:
    base, c = w.digit(), w.digit()
    step = f"f(n - 1) {w.rng.choice('+-')} f(n - 2){w.rng.choice(['', f' + {c}', f' * {c}'])}"
    base = w.rng.choice([base, f"n + {base}", f"n * {base}"])
    return "n", f"n < {w.rng.randrange(2, 4)}", base, step, str(w.rng.randrange(2, 5))


def _accumulator(w: Writer) -> Recursion:
    c = w.digit()
    step = f"f(n - {w.rng.choice([1, 1, 2])}, a {w.rng.choice('+-*')} {w.rng.choice(['n', w.digit()])})"
    base = w.rng.choice(["a", f"a + {c}", f"a * {c}"])
    return "n, a", f"n < {w.rng.randrange(1, 4)}", base, step, f"{w.rng.randrange(2, 6)}, {w.number()}"


def _digits(w: Writer) -> Recursion:
    last = w.rng.choice(["n % 10", f"n % {w.rng.randrange(2, 9)}", f"(n % 10 + {w.digit()})"])
    base = w.rng.choice(["n", w.digit(), f"n + {w.digit()}"])
    step = f"f(n // 10) {w.rng.choice('+*-')} {last}"
    return "n", f"n < {w.rng.choice([1, 10])}", base, step, str(w.rng.randrange(10, 9999))


def _string_recursion(w: Writer) -> Recursion:
    c = w.letter()
    step = [
        "f(s[1:]) + s[0]",
        "s[-1] + f(s[:-1])",
        f"f(s[1:]) + {c}",
        f"s[0] + {c} + f(s[1:])",
        f"f(s[2:]) + s[0] + {c}",
    ]
    test = w.rng.choice(["not s", "s == ''", f"len(s) < {w.rng.randrange(1, 3)}"])
    base = w.rng.choice(["s", repr(w.digit()), w.letters(1, 2)])
    return "s", test, base, w.rng.choice([*step, f"f(s[2:]) + s[0] + {c}"]), w.letters(2, 5)


def _list_recursion(w: Writer) -> Recursion:
    c = w.digit()
    step = ["t[0] + f(t[1:])", f"f(t[1:]) + t[0] * {c}", f"max(t[0] + {c}, f(t[1:]))", f"t[-1] * {c} - f(t[:-1])"]
    test = w.rng.choice(["not t", "len(t) == 0", "t == []"])
    return "t", test, w.digit(), w.rng.choice([*step, f"f(t[1:]) - t[0] + {c}"]), w.numbers(1, 4)


def _remainders(w: Writer) -> Recursion:
    test = f"b {w.rng.choice(['== 0', f'< {w.rng.randrange(1, 3)}'])}"
    base = f"a{w.rng.choice(['', f' + {w.digit()}', f' * {w.digit()}'])}"
    step = f"f(b, a % b){w.rng.choice(['', f' + {w.digit()}', f' * {w.digit()}'])}"
    return "a, b", test, base, step, f"{w.rng.randrange(5, 100)}, {w.rng.randrange(2, 50)}"


def while_loops(w: Writer) -> GeneratedProgram | None:
    """`while` loops with break, continue, and else, that count, halve, or search."""
    rng = w.rng
    form = rng.choice(["up", "down", "halve", "search"])
    total = w.assign("int", w.digit())
    if form == "search":
        t = w.parameter("list", w.numbers(3, 5))
        i = w.assign("int", "0")
        if i == total:
            return None
        header, step, test = f"while {i} < len({t}):", f"{i} += 1", f"{t}[{i}] {rng.choice('<>')} {w.number()}"
        gain = rng.choice([f"{t}[{i}]", i, w.digit()])
    elif form == "up":
        i = w.assign("int", str(rng.randrange(3)))
        n = w.parameter("int", str(rng.randrange(3, 7)))
        header, step, test = (
            f"while {i} < {n}:",
            f"{i} += {rng.randrange(1, 3)}",
            f"{i} % {rng.randrange(2, 4)} == {rng.randrange(2)}",
        )
        gain = rng.choice([i, w.number(), f"{i} * {rng.randrange(2, 5)}"])
    elif form == "down":
        i = w.parameter("int", str(rng.randrange(3, 7)))
        header, step, test = (
            f"while {i} > {rng.randrange(2)}:",
            f"{i} -= {rng.randrange(1, 3)}",
            f"{i} == {rng.randrange(1, 5)}",
        )
        gain = rng.choice([i, w.number(), f"{i} * {i}"])
    else:
        i = w.parameter("int", str(rng.randrange(10, 100)))
        header, step, test = (
            f"while {i} > {rng.randrange(1, 4)}:",
            f"{i} //= {rng.randrange(2, 4)}",
            f"{i} % 2 == {rng.randrange(2)}",
        )
        gain = rng.choice([f"{i} % 10", i, w.digit()])
    if i == total:
        return None
    jump = rng.choice(["break", "continue", "none", "none"])
    with w.block(header):
        if jump == "continue":  # the step comes first, so that the loop ends
            w.line(step)
            with w.block(f"if {test if form != 'search' else f'{i} == {rng.randrange(1, 4)}'}:"):
                w.line("continue")
            if form == "search":
                gain = i
        elif jump == "break":
            with w.block(f"if {test}:"):
                w.line("break")
        w.line(f"{total} {rng.choice(['+=', '+=', '-='])} {gain}")
        if jump != "continue":
            w.line(step)
    if rng.random() < (0.6 if jump == "break" else 0.1):
        with w.block("else:"):
            w.line(f"{total} = {rng.choice([w.number(), f'-{total}', f'{total} * 2'])}")
    if rng.random() < 0.4:
        w.line(f"{total} {rng.choice(['+=', '-=', '*='])} {w.digit()}")
    return w.finish(rng.choice([total, total, f"{total}, {i}"]))
