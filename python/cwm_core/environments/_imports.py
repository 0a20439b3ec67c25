"""A pytest plugin that says which names of modules are taken, then ends the process; Python 3.6 or later.

A name is taken if Python finds a module of that name, or if a module that was loaded to start pytest tries to import
it: a repository that had such a module could run in place of what was meant.
"""

import importlib.util
import json
import os
import re
import sys
import zlib

NAMES = os.environ["CWM_NAMES"].split(",")


def is_taken(name):
    """Look for a module, and for imports of it."""
    if name.startswith("__") or name in getattr(sys, "stdlib_module_names", sys.builtin_module_names):
        return True
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return True
    wanted = re.compile(r"^\s*(?:import|from)\s+%s\b" % re.escape(name), re.MULTILINE)
    return any(wanted.search(source) for source in SOURCES)


def sources():
    """Read what has been loaded from outside of the working directory."""
    here = os.path.join(os.path.realpath(os.getcwd()), "")
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None) or ""
        if path.endswith(".py") and not os.path.realpath(path).startswith(here):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    yield file.read()
            except OSError:
                pass


SOURCES = list(sources())
REPORT = {"taken": [name for name in NAMES if is_taken(name)]}
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "report"), "wb") as file:
    file.write(zlib.compress(json.dumps(REPORT).encode()))
os._exit(0)
