"""Families of generated programs: what they are made of, and that evaluation sees nothing of the training."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from cwm_core import Recorder
from cwm_core.cli import main
from cwm_core.corpus import generator
from cwm_core.corpus.algorithms import ALGORITHMS
from cwm_core.corpus.generator import TRAINING_FAMILIES, UNSEEN_FAMILIES, generate_family, generate_wide
from cwm_core.corpus.programs import HELD_OUT_ALGORITHMS, ProgramCounts, held_out_programs, training_programs
from cwm_core.corpus.split import normalized
from cwm_core.trace import TraceReader

# Modules of the statement level: names, literals, and layout, which all families share.
STATEMENT_LEVEL = {"writer.py", "families.py", "program.py"}


def productions(family: str, seeds: int) -> set[CodeType]:
    """Return the functions of the generator that run for the first seeds of a family, but for the statement level."""
    folder = Path(generator.__file__).parent
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    sys.setprofile(note)
    try:
        for seed in range(seeds):
            generate_family(family, seed)
    finally:
        sys.setprofile(None)
    files = {code: Path(code.co_filename) for code in found}
    return {code for code, file in files.items() if file.parent == folder and file.name not in STATEMENT_LEVEL}


def test_unseen_families_share_no_production_with_training():
    training = set().union(*(productions(family, 30) for family in TRAINING_FAMILIES))
    unseen = set().union(*(productions(family, 30) for family in UNSEEN_FAMILIES))
    assert len(training) > 80 and len(unseen) > 10
    assert not training & unseen


def test_training_families_share_no_production_with_each_other():
    seen: dict[CodeType, str] = {}
    for family in TRAINING_FAMILIES:
        for code in productions(family, 20):
            assert seen.setdefault(code, family) == family, code


def test_training_and_held_out_programs_share_nothing_up_to_names():
    held_out = held_out_programs(40)
    training = training_programs(ProgramCounts(basic=300, wide=300, algorithm_calls=2), held_out=40)
    assert [len(held_out[name]) for name in ("basic", "wide", "unseen")] == [40, 40, 40]
    assert [len(training[name]) for name in ("basic", "wide")] == [300, 300]
    kept = {normalized(program.code) for programs in held_out.values() for program in programs}
    trained = {normalized(program.code) for programs in training.values() for program in programs}
    assert len(kept) == 120 + len(HELD_OUT_ALGORITHMS)
    assert len(trained) == 600 + len(ALGORITHMS) - len(HELD_OUT_ALGORITHMS)
    assert not kept & trained


ONE = """class Box:
    def __init__(self, a):
        self.a = a
    def grow(self, b):
        self.a += b
def f(x):
    def inner(e):
        nonlocal x
        x += e
    o = Box(x)
    o.grow(2)
    return o.a
"""


def test_programs_that_differ_in_names_of_classes_and_attributes_are_the_same():
    renamed = ONE
    pairs = [("Box", "Node"), (".a", ".size"), ("grow", "put"), ("x", "k"), ("inner", "step"), ("self, a", "self, z")]
    for old, new in (*pairs, ("= a\n", "= z\n")):
        assert old in renamed
        renamed = renamed.replace(old, new)
    assert normalized(renamed) == normalized(ONE)
    assert normalized(ONE.replace("+= b", "-= b")) != normalized(ONE)
    # Methods of built-in types are no names of the program.
    assert normalized("def f(t):\n    t.append(1)\n") != normalized("def f(t):\n    t.remove(1)\n")


def test_held_out_programs_do_not_depend_on_their_number_or_the_training_seed():
    assert held_out_programs(6)["wide"] == held_out_programs(12)["wide"][:6]
    counts = ProgramCounts(basic=20, wide=20)
    assert training_programs(counts, 0, 5)["wide"] != training_programs(counts, 1, 5)["wide"]
    with pytest.raises(ValueError, match="seed must be from 0 to 99, got 100"):
        training_programs(counts, 100)


def test_wide_programs_are_the_same_on_every_python():
    text = "".join("".join(generate_wide(seed)) for seed in range(200))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "346fee3e8208f5f337263166d688248c7e72de5ad8b6371694e6c991f5bc0984"
    )


@pytest.mark.parametrize("family", [*TRAINING_FAMILIES, *UNSEEN_FAMILIES])
def test_programs_of_a_family_end_soon_and_return(family):
    recorder = Recorder(max_frames=200)
    traces = [recorder.record_source(*generate_family(family, seed)) for seed in range(25)]
    assert max(map(len, traces)) < 90
    assert sum(trace.result is not None for trace in traces) >= 23


CONSTRUCTS: dict[str, Callable[[ast.AST], bool]] = {
    "nested containers": lambda node: isinstance(node, ast.Subscript) and isinstance(node.value, ast.Subscript),
    "string methods": lambda node: isinstance(node, ast.Attribute) and node.attr in ("upper", "replace", "strip"),
    "dict operations": lambda node: isinstance(node, ast.Attribute) and node.attr in ("items", "setdefault", "get"),
    "set operations": lambda node: isinstance(node, ast.Attribute) and node.attr in ("union", "discard", "add"),
    "comprehensions": lambda node: isinstance(node, ast.ListComp | ast.DictComp),
    "generators": lambda node: isinstance(node, ast.Yield),
    "classes": lambda node: isinstance(node, ast.ClassDef),
    "exceptions": lambda node: isinstance(node, ast.Try),
    "recursion": lambda node: isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "f",
    "break": lambda node: isinstance(node, ast.Break),
    "else of while": lambda node: isinstance(node, ast.While) and bool(node.orelse),
    "slices": lambda node: isinstance(node, ast.Slice),
    "formatting": lambda node: isinstance(node, ast.FormattedValue),
    "sort keys": lambda node: isinstance(node, ast.keyword) and node.arg == "key",
    "three digits": lambda node: isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value > 99,
}


def test_the_wide_distribution_has_every_construct():
    trees = [list(ast.walk(ast.parse(generate_wide(seed).code))) for seed in range(400)]
    shares = {name: sum(any(map(has, tree)) for tree in trees) / len(trees) for name, has in CONSTRUCTS.items()}
    assert all(share >= 0.01 for share in shares.values()), shares


def test_lines_of_a_wide_program_are_distinct():
    for seed in range(300):
        lines = [line.strip() for line in generate_wide(seed).code.splitlines()]
        lines = [line for line in lines if line not in ("else:", "try:", "finally:")]
        assert len(set(lines)) == len(lines)


def test_the_command_writes_stores_to_a_new_folder(tmp_path, capsys):
    folder = tmp_path / "corpus"
    command = ["corpus", "programs", "--basic", "6", "--wide", "8", "--algorithm-calls", "1", "--held-out", "3"]
    assert main([*command, "-o", str(folder)]) == 0
    stores = {path.relative_to(folder).as_posix(): len(TraceReader(path)) for path in folder.rglob("*.cwmtraces")}
    algorithms = len(ALGORITHMS) - len(HELD_OUT_ALGORITHMS)
    assert stores["train/basic.cwmtraces"] == 6 and stores["train/algorithms.cwmtraces"] == algorithms
    assert stores["held-out/unseen.cwmtraces"] == 3 and set(stores) == {
        *(f"train/{name}.cwmtraces" for name in ("basic", "wide", "algorithms")),
        *(f"held-out/{name}.cwmtraces" for name in ("basic", "wide", "unseen", "algorithms")),
    }
    with TraceReader(folder / "train/basic.cwmtraces") as store:
        assert store.metadata(0)["source"] == "basic"
    assert main([*command, "-o", str(folder)]) == 1
    assert "expected a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
