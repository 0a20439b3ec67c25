"""The small packages under `repositories`, each with tests that pass within a second, as repositories of their own."""

import os
import shutil
import subprocess
from pathlib import Path

TEST_COMMAND = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -q"
"""Starts six times as fast as with the plugins that the tests' environment happens to have."""

FOLDER = Path(__file__).with_name("repositories")
NAMES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))


def copy_repository(name: str, to: str | os.PathLike[str]) -> Path:
    """A git repository with one commit, in the new folder `to`/`name`."""
    folder = Path(to) / name
    shutil.copytree(FOLDER / name, folder, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", os.fspath(folder)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "All of it."]):
        subprocess.run([*git, *arguments], check=True)
    return folder
