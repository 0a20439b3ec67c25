"""Read the sources of functions: files, folders of packages, installed packages, snippets. Nothing is imported."""

from __future__ import annotations

import ast
import os
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath
from typing import Any

from ..._native import DamagedFileError
from ...support.jsonl import ENDINGS, is_jsonl, read_rows
from ..filters.license import of_package
from ..inputs.slices import Names
from .kinds import SkipReason


@dataclass(frozen=True)
class Source:
    """The text of a module, or of a snippet."""

    name: str | None
    """Name to import the module by; None for a snippet."""
    path: str
    """Path relative to the folder of its package; for a snippet, the file and the line, from 1."""
    code: str
    """Source text."""
    paths: tuple[str, ...] = ()
    """Folders to import the module from."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the source, as in `Unit`."""
    call: str | None = None
    """Call that a snippet came with."""
    problem: SkipReason | None = None
    """Reason that the module cannot be used, in which case its text is empty."""

    @cached_property
    def tree(self) -> ast.Module | None:
        """Syntax tree; None if the text does not parse or there is a problem."""
        return None if self.problem else parse(self.code)

    @property
    def module(self) -> ast.Module:
        """Syntax tree; requires that there is one."""
        if self.tree is None:
            raise ValueError(f"{self.path} has no syntax tree")
        return self.tree

    @cached_property
    def names(self) -> Names:
        """Names of the module; requires a tree."""
        return Names(self.module, self.name, is_package=self.path.endswith("__init__.py"))

    @property
    def is_test(self) -> bool:
        """True if the module belongs to a test suite, by its name."""
        parts = (self.name or "").split(".")
        return any(part in ("tests", "test", "testing", "conftest") or part.startswith("test_") for part in parts)


def parse(code: str) -> ast.Module | None:
    """Return the syntax tree of a module, or None if the text is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def read_sources(source: str | os.PathLike[str], *, paths: Sequence[str] | None = None) -> list[Source]:
    """Return the modules of a source by name, or the snippets of a file in order.

    Modules that cannot be read, and modules whose file has no importable name (`my-mod.py`), have a `problem`.

    Args:
        source: One of:
            a `.py` file;
            a `.jsonl` or `.ndjson` file of snippets, objects with `code` and optionally `call`, an expression, or
            `input`, the arguments of its function `f`; `license`; `id`;
            a folder;
            the name that an installed package is imported or installed by (`dateutil`, `python-dateutil`).
        paths: Folders with installed packages; by default `sys.path`.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: A line of snippets is not JSON or has no code, or the file extension is not supported.
    """
    path = Path(source)
    if is_jsonl(path) and path.is_file():
        return list(_snippets(path))
    if path.is_dir() or (path.suffix == ".py" and path.is_file()):
        return list(_modules(path.resolve()))
    if path.is_file():
        raise ValueError(
            f"{path}: expected a *.py file or snippets in a file named {', '.join(f'*{e}' for e in ENDINGS)}"
        )
    found = _importable(str(source), paths) or _distributed(str(source), paths)
    if not found:
        raise FileNotFoundError(
            f"{source}: expected a file, a folder, or the name of an installed package with Python sources, as it is "
            "imported or installed"
        )
    return [module for place in found for module in _modules(place)]


def _importable(name: str, paths: Sequence[str] | None) -> list[Path]:
    """Return the folder or file that is imported by a name, if its source is Python."""
    spec = PathFinder.find_spec(name, paths) if name.isidentifier() else None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(next(iter(spec.submodule_search_locations))).resolve()]
    return [Path(spec.origin).resolve()] if spec.origin and spec.origin.endswith(".py") else []


def _distributed(name: str, paths: Sequence[str] | None) -> list[Path]:
    """Return the packages and modules of an installed distribution: `dateutil` for `python-dateutil`."""
    wanted = re.sub(r"[-_.]+", "-", name).lower()
    found = set()
    for distribution in distributions(path=list(sys.path if paths is None else paths)):
        if re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower() != wanted:
            continue
        for file in distribution.files or ():
            if file.suffix == ".py" and not file.is_absolute() and ".." not in file.parts:
                found.add(_top(Path(str(distribution.locate_file(""))), file))
    return sorted(path for path in found if path.exists())


def _top(root: Path, file: PurePath) -> Path:
    """Return the outermost package with a file of a distribution, or the file. Folders around it may be shared."""
    for depth in range(1, len(file.parts)):
        if (root.joinpath(*file.parts[:depth]) / "__init__.py").exists():
            return root.joinpath(*file.parts[:depth]).resolve()
    return (root / file).resolve()


def _modules(path: Path) -> Iterator[Source]:
    root = path if path.is_dir() and not (path / "__init__.py").exists() else path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    facts = {str(path.relative_to(root)): _package(root, path)} if path != root else {}
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        relative = file.relative_to(root)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        if parts[0] not in facts:
            facts[parts[0]] = _package(root, root / parts[0])
        code, problem = _read(file)
        if not all(part.isidentifier() for part in parts):
            code, problem = "", SkipReason.NO_IMPORT_NAME
        yield Source(name, str(relative), code, (str(root),), facts[parts[0]], problem=problem)


def _read(file: Path) -> tuple[str, SkipReason | None]:
    """Return the text of a module, in the encoding that it declares, or why it cannot be read."""
    try:
        with tokenize.open(file) as source:
            return source.read(), None
    except OSError:
        return "", SkipReason.UNREADABLE
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return "", SkipReason.WRONG_ENCODING


def _package(root: Path, path: Path) -> dict[str, Any]:
    """Return what the metadata of an installed package say about it."""
    top = path.relative_to(root).parts[0].removesuffix(".py")
    for distribution in distributions(path=[str(root)]):
        if top in _top_level(distribution):
            return {
                "package": distribution.metadata["Name"],
                "version": distribution.version,
                "license": of_package(distribution),
            }
    return {"package": top}


def _top_level(distribution: Distribution) -> set[str]:
    return {file.parts[0].removesuffix(".py") for file in distribution.files or () if file.suffix == ".py"}


def _snippets(path: Path) -> Iterator[Source]:
    for number, row in read_rows(path):
        code = row.get("code")
        if not isinstance(code, str):
            raise DamagedFileError(f"{path}, line {number}: not a snippet: expected an object with a string `code`")
        call = row.get("call") or (f"f({row['input']})" if isinstance(row.get("input"), str) else None)
        provenance = {"package": path.name, "id": row.get("id", number), "license": row.get("license")}
        yield Source(None, f"{path.name}:{number}", code, (), provenance, call)
