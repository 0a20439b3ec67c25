"""The pytest plugin: ``pytest --cwm-record FOLDER`` records what a test suite makes a package do.

Each process writes a trace store into the folder, with the sample that `cwm_core.corpus.repository` reads back; the
suite's outcome stays what it is. ``docs/corpus-projects.md`` says what is recorded and what a test can see of it.
"""

from pathlib import Path

import pytest

from .calls import SUFFIX


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options; without ``--cwm-record`` the plugin does nothing."""
    group = parser.getgroup("cwm", "recording executions (cwm-core)")
    add = group.addoption
    add("--cwm-record", metavar="FOLDER", help="record what the tests make a package do; trace stores go to FOLDER")
    add("--cwm-package", metavar="NAME", action="append", help="a package to record; default: those of the project")
    add(
        "--cwm-unit",
        choices=("call", "test"),
        default="call",
        help="a trace for each outermost call of the package, or for each test with its own function (default: call)",
    )
    add("--cwm-seed", metavar="N", type=int, default=0, help="of the choice among calls (default: 0)")
    add("--cwm-per-site", metavar="N", type=int, default=1, help="traces of a function from a call site (default: 1)")
    add("--cwm-per-function", metavar="N", type=int, default=20, help="traces of a function (default: 20)")
    add("--cwm-max-frames", metavar="N", type=int, default=10_000, help="at which a trace is cut (default: 10000)")
    add("--cwm-max-bytes", metavar="N", type=int, help="of all traces of a process, in memory")
    add("--cwm-max-seconds", metavar="S", type=float, help="that a process records, the tests' own time")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to record where asked to. With pytest-xdist the workers do, each into its own file."""
    if config.option.cwm_record is None:
        return
    for name in ("per_site", "per_function", "max_frames"):
        if getattr(config.option, f"cwm_{name}") < 1:
            raise pytest.UsageError(f"--cwm-{name.replace('_', '-')} must be at least 1")
    is_worker = hasattr(config, "workerinput")
    if not is_worker:
        folder = Path(config.option.cwm_record).absolute()
        config.option.cwm_record = str(folder)  # which workers get, wherever they run
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob(f"*{SUFFIX}")):
            raise pytest.UsageError(f"--cwm-record: {folder} has a recording already")
    if is_worker or not getattr(config.option, "tx", None):
        from .suite import SuiteRecorder

        config.pluginmanager.register(SuiteRecorder(config), "cwm-recording")
