"""Sources of inputs yield expressions, and the same ones in every process."""

import ast
import os
import random
import subprocess
import sys
import textwrap

import pytest
from cwm_core.corpus.functions.discovery import find_functions
from cwm_core.corpus.inputs import callsites, doctests, endpoint, mutation, strategies
from cwm_core.corpus.inputs.slices import Names, text
from hypothesis import given
from hypothesis import strategies as st


def names_of(code, module="pack.part"):
    tree = ast.parse(textwrap.dedent(code))
    return tree, Names(tree, module)


def calls_of(code, *wanted, importable=False):
    tree, names = names_of(code, "tests.test_part")
    return [text(call) for _, call in callsites.calls(tree, names, wanted, importable=importable)]


def test_a_call_brings_what_it_needs():
    code = """
    from pack.part import f
    SCALE = 3

    def test_f():
        unrelated = open("x")
        a = [1, 2]
        b = {"k": SCALE}
        assert f(a, b) == 1
    """
    f = "__import__('pack.part', fromlist=['f']).f"
    assert calls_of(code, "f") == [f"{f}([1, 2], {{'k': 3}})"]


def test_changes_of_a_variable_come_along():
    code = """
    import networkx as nx

    def test():
        G = nx.Graph()
        G.add_edge(1, 2)
        n = 1
        n += 1
        G[n] = 5
        assert nx.size(G, n)
    """
    [call] = calls_of(code, "size")
    assert call == (
        "((G := __import__('networkx').Graph()), G.add_edge(1, 2), (n := 1), (n := (n + 1)), G.__setitem__(n, 5), "
        "__import__('networkx').size(G, n))[-1]"
    )
    compile(call, "", "eval")


def test_calls_that_need_unknown_values_are_left_out():
    code = """
    import os
    from pack.part import f

    def test_f(tmp_path):
        f(tmp_path)
        with open("x") as file:
            f(file)
        for x in os.listdir():
            f(x)
        def inner(y):
            while True:
                pass
        f(inner)
        f(undefined)
    """
    assert calls_of(code, "f") == []


def test_loops_parameters_and_setups_give_values():
    code = """
    import pytest
    f = len

    @pytest.mark.parametrize("a, b", [(1, 2), (3, 4)])
    def test_one(a, b):
        f(a + b)

    class TestTwo:
        def setUp(self):
            self.values = [5]

        def test(self):
            for key in ("x", "y"):
                self.assertEqual(f(self.values, key), 1)
    """
    assert calls_of(code, "f") == ["len(1 + 2)", "len(3 + 4)", "len([5], 'x')", "len([5], 'y')"]


def test_examples_of_documentation_see_those_before_them():
    tree, names = names_of(
        '''
        import math

        def f(x):
            """
            >>> r = math.pi
            >>> f(r)
            3
            >>> for
            >>> f(2)
            """
        '''
    )
    calls = [text(names.localised(call)) for _, call in doctests.calls(tree, names, {"f"})]
    assert calls == ["f(math.pi)", "f(2)"]


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "part.py").write_text(
        textwrap.dedent(
            """
            from __future__ import annotations
            import dataclasses, enum

            class Colour(enum.Enum):
                RED = 1
                BLUE = 2

            @dataclasses.dataclass
            class Point:
                x: int
                y: float = 0.5
                def moved(self, by: tuple[int, int] | None, *rest: int, **more) -> Point:
                    return self

            def paint(points: list[Point], colour: Colour, *, mode: Literal["fast", "slow"] = "fast"):
                return mode

            def guess(text, n, callback, mapping, xs=(), *, flag=False):
                if text == "magic":
                    return mapping["key"]
                return callback(text.upper()[n:])
            """
        )
    )
    return {f.qualname: f for f in find_functions(folder / "part.py").functions}


