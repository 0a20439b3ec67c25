"""Fixtures for tests of the pytest plugin."""

import re

import cwm_core as cwm
import pytest
from suites import CORE, SUITE, TELL, recorded, run, without_line


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "pack").mkdir()
    (root / "pack" / "__init__.py").write_text("")
    (root / "pack" / "core.py").write_text(CORE)
    (root / "tests").mkdir()
    (root / "tests" / "test_core.py").write_text(SUITE)
    (root / "tell.py").write_text(TELL)
    (root / "pytest.ini").write_text("[pytest]\naddopts = -p tell -p no:cacheprovider\n")
    return root


@pytest.fixture(scope="session")
def plain(project):
    return run(project, "-rA")


@pytest.fixture(scope="session")
def store(project, plain):
    """Return the recording of the suite, after checking that it changed nothing."""
    output, told = recorded(project, "first", "-rA", "--cwm-max-frames", "500", "--cwm-per-site", "2")
    assert told == plain[1]
    assert without_line(output) == plain[0]
    assert re.search(r"^cwm: \d+ traces in .*first/main.cwmtraces; 1 tests not recorded", output, re.MULTILINE)
    return cwm.TraceReader(project / "first" / "main.cwmtraces")
