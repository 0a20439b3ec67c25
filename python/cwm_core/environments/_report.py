"""A pytest plugin that writes each test's outcome, run where the tests run; Python 3.6 or later, pytest 2.8 or later.

It is copied there under a name that nobody knows beforehand, and writes beside itself. It appends a control to the
tests: a test that must fail, under a name that nobody knows either. Where the control passes, outcomes are forged.
"""

import json
import os
import sys
import zlib

import pytest

BOX = os.path.dirname(os.path.abspath(__file__))
CONTROL = "test_" + __name__[::-1]
EXPECTED = CONTROL + "_expected"
OUTCOMES = {}
ERRORS = []
FILES = set()
RANK = ["passed", "xfailed", "skipped", "failed", "error"]
ROOT = os.path.realpath(os.environ.pop("CWM_ROOT", "."))
CONFIG = []
STATUS = []
ABOVE = []

# Tests that run pytest are to find the environment as it was.
for variable in ("PYTEST_ADDOPTS", "PYTHONPATH"):
    old = os.environ.pop("CWM_" + variable, None)
    if old is not None:
        os.environ.pop(variable, None)
        os.environ.update({variable: old} if old else {})


def note(name, outcome):
    """Keep the worst that happened to a test in its three phases."""
    name = in_repository(name)
    before = OUTCOMES.get(name, outcome)
    OUTCOMES[name] = max(before, outcome, key=RANK.index)


def in_repository(name):
    """Return a test's name without the way from pytest's root down to the repository."""
    return name[len(ABOVE[0]) :] if ABOVE and name.startswith(ABOVE[0]) else name


def fail():
    """Do what the control does."""
    raise AssertionError("this test must fail")


def pytest_configure(config):
    """Keep the configuration, for the folder that names of tests begin from.

    Where pytest found configuration above the repository, names begin with a way down to it, which says nothing.
    """
    CONFIG.append(config)
    way = os.path.relpath(ROOT, os.path.realpath(str(config.rootdir)))
    if way != "." and not way.startswith(".."):
        ABOVE.append(way + "/")


def pytest_itemcollected(item):
    """Mark the tests of unittest that are declared to fail; pytest's own have the keyword "xfail".

    Code under test can raise what `pytest.xfail()` raises, and so make any test look like one that is expected to fail.
    """
    owners = [item.parent, item]
    if any(getattr(getattr(owner, "obj", None), "__unittest_expecting_failure__", False) for owner in owners):
        item.keywords[EXPECTED] = True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Append the control, behind a test that is a plain function and neither skipped nor expected to fail."""
    for item in reversed(items):
        marked = any(name in item.keywords for name in ("skip", "skipif", "xfail"))
        kind = type(item)
        if kind.__name__ == "Function" and type(item.parent).__name__ == "Module" and not marked:
            if hasattr(kind, "from_parent"):
                items.append(kind.from_parent(item.parent, name=CONTROL, callobj=fail))
            return


def pytest_collectreport(report):
    """Keep what could not be collected."""
    if report.failed:
        ERRORS.append(report.nodeid)


def pytest_runtest_logreport(report):
    """Keep the outcomes of setup, call and teardown, and the file that a test is in."""
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
def pytest_sessionfinish(session, exitstatus):
    """Write all; not in the workers of pytest-xdist, whose reports come to their controller."""
    if hasattr(session.config, "workerinput"):
        return
    for item in getattr(session, "items", []):
        if in_repository(item.nodeid) not in OUTCOMES:
            note(item.nodeid, "error")  # the session was ended before the test ran
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
def pytest_unconfigure():
    """End the process as soon as it has reported, before handlers of the tested code run at its exit."""
    if STATUS:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(STATUS[0])
