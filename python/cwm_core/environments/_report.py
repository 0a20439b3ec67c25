"""Pytest plugin that writes the outcome of each test. It runs on Python 3.6 or later and pytest 2.8 or later.

The plugin is copied to the machine under a random name and writes its report to the folder that contains it. It
appends a control to the tests: a test with a random name that must fail. If the control passes, outcomes are forged.
"""

import json
import os
import sys
import zlib
from typing import Any

import pytest

BOX = os.path.dirname(os.path.abspath(__file__))
CONTROL = "test_" + __name__[::-1]
EXPECTED = CONTROL + "_expected"
OUTCOMES: "dict[str, str]" = {}
ERRORS: "list[str]" = []
FILES: "set[str]" = set()
RANK = ["passed", "xfailed", "skipped", "failed", "error"]
ROOT = os.path.realpath(os.environ.pop("CWM_ROOT", "."))
CONFIG: "list[Any]" = []
STATUS: "list[int]" = []
ABOVE: "list[str]" = []

# Restore the environment for tests that run pytest themselves.
for variable in ("PYTEST_ADDOPTS", "PYTHONPATH"):
    old = os.environ.pop("CWM_" + variable, None)
    if old is not None:
        os.environ.pop(variable, None)
        os.environ.update({variable: old} if old else {})


def note(name: str, outcome: str) -> None:
    """Keep the worst outcome of a test's three phases."""
    name = in_repository(name)
    before = OUTCOMES.get(name, outcome)
    OUTCOMES[name] = max(before, outcome, key=RANK.index)


def in_repository(name: str) -> str:
    """Return a test's name relative to the repository, if pytest's root is above it."""
    return name[len(ABOVE[0]) :] if ABOVE and name.startswith(ABOVE[0]) else name


def fail() -> None:
    """Fail, as the body of the control."""
    raise AssertionError("this test must fail")


def pytest_configure(config: Any) -> None:
    """Keep the configuration, whose root folder names of tests are relative to.

    If pytest finds configuration above the repository, names begin with the path down to it, which is dropped.
    """
    CONFIG.append(config)
    way = os.path.relpath(ROOT, os.path.realpath(str(config.rootdir)))
    if way != "." and not way.startswith(".."):
        ABOVE.append(way + "/")


def pytest_itemcollected(item: Any) -> None:
    """Mark unittest tests that are declared to fail; those of pytest have the keyword "xfail".

    Code under test can call `pytest.xfail()`, which makes any test look like one that is expected to fail.
    """
    owners = [item.parent, item]
    if any(getattr(getattr(owner, "obj", None), "__unittest_expecting_failure__", False) for owner in owners):
        item.keywords[EXPECTED] = True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: "list[Any]") -> None:
    """Append the control next to the last plain function that is neither skipped nor expected to fail."""
    for item in reversed(items):
        marked = any(name in item.keywords for name in ("skip", "skipif", "xfail"))
        kind = type(item)
        if kind.__name__ == "Function" and type(item.parent).__name__ == "Module" and not marked:
            if hasattr(kind, "from_parent"):
                items.append(kind.from_parent(item.parent, name=CONTROL, callobj=fail))
            return


def pytest_collectreport(report: Any) -> None:
    """Keep the names of files that could not be collected."""
    if report.failed:
        ERRORS.append(report.nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    """Keep the outcomes of setup, call, and teardown, and the file of the test."""
    if report.failed:
        note(report.nodeid, "failed" if report.when == "call" else "error")
    elif report.skipped:
        declared = EXPECTED in report.keywords or "xfail" in report.keywords
        note(report.nodeid, "xfailed" if hasattr(report, "wasxfail") and declared else "skipped")
    elif report.when == "call":
        note(report.nodeid, "passed")
    if CONFIG and report.when == "setup":
        whole = os.path.join(str(CONFIG[0].rootdir), report.location[0])
        FILES.add(os.path.relpath(os.path.realpath(whole), ROOT))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """Write the report. Workers of pytest-xdist skip this, because their controller receives their reports."""
    if hasattr(session.config, "workerinput"):
        return
    for item in getattr(session, "items", []):
        if in_repository(item.nodeid) not in OUTCOMES:
            note(item.nodeid, "error")  # the session ended before the test ran
    control = [OUTCOMES.pop(name) for name in list(OUTCOMES) if name.endswith("::" + CONTROL)]
    report = {
        "outcomes": OUTCOMES,
        "errors": ERRORS,
        "files": sorted(path for path in FILES if not path.startswith("..")),
        "control": control[0] if control else None,
    }
    with open(os.path.join(BOX, "report"), "wb") as file:
        file.write(zlib.compress(json.dumps(report).encode()))
    STATUS.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Exit right after the report, before exit handlers of the tested code run."""
    if STATUS:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(STATUS[0])
