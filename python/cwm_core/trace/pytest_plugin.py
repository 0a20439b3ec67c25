"""The pytest plugin: ``pytest --cwm-record FOLDER`` records what a test suite makes a package do.

Each process writes a trace store into the folder, with the sample that `cwm_core.corpus.repository` reads back; the
suite's outcome does not change. `docs/guides/corpus-projects.md` says what is recorded and what a test can see of it.
"""

import os
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
    add(
        "--cwm-per-site",
        metavar="N",
        type=int,
        default=1,
        help="traces of a function from a call site; a test is one (default: 1)",
    )
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
    for name in config.option.cwm_package or ():
        if not name.isidentifier():
            raise pytest.UsageError(
                f"--cwm-package: expected the name that a top-level package or module is imported by, got {name!r}"
                + (f"; try --cwm-package {hint}" if (hint := _import_name(name)) else "")
            )
    is_worker = hasattr(config, "workerinput")
    if not is_worker:
        folder = _new_folder(config.option.cwm_record)
        config.option.cwm_record = str(folder)  # which workers get, wherever they run
    from .suite import SuiteRecorder, WorkersSummary

    # With pytest-xdist this process runs no test.
    runs_tests = is_worker or not getattr(config.option, "tx", None)
    config.pluginmanager.register(SuiteRecorder(config) if runs_tests else WorkersSummary(config), "cwm-recording")


def _new_folder(name: str) -> Path:
    """Make the folder of a recording. Raises UsageError where it cannot be made, or holds a recording."""
    if not name:
        raise pytest.UsageError("--cwm-record: expected a folder for the recording, got an empty name")
    folder = Path(name).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if folder.is_file() else error.strerror
        raise pytest.UsageError(f"--cwm-record: expected a folder for the recording, but {folder}: {reason}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise pytest.UsageError(f"--cwm-record: the folder {folder} cannot be written to")
    if any(folder.glob(f"*{SUFFIX}")):
        raise pytest.UsageError(f"--cwm-record: {folder} has a recording already")
    return folder


def _import_name(given: str) -> str:
    """Return the top-level name that was meant by a path or a dotted name, where that can be told."""
    parts = [part for part in given.removesuffix(".py").replace(os.sep, ".").split(".") if part]
    parts = parts[1:] if parts[:1] == ["src"] else parts
    return parts[0] if parts and all(part.isidentifier() for part in parts) else ""
