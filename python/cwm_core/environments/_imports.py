"""Pytest plugin that reports which module names are taken, then exits. It runs on Python 3.6 or later.

A name is taken if Python finds a module with that name, or if a module that pytest loaded at its start tries to import
one. A new module with that name in the repository could be imported in its place.
"""

import importlib.util
import json
import os
import re
import sys
import zlib
from typing import Iterator  # noqa: UP035  # of Python 3.6

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Write the report next to this file before any code of the repository runs."""
    names, loaded = os.environ["CWM_NAMES"].split(","), list(sources())
    report = {"taken": [name for name in names if is_taken(name, loaded)]}
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "report"), "wb") as file:
        file.write(zlib.compress(json.dumps(report).encode()))
    os._exit(0)


def is_taken(name: str, loaded: "list[str]") -> bool:
    """Return whether a module exists, or one of the sources imports it."""
    if name.startswith("__") or name in getattr(sys, "stdlib_module_names", sys.builtin_module_names):
        return True
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return True
    wanted = re.compile(r"^\s*(?:import|from)\s+" + re.escape(name) + r"\b", re.MULTILINE)
    return any(wanted.search(source) for source in loaded)


def sources() -> "Iterator[str]":
    """Yield the sources of the loaded modules outside of the working directory."""
    here = os.path.join(os.path.realpath(os.getcwd()), "")
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None) or ""
        if path.endswith(".py") and not os.path.realpath(path).startswith(here):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    yield file.read()
            except OSError:
                pass