def test_shapes_follow_hints_and_usage(functions):
    def kinds(name):
        return {a.name: {s.kind for s in a.shapes} for a in functions[name].arguments}

    guess = kinds("guess")
    assert "str" in guess["text"] and "callable" in guess["callback"] and "dict" in guess["mapping"]
    assert guess["xs"] >= {"tuple"} and guess["flag"] >= {"bool"}
    assert "'magic'" in [v for a in functions["guess"].arguments for s in a.shapes for v in s.values]
    paint = functions["paint"].arguments
    assert paint[1].shapes[0].values == ("Colour.RED", "Colour.BLUE")
    assert paint[2].shapes[0].values == ("'fast'", "'slow'")
    assert paint[0].shapes[0].of[0].name == "Point"


def test_drawn_calls_are_expressions_that_fit_the_signature(functions):
    for function in functions.values():
        drawn = strategies.calls(function, seed="1", count=40)
        assert len(drawn) > 5
        for call in drawn:
            ast.parse(call, mode="eval")
    for call in strategies.calls(functions["paint"], seed="1", count=40):
        tree = ast.parse(call, mode="eval").body
        assert len(tree.args) == 2 and {k.arg for k in tree.keywords} <= {"mode"}
        assert ast.unparse(tree.args[1]).startswith("Colour.")


SCRIPT = """
import sys
from cwm_core.corpus.functions.discovery import find_functions
from cwm_core.corpus.inputs import strategies
for f in find_functions(sys.argv[1]).functions:
    print(f)
    print(strategies.calls(f, seed="7", count=30))
"""


def test_the_same_calls_in_every_process_and_no_folder(tmp_path):
    from cwm_core.corpus import algorithms

    (tmp_path / "local.py").write_text("N = [123456, 'a local constant']\n")  # of which Hypothesis would make use
    printed = {
        subprocess.run(
            [sys.executable, "-c", loads + SCRIPT, algorithms.__file__],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed, loads in (("1", ""), ("2", "import local\n"))
    }
    assert len(printed) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"local.py", "__pycache__"}


literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@given(st.lists(literals, max_size=3), st.lists(literals, max_size=3), st.lists(st.text(max_size=3)), st.integers())
def test_mutations_are_calls_of_the_same_function(one, other, texts, seed):
    def call(arguments):
        return f"list(f({', '.join([*map(repr, arguments), 'key=[1]'])}))"

    spoken = [repr(t) for t in texts]
    mutated = mutation.mutate(call(one), call(other), spoken, random.Random(seed))
    assert mutated == mutation.mutate(call(one), call(other), spoken, random.Random(seed))
    if mutated is not None:
        tree = ast.parse(mutated, mode="eval").body
        assert isinstance(tree, ast.Call) and tree.func.id == "list"


def test_mutations_keep_what_is_bound():
    call = "(G := Graph([1, 2]), G.add(3), f(G, 4))[-1]"
    chance = random.Random(0)
    mutated = {mutation.mutate(call, call, (), chance) for _ in range(200)}
    assert len(mutated) > 50
    for one in mutated - {None}:
        parts = ast.parse(one, mode="eval").body.value.elts
        assert parts[0].target.id == "G"


def test_an_answer_is_only_parsed(functions):
    asked = []

    def generate(messages):
        asked.extend(messages)
        return "\n".join(
            [
                "Here are calls:",
                "```python",
                "guess('a', 1, len, {})",
                "`guess('b', 2, len, {})`",
                "import os; guess()",
                "open('/etc/passwd')",
                "guess(" * 1000,
                "x = guess('c', 1, len, {})",
                "[guess('d', n, len, {}) for n in range(3)]",
            ]
        )

    assert list(endpoint.calls(functions["guess"], generate)) == [
        "guess('a', 1, len, {})",
        "guess('b', 2, len, {})",
        "[guess('d', n, len, {}) for n in range(3)]",
    ]
    assert "def guess(" in asked[0]["content"]


@given(st.text())
def test_any_answer_is_survived(functions, answer):
    for call in endpoint.calls(functions["guess"], lambda messages: answer):
        ast.parse(call, mode="eval")
