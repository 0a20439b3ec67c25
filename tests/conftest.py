"""Settings for all tests: the effort of Hypothesis, and what runs without PyTorch."""

import os
import signal
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Models in tests are so small that a second thread costs more than it computes, and many times as much where other
# processes want the cores. Before torch is imported, here and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background inherits an ignored SIGINT, and what nohup starts an ignored SIGHUP; tests of
# signals need what a terminal gives.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Packages to work on, with tests of their own.
collect_ignore = ["repositories"]

HAVE_TORCH = find_spec("torch") is not None

# Wall-clock health checks and deadlines would make a slow or shared machine look like a failing test.
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For further versions of CPython in one run, which all see other random examples.
settings.register_profile("brief", settings.get_profile("ci"), max_examples=20)
settings.register_profile("long", settings.get_profile("ci"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def llama():
    """Llama-3's vocabulary with the special tokens of the Code World Model."""
    from cwm_core import Tokenizer
    from llama3 import rank_path

    return Tokenizer.load(rank_path())


@pytest.fixture(scope="session")
def peer():
    """Tiktoken with the same vocabulary."""
    from llama3 import tiktoken_encoding

    return tiktoken_encoding()


def pytest_report_header() -> str:
    return "torch: installed" if HAVE_TORCH else "torch: not installed, tests that need it are skipped"


def cap_examples(item: pytest.Item) -> None:
    """Cap the number of examples at the profile's also where a test sets its own."""
    test = getattr(item, "function", None)
    own = getattr(test, "_hypothesis_internal_use_settings", None)
    most = settings.get_profile("brief").max_examples
    if own is not None and own.max_examples > most:
        test._hypothesis_internal_use_settings = settings(own, max_examples=most)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `slow.txt` lists, and cap examples in the profile `brief`."""
    if os.environ.get("HYPOTHESIS_PROFILE") == "brief":
        for item in items:
            cap_examples(item)
    tests = Path(__file__).parent
    slow = {line for line in (tests / "slow.txt").read_text().splitlines() if not line.startswith("#")}
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.is_relative_to(tests) and f"{item.path.relative_to(tests).as_posix()}::{name}" in slow:
            item.add_marker("slow")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not HAVE_TORCH and item.get_closest_marker("torch"):
        pytest.skip("needs torch")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a module whose import ended at the missing torch; tests that import it later carry the marker."""
    report = yield
    if not HAVE_TORCH and report.failed:
        cause = report.call.excinfo.value.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name == "torch":
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), None, "needs torch")
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which every test was skipped has tested nothing and must not pass."""
    stats = session.config.pluginmanager.getplugin("terminalreporter").stats
    if session.exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly and "passed" not in stats:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
