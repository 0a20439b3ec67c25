"""Random whole programs for differential tests: everything a function body can do, always ending in few steps."""

from __future__ import annotations

from hypothesis import strategies as st

NAMES = ["a", "b", "c", "x", "y"]

atoms = st.one_of(
    st.integers(-3, 12).map(repr),
    st.sampled_from(["None", "True", "1.5", "-0.0", "1e300", "'s'", '"it\'s"', "'é\\n'", "b'\\x00'", "2**80", "3j"]),
    st.sampled_from(
        ["[]", "()", "{}", "set()", "frozenset({1})", "[1, [2]]", "(1,)", "{'k': [1]}", "{1, 2}", "range(3)"]
    ),
    st.sampled_from(["Plain()", "Shown(1)", "Broken()", "len", "shout"]),
    st.sampled_from(NAMES),
)


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    name = st.sampled_from(NAMES)
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "*", "-", "//", "<", "==", "and", "or"]), inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("({}, {})".format, inner, inner),
        st.builds("{{{}: {}}}".format, atoms, inner),
        st.builds("[{} for {} in range(3)]".format, inner, name),
        st.builds("{{{n}: {v} for {n} in range(2)}}".format, n=name, v=inner),
        st.builds("list({} for {} in range(2))".format, inner, name),
        st.builds("[(lambda: {n}) for {n} in range(2)]".format, n=name),
        st.builds("(lambda {}: {})({})".format, name, inner, inner),
        st.builds("({} := {})".format, name, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("f'{{{}}}-'".format, name),
        st.builds("sorted([2, 1], key=lambda k: ({}, -k)[1])".format, inner),
        st.builds("helper({})".format, inner),
        st.builds("list(steps({}))".format, inner),
    )


expressions = st.recursive(atoms, _compound, max_leaves=4)


def _indent(block: str) -> str:
    return "".join(f"    {line}\n" for line in block.splitlines())


def _blocks(statement: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(statement, min_size=1, max_size=3).map("".join)


simple = st.one_of(
    st.builds("{} = {}\n".format, st.sampled_from(NAMES), expressions),
    st.builds("{} += {}\n".format, st.sampled_from(NAMES), expressions),
    st.builds("{}\n".format, expressions),
    st.builds("del {}\n".format, st.sampled_from(NAMES)),
    st.builds("{}, {} = {}\n".format, st.sampled_from(NAMES), st.sampled_from(NAMES), expressions),
    st.builds("{}.append({})\n".format, st.sampled_from(NAMES), expressions),
    st.builds("{}[0] = {}\n".format, st.sampled_from(NAMES), expressions),
    st.sampled_from(["pass\n", "raise ValueError(a)\n", "assert x, y\n", "return a\n", "print(end='')\n"]),
)


def _statements(statement: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    block = _blocks(statement).map(_indent)
    name = st.sampled_from(NAMES)
    return st.one_of(
        st.builds("if {}:\n{}else:\n{}".format, expressions, block, block),
        st.builds("for {} in {}:\n{}".format, name, st.sampled_from(["range(3)", "[1, 's']", "a", "steps(2)"]), block),
        st.builds("for {} in range(2): {} = {}\n".format, name, name, expressions),
        st.builds("n = 2\nwhile n:\n    n -= 1\n{}".format, block),
        st.builds("try:\n{}except {}:\n{}".format, block, st.sampled_from(["ValueError as e", "Exception"]), block),
        st.builds("try:\n{}finally:\n{}".format, block, block),
        st.builds("with Managed() as {}:\n{}".format, name, block),
        st.builds("def helper({}):\n{}".format, name, block),
        st.builds("def helper({}=1):\n    nonlocal b\n{}".format, st.sampled_from(["a", "c", "x"]), block),
        st.builds("@decorated\ndef helper({}):\n{}".format, name, block),
        st.builds("def helper({}):\n{}    yield {}\n".format, name, block, expressions),
        st.builds("match {}:\n    case [{}, *_]:\n{}    case _:\n{}".format, expressions, name, block, block),
    )


statements = st.recursive(simple, _statements, max_leaves=10)

PRELUDE = """
class Plain:
    pass
class Shown:
    def __init__(self, value):
        self.value = value
    def __repr__(self):
        return f'Shown({self.value!r})'
class Broken:
    def __repr__(self):
        raise ValueError
class Managed:
    def __enter__(self):
        return self
    def __exit__(self, *error):
        return False
def decorated(function):
    def wrapper(*args):
        return function(*args)
    return wrapper
def shout(text='x'):
    return text
def helper(value):
    return value
def steps(n):
    for i in range(2):
        got = yield i
    return n
"""

programs = st.lists(statements, min_size=1, max_size=6).map(
    lambda body: PRELUDE + "def f(a, b, c):\n    global x\n    y = 0\n" + _indent("".join(body))
)
