"""Names: no two public classes share one, and lists of names hold those of things that exist."""

import ast
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import groupby
from pathlib import Path

import cwm_core
from cwm_core.cli import build_parser, commands

PACKAGE = Path(cwm_core.__file__).parent
TESTS = Path(__file__).parent
ROOT = TESTS.parent
# What reinforcement learning calls so by the field's convention, in the protocol of `rl.tasks`.
SHARED = {"Reward", "Task"}


@cache
def parsed(file):
    return ast.parse(file.read_text("utf-8"))


def test_public_classes_have_names_of_their_own():
    places = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert len(places) > 100
    assert {name: where for name, where in places.items() if len(where) > 1 and name not in SHARED} == {}
    assert all(len(places[name]) == 2 for name in SHARED)


def test_the_list_of_slow_tests_names_tests_that_exist():
    lines = [line for line in (TESTS / "slow.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(set(lines))
    for file, names in groupby(lines, key=lambda line: line.partition("::")[0]):
        tree = ast.parse((TESTS / file).read_text("utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {name.partition("::")[2] for name in names} <= functions, file


def parameters(node):
    arguments = node.args
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


def test_public_functions_take_strings_as_paths():
    """A function of a module's `__all__`, or a public method of such a class, takes `str | os.PathLike[str]`."""
    found, checked = [], 0
    for file in sorted(PACKAGE.rglob("__init__.py")):
        tree = parsed(file)
        exported = {
            name.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for name in ast.walk(node.value)
            if isinstance(name, ast.Constant)
        }
        for module in sorted(file.parent.rglob("*.py")):
            for node in parsed(module).body:
                if getattr(node, "name", None) not in exported:
                    continue
                body = node.body if isinstance(node, ast.ClassDef) else [node]
                for function in body:
                    if not isinstance(function, ast.FunctionDef) or re.match("_(?!_)", function.name):
                        continue
                    checked += 1
                    found += [
                        f"{module.relative_to(PACKAGE)}:{function.lineno} {function.name}({parameter.arg})"
                        for parameter in parameters(function)
                        if parameter.annotation and "Path" in re.findall(r"\w+", ast.unparse(parameter.annotation))
                    ]
    assert checked > 300
    # A document kind of a user's own is handed paths.
    assert all("data/documents.py" in place and "(path)" in place for place in found), found


def test_one_place_knows_the_names_of_special_tokens():
    """The names stand in `special_tokens.py` and in the template of chats, which is a program of its own."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        tree = parsed(file)
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
            if is_text and re.search(r"<\|\w+\|>", node.value):
                found.add(file.relative_to(PACKAGE).as_posix())
    assert found == {"tokenizer/special_tokens.py", "tokenizer/chat.py"}


def test_the_page_of_extensions_names_examples_and_options_that_exist():
    page = (ROOT / "docs" / "guides" / "extend.md").read_text("utf-8")
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| [")]
    named = [re.fullmatch(r"`(\w+\.py)` \|", row[-1])[1] for row in rows]
    assert len(set(named)) == 8
    assert {name for name in named if not (ROOT / "examples" / name).exists()} == set()
    listed = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert {path.name for path in (ROOT / "examples").glob("*.py") if path.name not in listed} == set()
    known = dict(commands(build_parser()))
    for command, flag in re.findall(r"`(cwm(?: [a-z]+)+)[^`|]*?(--[a-z]+)?`", page):
        parsers = [parser for name, parser in known.items() if f"{name} ".startswith(f"{command} ")]
        assert parsers, command
        assert not flag or any(flag in parser._option_string_actions for parser in parsers), (command, flag)


def test_files_of_tests_have_names_of_their_own():
    """Pytest imports them by these names alone."""
    names = Counter(file.name for file in TESTS.rglob("test_*.py") if "repositories" not in file.parts)
    assert [name for name, count in names.items() if count > 1] == []
