"""Recognize tests, and decide which paths a submission may change.

`Rules` is an allow list: a submission may change only what it allows. So it does not matter whether all files that
Python or pytest load on their own are known, in this or in later versions.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .patches import touched

if TYPE_CHECKING:
    from .tasks import Task

TEST_FOLDERS = frozenset({"test", "tests", "testing"})
SETTINGS = ("conftest.py", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
"""Files other than tests that pytest reads and that can be part of the known solution of a task."""

MODULES = frozenset({".py", ".pyi"})
LOADED = frozenset({"conftest.py", "sitecustomize.py", "usercustomize.py"})
"""Modules that Python or pytest loads automatically."""
UNREVIEWABLE = frozenset({".pth", ".pyc", ".pyd", ".pyo", ".so", ".dll", ".dylib"})
"""Suffixes of files that Python loads in place of modules, or to find modules."""
CONFIGURATION = frozenset({".cfg", ".ini", ".toml"})
CACHES = ("__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache")
"""Folders that runs of tests create."""


def is_test(path: str) -> bool:
    """Return whether a file is a test, by its name as in pytest, or by its folder."""
    return _has_test_name(path) or not TEST_FOLDERS.isdisjoint(PurePosixPath(path).parts[:-1])


def _has_test_name(path: str) -> bool:
    name = PurePosixPath(path).name
    return name == "conftest.py" or name.startswith("test_") or name.endswith("_test.py")


def protected_paths(tests: Iterable[str]) -> tuple[str, ...]:
    """Return the files or folders of tests, and the configuration files of pytest in the folders above them.

    The paths need not exist; protection keeps submissions from creating them.
    """
    found: set[str] = set()
    for test in tests:
        path = PurePosixPath(test)
        folders = [folder for folder in reversed(path.parents) if folder.name in TEST_FOLDERS]
        top = folders[0] if folders else path
        found.add(str(top))
        found.update(str(folder / name) for folder in top.parents for name in SETTINGS)
    return tuple(sorted(found))


@dataclass(frozen=True)
class Rules:
    """The paths that a submission for a task may change."""

    protected: frozenset[PurePosixPath]
    scripts: frozenset[PurePosixPath]
    """Words of the test command, some of which are files or folders."""
    above_tests: frozenset[PurePosixPath]
    """Folders from the tests up to the root, which pytest searches for configuration."""
    solution: frozenset[PurePosixPath]
    """Files that the known solution changes."""

    @classmethod
    def of(cls, task: Task) -> Rules:
        """Return the rules for a task."""
        named = {name.partition("::")[0] for name in (*task.fail_to_pass, *task.pass_to_pass)}
        hidden = touched(task.test_patch)
        tests = _paths([*task.protected, *named, *hidden])
        above = {PurePosixPath("."), *(folder for path in tests for folder in path.parents)}
        protected = _paths([*task.protected, *hidden])
        return cls(protected, _paths(_words(task)), frozenset(above), _paths(touched(task.solution)))

    def refusal(self, path: str) -> str | None:
        """Return in a few words why a submission may not change a path, or None if it may.

        A new module that is allowed here can still hide an installed one; see `import_name`.
        """
        where = PurePosixPath(path)
        unknown = where not in self.solution
        checks = (
            (not {*CACHES}.isdisjoint(where.parts) or where.suffix in (".pyc", ".pyo"), "a cache"),
            (any(part.startswith(".") for part in where.parts), "a hidden path"),
            (
                any("." in folder for folder in where.parts[:-1]),
                "in a folder with a dot in its name, like metadata of packages",
            ),
            (where.suffix in CONFIGURATION, "configuration"),
            (where.name in LOADED or where.suffix in UNREVIEWABLE, "loaded automatically by Python or pytest"),
            (not self.protected.isdisjoint({where, *where.parents}) or _has_test_name(path), "a test, or protected"),
            (any(self._is_test_module(folder) for folder in where.parents), "a package that hides a test"),
            (unknown and where in self.scripts, "run by the test command"),
            (unknown and is_test(path), "in a folder of tests"),
            (
                unknown and where.suffix not in MODULES and where.parent in self.above_tests,
                "not a module, in a folder that pytest searches for configuration",
            ),
        )
        return next((reason for applies, reason in checks if applies), None)

    def _is_test_module(self, folder: PurePosixPath) -> bool:
        """Return whether a package `folder` would be imported in place of a test beside it."""
        module = folder.parent / f"{folder.name}.py"
        return bool(folder.name) and (module in self.protected or _has_test_name(str(module)))

    def import_name(self, path: str, packages: Mapping[str, bool]) -> str | None:
        """Return the path, without suffix, of the module that a new file would add to a folder of the original tree.

        Args:
            path: The new file.
            packages: The folders above it that the original tree has, and whether each holds an `__init__.py`.

        Returns:
            None for a file in a package of the original tree, a file that the known solution also creates, and a file
            that is not a module.
        """
        where = PurePosixPath(path)
        if where in self.solution or where.suffix not in MODULES:
            return None
        folder = next(folder for folder in where.parents if str(folder) in packages or not folder.parts)
        # A folder that the test command names, as in `cd pkg && pytest`, may be where Python looks for modules.
        if folder.parts and packages[str(folder)] and folder not in self.scripts:
            return None
        if where.name == "__init__.py" and where.parent == folder and folder not in self.above_tests:
            return None
        first = folder / where.parts[len(folder.parts)]
        return str(first.with_suffix("") if first == where else first)


def _paths(names: Iterable[str]) -> frozenset[PurePosixPath]:
    return frozenset(map(PurePosixPath, names))


def _words(task: Task) -> list[str]:
    """Return the words of the test command that may name scripts or folders, and the files of modules after `-m`."""
    try:
        words = shlex.split(task.test_command, comments=True)
    except ValueError:
        words = task.test_command.split()
    words = [word.strip("();&|") for word in words]
    modules = [word.replace(".", "/") for option, word in itertools.pairwise(words) if option == "-m"]
    files = [f"{module}{end}" for module in modules for end in (".py", "/__init__.py", "/__main__.py")]
    return [word for word in (*words, *files) if word.strip("./")]
