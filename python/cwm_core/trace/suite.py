"""What runs in a test suite that is recorded: the part of the pytest plugin that does it.

While a test runs nothing is looked up that it may have patched: functions are imported by name.
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

from .._native import Recording
from . import TraceWriter, finish
from .calls import SUFFIX, CallSample, priority

MAX_TRACE_BYTES = 4 << 20  # of memory, a trace
MAX_TEST_TRACES = 256  # in memory until the test is over
FLUSH_SECONDS = 1.0
_TEST_FOLDERS = ("test", "tests")


class _Test:
    """What is recorded during a test."""

    def __init__(self, plugin: SuiteRecorder, item: pytest.Item, run: int) -> None:
        self.id = item.nodeid if run == 1 else f"{item.nodeid}~{run}"
        self.calls: list[dict[str, Any]] = []
        """Of each trace, its metadata."""
        self._plugin = plugin
        self._numbers: Counter[tuple[str, str]] = Counter()  # of the calls so far, by function and site
        self._own = (str(item.path), getattr(item, "originalname", None) or item.name)
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
        """Leave the trace function that the test left; the seconds since the start."""
        left = gettrace()
        self.recording.stop()
        if left is not self.hook:
            settrace(left)
        return monotonic() - self.started

    def _chooses_test(self, frame: FrameType) -> bool:
        code = frame.f_code
        return (code.co_filename, code.co_name) == self._own and self._chooses_call(frame)

    def _chooses_call(self, frame: FrameType) -> bool:
        """Whether the outermost call that begins with this frame is recorded."""
        code = frame.f_code
        if code.co_name == "<module>" or len(self.calls) >= MAX_TEST_TRACES:
            return False
        caller = frame.f_back
        function = self._plugin.function(code)
        site = "" if caller is None else f"{self._plugin.short(caller.f_code.co_filename)}:{caller.f_lineno}"
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
        """For the process of this configuration."""
        self.options = config.option
        self.modules: dict[str, str] = {}
        """The package's, by file."""
        self.sample = CallSample(self.options.cwm_per_site, self.options.cwm_per_function)
        self._root = config.rootpath
        worker = getattr(config, "workerinput", {}).get("workerid", "main")
        self._path = Path(self.options.cwm_record) / f"{worker}{SUFFIX}"
        self._writer: TraceWriter | None = None
        self._packages: dict[str, dict[str, str | None]] = {}
        self._short: dict[str, str] = {}
        self._process = getpid()
        self._runs: Counter[str] = Counter()
        self._tests: list[_Test] = []  # of the item that runs, which a plugin may run again
        self._hooks: dict[int, Any] = {}  # of tests that are over, by `id`
        self._bytes, self._seconds, self._flushed = 0, 0.0, monotonic()
        self._traced = 0  # tests that ran under another trace function
        self._over: str | None = None  # why nothing more is recorded

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Find the package's files: only now is everything on the import path, and known what is a test."""
        names = self.options.cwm_package or _own_packages(self._root)
        if not names:
            raise pytest.UsageError(f"--cwm-record: no package in {self._root}; name one with --cwm-package")
        tests = {str(item.path) for item in session.items}
        for name in names:
            found = _modules(name)
            if not found:
                raise pytest.UsageError(f"--cwm-package: there is no package {name}")
            self.modules |= {file: module for file, module in found.items() if file not in tests}
            self._packages[name] = {"package": name, "version": _version(name)}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, None]:
        """Keep what a test recorded when all of it is over: what it patched is as it was."""
        yield
        tests, self._tests = self._tests, []
        for test in tests if getpid() == self._process else ():
            try:
                self._keep(test)
            except Exception as error:  # whatever it is: the suite goes on
                self._over = f"{type(error).__name__}: {error}"

    # Old style and the innermost: an exception of the test passes none of our frames.
    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, None]:
        """Record while the test itself runs."""
        if self._is_over():
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

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line."""
        count = 0 if self._writer is None else len(self._writer)
        notes = [f"{self._traced} tests not recorded under another trace function"] if self._traced else []
        notes += [f"ended early: {self._over}"] if self._over else []
        terminalreporter.write_line(f"cwm: {count} traces in {self._path}" + "".join(f"; {note}" for note in notes))

    def function(self, code: CodeType) -> str:
        """How a function is called in metadata: ``module:qualified.name``."""
        module = self.modules.get(code.co_filename)
        return f"{module or self.short(code.co_filename)}:{code.co_qualname}"

    def short(self, file: str) -> str:
        """A file's path from the root of the tests; of an installed one from the folder that it is imported from."""
        if file not in self._short:
            installed = "site-packages" in file
            folders = [folder for folder in sys.path if type(folder) is str] if installed else [str(self._root)]
            found = [folder for folder in folders if folder and file.startswith(folder + os.sep)]
            self._short[file] = file[len(max(found, key=len)) + 1 :] if found else os.path.basename(file)
        return self._short[file]

    def _is_over(self) -> bool:
        """Whether the next test is not recorded."""
        if self._over is None and _reached(self._bytes, self.options.cwm_max_bytes):
            self._over = "--cwm-max-bytes"
        if self._over is None and _reached(self._seconds, self.options.cwm_max_seconds):
            self._over = "--cwm-max-seconds"
        if self._over is not None or getpid() != self._process:
            return True
        if id(gettrace()) in self._hooks:
            settrace(None)  # a test that was over put our hook back: without us there would be none
        self._traced += gettrace() is not None
        return gettrace() is not None

    def _keep(self, test: _Test) -> None:
        """Write what was recorded during a test."""
        traces = finish(test.recording)
        for trace, call in zip(traces, test.calls, strict=False):  # without calls there is an empty trace
            if len(trace) == 0:
                continue  # a signal handler raised in the midst of its first event
            if self._writer is None:
                self._writer = TraceWriter(self._path)
            file = call.pop("file")
            module = self.modules.get(file)
            described = {"source": "repository", "path": self.short(file), "seed": self.options.cwm_seed} | call
            if module is not None:
                described |= self._packages[module.partition(".")[0]] | {"module": module}
            key = "{test} {function} {site} {call}".format_map(call)
            self._writer.add(trace, key=key, **described)
            self._bytes += trace.nbytes
        if self._writer is not None and monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = monotonic()


def _reached(used: float, limit: float | None) -> bool:
    return limit is not None and used >= limit


def _own_packages(root: Path) -> list[str]:
    """The packages of a project: the folders with an ``__init__.py`` at its root or in its ``src``, but for tests."""
    found = [path.parent.name for folder in (root, root / "src") for path in folder.glob("*/__init__.py")]
    return sorted(name for name in found if name not in _TEST_FOLDERS)


def _modules(package: str) -> dict[str, str]:
    """The module of each Python file of a package, or of a single module, without its tests."""
    spec = importlib.util.find_spec(package)
    if spec is None or package.partition(".")[1]:
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
    """The version of the distribution that a package is installed from: mostly the one of its name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, [])
        return importlib.metadata.version(names[0]) if names else None
