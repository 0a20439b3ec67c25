"""The generated programs are deterministic, end, are as varied as claimed, and held-out ones are unseen."""

from __future__ import annotations

import ast
import hashlib
import math
import os
import subprocess
import sys
from itertools import islice

import pytest
from cwm_core.corpus.algorithms import ALGORITHMS
from cwm_core.corpus.generator import MAX_STEPS, GeneratedProgram, generate
from cwm_core.corpus.split import distinct, normalized
from oracle import record_source

HELD_OUT = 10**9  # seeds from here on are for evaluation
DIGEST = """
import hashlib
from cwm_core.corpus.generator import generate
print(hashlib.sha256("".join(map("".join, map(generate, range(500)))).encode()).hexdigest())
"""


def digest() -> str:
    return hashlib.sha256("".join(map("".join, map(generate, range(500)))).encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_programs_do_not_depend_on_the_hash_seed(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    out = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest()


def test_programs_are_the_same_on_every_python() -> None:
    assert digest() == "4a9ed4a86daa91d077a308aef10f48ee43afce377398411a48eb38f3cb2f4643"


def test_programs_end_within_their_steps() -> None:
    for seed in range(3000):
        program = generate(seed)
        frames = record_source(*program)
        assert len(frames) <= MAX_STEPS + 7, program
        assert 3 <= len(program.code.splitlines()) <= 30


def test_kinds_of_programs_have_their_shares() -> None:
    found = [kinds(generate(seed)) for seed in range(2000)]
    shares = {kind: sum(kind in of_program for of_program in found) / len(found) for kind in LEAST_SHARES}
    assert all(shares[kind] >= least for kind, least in LEAST_SHARES.items()), shares


LEAST_SHARES = {
    "int": 0.9, "str": 0.5, "list": 0.3, "dict": 0.2, "assignment": 0.85, "branch": 0.45, "loop": 0.25, "call": 0.12,
    "try": 0.08, "raised": 0.06, "recursion": 0.05,
}  # fmt: skip


def kinds(program: GeneratedProgram) -> set[str]:
    """Return what occurs in a program, by its syntax tree and by its execution."""
    tree, call = ast.parse(program.code), ast.parse(program.call)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    found = set()
    for node in [*ast.walk(tree), *ast.walk(call)]:
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | str() as value):
                found.add(type(value).__name__)
            case ast.List() | ast.Dict():
                found.add(type(node).__name__.lower())
            case ast.Assign() | ast.AugAssign():
                found.add("assignment")
            case ast.If():
                found.add("branch")
            case ast.For() | ast.While():
                found.add("loop")
            case ast.Try():
                found.add("try")
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    if called & functions:
        found.add("call")
    if "f" in called:
        found.add("recursion")
    if any(frame.event == "exception" for frame in record_source(*program)):
        found.add("raised")
    return found


def test_lines_of_a_program_are_distinct() -> None:
    for seed in range(500):
        lines = [line for line in generate(seed).code.splitlines() if line.strip() not in ("else:", "try:")]
        assert len(set(lines)) == len(lines)


def test_held_out_programs_share_nothing_with_training() -> None:
    seen: set[str] = set()
    training = list(distinct(map(generate, range(3000)), seen))
    held_out = list(islice(distinct(map(generate, range(HELD_OUT, HELD_OUT + 1000)), seen), 200))
    assert len(training) > 2700 and len(held_out) == 200
    assert not {normalized(p.code) for p in training} & {normalized(p.code) for p in held_out}
    assert not {p.code for p in training} & {p.code for p in held_out}


def test_normalized_code_ignores_own_names_alone() -> None:
    assert normalized("def f(a):\n    return len(a) + 1  # so\n") == normalized("def g(b):\n  return (len(b) + 1)")
    assert normalized("def f(a):\n    return len(a)\n") != normalized("def f(a):\n    return sum(a)\n")
    assert normalized("def f(a, b):\n    return a\n") != normalized("def f(a, b):\n    return b\n")


EXPECTED = {
    "gcd": math.gcd,
    "factorial": math.factorial,
    "power": pow,
    "square_root": math.isqrt,
    "multiply": lambda a, b: a * b,
    "maximum": max,
    "bubble_sort": sorted,
    "insertion_sort": sorted,
    "selection_sort": sorted,
    "merge": lambda left, right: sorted(left + right),
    "partition": lambda items, p: ([i for i in items if i < p], [i for i in items if i >= p]),
    "reverse": lambda items: items[::-1],
    "unique": lambda items: list(dict.fromkeys(items)),
    "is_prime": lambda n: n > 1 and all(n % d for d in range(2, n)),
    "primes_below": lambda n: [k for k in range(2, n) if all(k % d for d in range(2, k))],
    "sieve": lambda n: [k > 1 and all(k % d for d in range(2, k)) for k in range(n)],
    "digit_sum": lambda n: sum(map(int, str(n))),
    "to_binary": lambda n: bin(n)[2:] if n else "",
    "count_bits": int.bit_count,
    "prefix_sums": lambda items: [sum(items[: i + 1]) for i in range(len(items))],
    "linear_search": lambda items, wanted: items.index(wanted) if wanted in items else -1,
    "binary_search": lambda items, wanted: sum(item < wanted for item in items),
    "rotate": lambda items, k: [items[(i + k) % len(items)] for i in range(len(items))],
    "flatten": lambda rows: [item for row in rows for item in row],
    "transpose": lambda rows: [list(column) for column in zip(*rows, strict=True)],
    "is_palindrome": lambda text: text == text[::-1],
    "count_letters": lambda text: {c: text.count(c) for c in text},
    "are_anagrams": lambda a, b: sorted(a) == sorted(b),
    "find_all": lambda text, letter: [i for i, c in enumerate(text) if c == letter],
    "hamming": lambda a, b: sum(x != y for x, y in zip(a, b, strict=False)),
    "hanoi": lambda n, *pegs: 2**n - 1,
    "invert": lambda table: {value: key for key, value in table.items()},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_algorithms_compute_what_they_are_named_for(algorithm) -> None:
    for seed in range(20):
        program = algorithm.program(seed)
        assert program == algorithm.program(seed)
        frames = record_source(*program)
        assert len(frames) < 60
        if algorithm.name in EXPECTED:
            names: dict = {}
            exec(program.code, names)
            arguments = eval(program.call.replace(algorithm.name, "", 1).removesuffix(")") + ",)")
            assert eval(program.call, names) == EXPECTED[algorithm.name](*arguments)
