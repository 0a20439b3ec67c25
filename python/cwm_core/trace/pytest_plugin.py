"""Pytest plugin: `pytest --cwm-record FOLDER` records the executions of a package under its test suite.

Each process writes a trace store into the folder, for `cwm_core.corpus.repository` to read. The results of the tests do
not change. `docs/guides/corpus-projects.md` describes the plugin.
"""

import os
from pathlib import Path

import pytest

from .calls import SUFFIX


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options. Without `--cwm-record`, the plugin does nothing."""
    group = parser.getgroup("cwm", "recording executions (cwm-core)")
    add = group.addoption
    add(
        "--cwm-record",
        metavar="FOLDER",
        help="record the executions of a package under the tests into trace stores in FOLDER",
    )
    add(
        "--cwm-package",
        metavar="NAME",
        action="append",
        help="package to record; repeatable (default: all packages of the project)",
    )
    add(
        "--cwm-unit",
        choices=("call", "test"),
        default="call",
        help="record one trace per outermost call of the package, or per test function (default: call)",
    )
    add("--cwm-seed", metavar="N", type=int, default=0, help="seed of the random choice of calls (default: 0)")
    add(
        "--cwm-per-site",
        metavar="N",
        type=int,
        default=1,
        help="maximum traces per function and call site; a test counts as a call site (default: 1)",
    )
    add("--cwm-per-function", metavar="N", type=int, default=20, help="maximum traces per function (default: 20)")
    add("--cwm-max-frames", metavar="N", type=int, default=10_000, help="maximum frames per trace (default: 10000)")
    add(
        "--cwm-max-bytes",
        metavar="N",
        type=int,
        help="stop recording after N bytes of traces in a process, measured in memory",
    )
    add("--cwm-max-seconds", metavar="S", type=float, help="stop recording after S seconds of test time in a process")


def pytest_configure(config: pytest.Config) -> None:
    """Start recording if requested. With pytest-xdist, each worker records into its own file."""
    if config.option.cwm_record is None:
        return
    for name in ("per_site", "per_function", "max_frames"):
        if getattr(config.option, f"cwm_{name}") < 1:
            raise pytest.UsageError(f"--cwm-{name.replace('_', '-')} must be at least 1")
    for name in config.option.cwm_package or ():
        if not name.isidentifier():
            raise pytest.UsageError(
                f"--cwm-package: expected the import name of a top-level package or module, got {name!r}"
                + (f"; try --cwm-package {hint}" if (hint := _import_name(name)) else "")
            )
    is_worker = hasattr(config, "workerinput")
    if not is_worker:
        folder = _new_folder(config.option.cwm_record)
        config.option.cwm_record = str(folder)  # absolute, for workers in other directories
    from .suite import SuiteRecorder, WorkersSummary

    # With pytest-xdist, this process runs no tests.
    runs_tests = is_worker or not getattr(config.option, "tx", None)
    config.pluginmanager.register(SuiteRecorder(config) if runs_tests else WorkersSummary(config), "cwm-recording")


def _new_folder(name: str) -> Path:
    """Create the folder of a recording.

    Raises:
        UsageError: The folder cannot be created or written to, or already contains a recording.
    """
    if not name:
        raise pytest.UsageError("--cwm-record: expected a folder for the recording, got an empty name")
    folder = Path(name).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if folder.is_file() else error.strerror
        raise pytest.UsageError(f"--cwm-record: expected a folder for the recording, but {folder}: {reason}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise pytest.UsageError(f"--cwm-record: the folder {folder} is not writable")
    if any(folder.glob(f"*{SUFFIX}")):
        raise pytest.UsageError(f"--cwm-record: {folder} already contains a recording; choose another folder")
    return folder


def _import_name(given: str) -> str:
    """Return the top-level name in a path or dotted name, or an empty string if there is none."""
    parts = [part for part in given.removesuffix(".py").replace(os.sep, ".").split(".") if part]
    parts = parts[1:] if parts[:1] == ["src"] else parts
    return parts[0] if parts and all(part.isidentifier() for part in parts) else ""
