"""Which files are tests, and what else a submission may not change."""

from collections.abc import Iterable
from pathlib import PurePosixPath

TEST_FOLDERS = frozenset({"test", "tests", "testing"})
SETTINGS = ("conftest.py", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
"""What pytest reads of a folder besides tests."""


def is_test(path: str) -> bool:
    """Whether a file is of the tests, by the conventions of pytest and of folders."""
    parts = PurePosixPath(path).parts
    name = parts[-1]
    return (
        not TEST_FOLDERS.isdisjoint(parts[:-1])
        or name == "conftest.py"
        or name.startswith("test_")
        or name.endswith("_test.py")
    )


def protected_paths(tests: Iterable[str]) -> tuple[str, ...]:
    """What no submission may change: tests, folders of tests, and what pytest reads from the folders above them.

    Paths that do not exist are among them: they may not be made either.
    """
    found: set[str] = set()
    for test in tests:
        path = PurePosixPath(test)
        folders = [folder for folder in reversed(path.parents) if folder.name in TEST_FOLDERS]
        top = folders[0] if folders else path
        found.add(str(top))
        found.update(str(folder / name) for folder in top.parents for name in SETTINGS)
    return tuple(sorted(found))
