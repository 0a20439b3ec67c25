"""Record test suites: the part of the pytest plugin that runs during the tests.

Functions are imported by name, so that the recorder never looks up an attribute that a test may have patched.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Generator
from os import getpid
from pathlib import Path
from sys import gettrace, settrace
from time import monotonic
from types import CodeType, FrameType
from typing import Any

import pytest

from .._native import Recording, real_path
from . import TraceWriter, finish
from .calls import SUFFIX, CallSample, priority
from .sources import nothing_recorded

MAX_TRACE_BYTES = 4 << 20  # per trace
MAX_TEST_TRACES = 256  # held in memory until the test ends
FLUSH_SECONDS = 1.0
_TEST_FOLDERS = ("test", "tests")


class _Test:
    """Recordings made during one test."""

    def __init__(self, plugin: SuiteRecorder, item: pytest.Item, run: int) -> None:
        self.id = item.nodeid if run == 1 else f"{item.nodeid}~{run}"
        self.calls: list[dict[str, Any]] = []
        """Metadata of each trace."""
        self._plugin = plugin
        self._numbers: Counter[tuple[str, str]] = Counter()  # calls so far, by function and call site
        self._own = (plugin.real(str(item.path)), getattr(item, "originalname", None) or item.name)
        self._site = item.nodeid
        options = plugin.options
        files = [*plugin.modules] if options.cwm_unit == "call" else [*plugin.modules, str(item.path)]
        choose = self._chooses_call if options.cwm_unit == "call" else self._chooses_test
        limits = {"max_frames": options.cwm_max_frames, "max_bytes": MAX_TRACE_BYTES}
        self.recording = Recording(files, [], **limits, choose=choose)

    def start(self) -> None:
        self.recording.start()
        self.hook = gettrace()
        self.started = monotonic()

    def stop(self) -> float:
        """Stop, keep the trace function that the test set, and return the seconds since the start."""
        left = gettrace()
        self.recording.stop()
        if left is not self.hook:
            settrace(left)
        return monotonic() - self.started

    def _chooses_test(self, frame: FrameType) -> bool:
        code = frame.f_code
        is_own = (self._plugin.real(code.co_filename), code.co_name) == self._own
        # pytest calls every test from the same line, so the test or its parametrized case serves as the call site.
        return is_own and self._chooses(frame, self._site)

    def _chooses_call(self, frame: FrameType) -> bool:
        """Return whether to record the outermost call that begins with this frame."""
        caller = frame.f_back
        site = "" if caller is None else f"{self._plugin.short(caller.f_code.co_filename)}:{caller.f_lineno}"
        return self._chooses(frame, site)

    def _chooses(self, frame: FrameType, site: str) -> bool:
        code = frame.f_code
        if code.co_name == "<module>" or len(self.calls) >= MAX_TEST_TRACES:
            return False
        function = self._plugin.function(code)
        self._numbers[function, site] += 1
        number = self._numbers[function, site]
        rank = priority(self._plugin.options.cwm_seed, self.id, function, site, number)
        if not self._plugin.sample.add(function, site, rank):
            return False
        call = {"test": self.id, "function": function, "line": code.co_firstlineno, "site": site, "call": number}
        self.calls.append(call | {"file": code.co_filename})
        return True


class SuiteRecorder:
    """Records the tests of this process."""

    def __init__(self, config: pytest.Config) -> None:
        """Read the options; record only in this process."""
        self.options = config.option
        self.modules: dict[str, str] = {}
        """Modules of the recorded packages by file."""
        self.sample = CallSample(self.options.cwm_per_site, self.options.cwm_per_function)
        self._root = config.rootpath
        worker = getattr(config, "workerinput", {}).get("workerid", "main")
        self._path = Path(self.options.cwm_record) / f"{worker}{SUFFIX}"
        self._writer: TraceWriter | None = None
        self._packages: dict[str, dict[str, str | None]] = {}
        self._short: dict[str, str] = {}
        self._real: dict[str, str] = {}
        self._left_out: list[str] = []  # modules of the packages that contain tests
        self._without_function = 0  # tests whose function cannot be recorded
        self._outside: dict[str, None] = {}  # files out of scope whose code ran
        self._config = config
        self._process = getpid()
        self._runs: Counter[str] = Counter()
        self._tests: list[_Test] = []  # runs of the current item; plugins may rerun it
        self._hooks: dict[int, Any] = {}  # trace functions of finished tests, by `id`
        self._bytes, self._seconds, self._flushed = 0, 0.0, monotonic()
        self._tested = False
        self._traced = 0  # tests that ran under another trace function
        self._over: str | None = None  # reason that recording stopped

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Find the files of the packages, now that the import path is complete and the test files are known.

        Raises:
            UsageError: There are no such files. An xdist worker would exit silently, so it reports this in its summary.
        """
        try:
            self._find_modules(session)
        except pytest.UsageError as error:
            if not hasattr(self._config, "workeroutput"):
                raise
            self._over = str(error)

    def _find_modules(self, session: pytest.Session) -> None:
        names = self.options.cwm_package or _own_packages(self._root)
        if not names:
            raise pytest.UsageError(f"--cwm-record: found no package in {self._root}; specify one with --cwm-package")
        # Doctests and the items of linter plugins belong to the files that they check, which are not tests.
        tests = {self.real(str(item.path)) for item in session.items if isinstance(item, pytest.Function)}
        for name in names:
            real = {self.real(file): module for file, module in _modules(name).items()}
            if not real:
                raise pytest.UsageError(f"--cwm-package: there is no package {name} with Python files to import here")
            self._left_out += [self.short(file) for file in real if file in tests]
            self.modules |= {file: module for file, module in real.items() if file not in tests}
            self._packages[name] = {"package": name, "version": _version(name)}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, None]:
        """Keep a test's recordings after its teardown, when its patches are undone."""
        yield
        tests, self._tests = self._tests, []
        for test in tests if getpid() == self._process else ():
            try:
                self._keep(test)
            except Exception as error:  # a failure to record must not stop the suite
                self._over = f"{type(error).__name__}: {error}"

    # An old-style, innermost wrapper keeps our frames out of the test's traceback.
    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, None]:
        """Record while the test function runs, without its setup and teardown."""
        if self._is_over():
            yield
            return
        if self.options.cwm_unit == "test" and not isinstance(item, pytest.Function):
            self._without_function += 1
            yield
            return
        self._runs[item.nodeid] += 1
        test = _Test(self, item, self._runs[item.nodeid])
        test.start()
        self._tests.append(test)
        yield
        self._seconds += test.stop()
        self._hooks[id(test.hook)] = test.hook

    def pytest_sessionfinish(self) -> None:
        """Close the store."""
        if self._writer is not None and getpid() == self._process:
            try:
                self._writer.close()
            except OSError as error:
                self._over = f"{type(error).__name__}: {error}"

        if hasattr(self._config, "workeroutput"):  # read by `WorkersSummary`
            self._config.workeroutput["cwm"] = self._summary()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary of this process."""
        terminalreporter.write_line(f"cwm: {self._summary()}")

    def _summary(self) -> str:
        count = 0 if self._writer is None else len(self._writer)
        notes = [f"{self._traced} tests not recorded: another trace function was set"] if self._traced else []
        if self._left_out:
            notes.append(f"not recorded since they hold tests: {', '.join(self._left_out)}")
        if self._without_function:
            notes.append(f"{self._without_function} tests not recorded: they have no function of their own (doctests)")
        notes += [f"ended early: {self._over}"] if self._over else []
        if count == 0 and self._over is None and self._tested:
            remedy = "To record another package, specify it with --cwm-package."
            notes.append(f"warning: {nothing_recorded(sorted(self._packages), [*self._outside], remedy)}")
        return f"{count} traces in {self._path}" + "".join(f"; {note}" for note in notes)

    def function(self, code: CodeType) -> str:
        """Return a function's name for metadata, `module:qualified.name`."""
        module = self.modules.get(self.real(code.co_filename))
        return f"{module or self.short(code.co_filename)}:{code.co_qualname}"

    def real(self, file: str) -> str:
        """Return a file's path without links and `..`, because its name in code depends on the import path."""
        if file not in self._real:
            self._real[file] = real_path(file)
        return self._real[file]

    def short(self, file: str) -> str:
        """Return a file's path relative to the root of the tests, or to the import folder if it is installed."""
        if file not in self._short:
            installed = "site-packages" in file
            tops = [folder for folder in sys.path if type(folder) is str] if installed else [str(self._root)]
            tops = [name for top in tops if top for name in (top, self.real(top))]
            self._short[file] = os.path.basename(file)
            for name in (self.real(file), file):
                found = [top for top in tops if name.startswith(top + os.sep)]
                if found and os.pardir not in name.split(os.sep):
                    self._short[file] = name[len(max(found, key=len)) + 1 :]
        return self._short[file]

    def _is_over(self) -> bool:
        """Return whether to skip recording the next test."""
        if self._over is None and _reached(self._bytes, self.options.cwm_max_bytes):
            self._over = "--cwm-max-bytes"
        if self._over is None and _reached(self._seconds, self.options.cwm_max_seconds):
            self._over = "--cwm-max-seconds"
        if self._over is not None or getpid() != self._process:
            return True
        if id(gettrace()) in self._hooks:
            settrace(None)  # a finished test restored our hook; without the plugin, there would be none
        self._traced += gettrace() is not None
        return gettrace() is not None

    def _keep(self, test: _Test) -> None:
        """Write the traces of a test."""
        self._tested = True
        if self._writer is None:
            self._outside |= dict.fromkeys(test.recording.outside())
        traces = finish(test.recording)
        for trace, call in zip(traces, test.calls, strict=False):  # without calls, there is one empty trace
            if len(trace) == 0:
                continue  # a signal handler raised during its first event
            if self._writer is None:
                self._writer = TraceWriter(self._path)
            file = call.pop("file")
            module = self.modules.get(self.real(file))
            described = {"source": "repository", "path": self.short(file), "seed": self.options.cwm_seed} | call
            if module is not None:
                described |= self._packages[module.partition(".")[0]] | {"module": module}
            key = "{test} {function} {site} {call}".format_map(call)
            self._writer.add(trace, key=key, **described)
            self._bytes += trace.nbytes
        if self._writer is not None and monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = monotonic()


