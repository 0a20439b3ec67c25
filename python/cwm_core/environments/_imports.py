"""A pytest plugin that says which names of modules are taken, then ends the process; any Python from 3.6 on.

A name is taken if Python finds a module of that name, or if a module that was loaded to start pytest tries to import
it: a repository that had such a module could run in place of what was meant.
"""

import importlib.util
import json
import os
import re
import sys
import zlib

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    """Write a report on the names beside this file, where outcomes of tests would be; before the repository's code."""
    names, loaded = os.environ["CWM_NAMES"].split(","), list(sources())
    report = {"taken": [name for name in names if is_taken(name, loaded)]}
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "report"), "wb") as file:
        file.write(zlib.compress(json.dumps(report).encode()))
    os._exit(0)


def is_taken(name, loaded):
    """Look for a module, and for imports of it in the sources of others."""
    if name.startswith("__") or name in getattr(sys, "stdlib_module_names", sys.builtin_module_names):
        return True
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return True
    wanted = re.compile(r"^\s*(?:import|from)\s+" + re.escape(name) + r"\b", re.MULTILINE)
    return any(wanted.search(source) for source in loaded)


def sources():
    """Read the modules that were loaded from outside of the working directory."""
    here = os.path.join(os.path.realpath(os.getcwd()), "")
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None) or ""
        if path.endswith(".py") and not os.path.realpath(path).startswith(here):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    yield file.read()
            except OSError:
                pass
