"""One name has one meaning: no two public classes of the package share it."""

import ast
from collections import defaultdict
from pathlib import Path

import cwm_core

PACKAGE = Path(cwm_core.__file__).parent


def test_public_classes_have_names_of_their_own():
    places = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert len(places) > 100
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
