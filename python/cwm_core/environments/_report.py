"""A pytest plugin that writes each test's outcome, run where the tests run; any Python 3.6 or later, any pytest.

It is copied there under a name that nobody knows beforehand, and writes beside itself.
"""

import json
import os
import zlib

OUTCOMES = {}
RANK = ["passed", "xfailed", "skipped", "failed", "error"]


def note(name, outcome):
    """Keep the worst that happened to a test in its three phases."""
    before = OUTCOMES.get(name, outcome)
    OUTCOMES[name] = max(before, outcome, key=RANK.index)


def pytest_runtest_logreport(report):
    """Of setup, call and teardown."""
    if report.failed:
        note(report.nodeid, "failed" if report.when == "call" else "error")
    elif report.skipped:
        note(report.nodeid, "xfailed" if hasattr(report, "wasxfail") else "skipped")
    elif report.when == "call":
        note(report.nodeid, "passed")


def pytest_sessionfinish(session):
    """Write all; not in the workers of pytest-xdist, whose reports come to their controller."""
    if hasattr(session.config, "workerinput"):
        return
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report")
    with open(path, "wb") as file:
        file.write(zlib.compress(json.dumps(OUTCOMES).encode()))
