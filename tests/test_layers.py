"""No import goes against the order of the packages, which `docs/` and README describe."""

import ast
from collections.abc import Iterator
from pathlib import Path

import cwm_core
import pytest

PACKAGE = Path(cwm_core.__file__).parent

# A package imports only packages before it. Those on one line do not import each other.
LAYERS = [
    ["_native"],
    ["support", "trace"],
    ["tokenizer"],
    ["data"],
    ["formats", "view", "machines", "model"],
    ["training"],
    ["planning", "inference"],
    ["debugger", "environments"],
    ["corpus", "evaluation"],
    ["rl"],
    ["demo"],
    ["ablation"],
    ["cli"],
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and imported package of every import in a file, also in functions and for type checkers."""
    folder = file.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["cwm_core", *folder[: len(folder) + 1 - node.level]] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root == "cwm_core" and (package := rest.split(".")[0]) in LEVEL:
                yield node.lineno, package


def test_every_package_has_a_level():
    found = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert found == LEVEL.keys() - {"_native"}


@pytest.mark.parametrize("package", sorted(LEVEL.keys() - {"_native"}))
def test_imports_only_what_is_below(package):
    against = [
        f"{file.relative_to(PACKAGE)}:{line} imports {imported}"
        for file in sorted((PACKAGE / package).rglob("*.py"))
        for line, imported in imports(file)
        if imported != package and LEVEL[imported] >= LEVEL[package]
    ]
    assert not against