class WorkersSummary:
    """Reports the summaries of the workers of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        """Start without workers."""
        self._workers: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Keep a worker's summary. A killed worker has none."""
        self._workers.append(getattr(node, "workeroutput", {}).get("cwm", f"{node.gateway.id} ended without a summary"))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary of each worker."""
        for worker in self._workers:
            terminalreporter.write_line(f"cwm: {worker}")


def _reached(used: float, limit: float | None) -> bool:
    return limit is not None and used >= limit


def _own_packages(root: Path) -> list[str]:
    """Return the packages of a project: folders with an `__init__.py` at its root or in `src`, except tests."""
    found = [path.parent.name for folder in (root, root / "src") for path in folder.glob("*/__init__.py")]
    return sorted(name for name in found if name not in _TEST_FOLDERS)


def _modules(package: str) -> dict[str, str]:
    """Return the modules of a package by file, without its tests. A single module counts as a package."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a loaded module without a spec, such as __main__
        spec = None
    if spec is None or package == "__main__":  # pytest itself
        return {}
    if spec.submodule_search_locations is None:
        return {spec.origin: package} if spec.origin and spec.origin.endswith(".py") else {}
    found = {}
    for top in spec.submodule_search_locations:
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(name for name in folders if name not in _TEST_FOLDERS)
            parts = [package, *Path(folder).relative_to(top).parts]
            for file in sorted(files):
                name, suffix = os.path.splitext(file)
                if (
                    suffix == ".py"
                    and name != "conftest"
                    and not name.startswith("test_")
                    and not name.endswith("_test")
                ):
                    inner = parts if name == "__init__" else [*parts, name]
                    found[os.path.join(folder, file)] = ".".join(inner)
    return found


def _version(package: str) -> str | None:
    """Return the version of the distribution that provides a package, usually one of the same name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, [])
        return importlib.metadata.version(names[0]) if names else None
