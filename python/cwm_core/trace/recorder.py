"""Record executions as traces, with `record`, `record_source`, or a `Recorder`.

`docs/concepts/trace-format.md` defines the trace format. The recorder is native: it reads the frames of the interpreter
in place and does not modify the program's objects.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import io
import linecache
import operator
import os
import sys
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, SupportsIndex

from cwm_core._native import ParsedTrace, Recording, RecordingLimit, Trace
from cwm_core.trace import entry, sources

__all__ = ["ParsedTrace", "Recorder", "RecordingLimit", "Trace", "record", "record_source"]

MARK = "  # << START_OF_TRACE"
_SOURCE_NAME = "<cwm>"


class Recorder:
    """Records executions with a set of options.

    When a recording reaches a limit, `RecordingLimit` stops the program. It is not an `Exception`, and it is raised
    again at each further event in scope. The trace keeps everything recorded before, and `Trace.truncated` is the
    limit.

    A recorder records only the calling thread. A second recording on the same thread raises RuntimeError.

    Args:
        scope: Code to record. `"file"`: the file of the recorded function or of the `with` block. `"package"`: all
            files under its top-level package. A list of paths: these files, and all files under these folders.
        max_frames: Maximum number of frames in a trace.
        max_bytes: Maximum memory of the frames of a trace, in bytes.
        max_seconds: Maximum duration of a recording, in seconds. Infinity is no limit.
        max_value_chars: Maximum length of a rendered value in characters, at most 2**28. Longer values are cut and end
            in `...`.
        object_state: Show instances of classes without a `__repr__` with their attributes, as for a dataclass:
            `Point(x=1, y=2)` instead of `<__main__.Point object>`. No code of the class runs. Instances that store
            attributes without a dict get one, as with `vars`.
        capture_output: Store the text that the program writes to `sys.stdout` in `Trace.output` instead of printing it.
            Not available for `with` blocks, which produce several traces.
        calls_only: Record only calls and returns, as `Trace.coarsen(calls_only=True)` does, in a fraction of the time
            and memory.
        max_depth: Maximum nesting depth of recorded calls, as in `Trace.coarsen(max_depth=...)`.
    """

    def __init__(
        self,
        *,
        scope: str | Sequence[str | os.PathLike[str]] = "file",
        max_frames: int | None = None,
        max_bytes: int | None = None,
        max_seconds: float | None = None,
        max_value_chars: int = 1000,
        object_state: bool = False,
        capture_output: bool = False,
        calls_only: bool = False,
        max_depth: int | None = None,
    ) -> None:
        """Set the options of later recordings.

        Raises:
            TypeError: `scope` is not a list of paths, a limit is not a number, or it must be an integer and is not.
            ValueError: `scope` is an unknown string, or a limit is below its minimum.
        """
        limits = {"max_frames": max_frames, "max_bytes": max_bytes, "max_depth": max_depth}
        counts = {name: _count(name, value) for name, value in limits.items()}
        self._scope = _scope(scope)
        self._capture_output = capture_output
        self._options: dict[str, Any] = {
            **counts,
            "max_seconds": _seconds(max_seconds),
            "max_value_chars": _count("max_value_chars", max_value_chars, optional=False),
            "object_state": object_state,
            "calls_only": calls_only,
        }
        self._block: tuple[Recording, list[Trace], dict[str, list[str]]] | None = None
        self._snapshot: Callable[[str], Trace] | None = None
        self.last: Trace | None = None
        """Trace of the last finished recording, including an interrupted one; None before the first."""

    def record(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Trace:
        """Record `function(*args, **kwargs)`.

        Runs a generator until it is exhausted and a coroutine until it returns. An exception of the program becomes
        `Trace.exception` and is not raised.

        Args:
            function: Function to call.
            *args: Positional arguments.
            **kwargs: Keyword arguments.

        Returns:
            The trace of the call.

        Raises:
            KeyboardInterrupt: The recording was interrupted; `last` has the trace up to then.
            TypeError: The file of `function` is unknown, and `scope` is not a list of paths.
        """
        recording, given = self._recording(lambda: _file_of(function))
        return self._run(recording, function, args, kwargs, given)

    def record_source(
        self, code: str, call: str, *, name: str = "__main__", file: str | os.PathLike[str] | None = None
    ) -> Trace:
        """Record the expression `call` in the module `code`, wrapped in `def main()`.

        The module body runs unrecorded. The added `main` does not replace a `main` of the module. While the program
        runs, its module is `sys.modules[name]`.

        Args:
            code: Source of the module.
            call: Expression to record.
            name: `__name__` of the module. With a name other than `__main__`, code under
                `if __name__ == "__main__"` does not run.
            file: File that `code` was read from. The module gets it as `__file__`, and `Frame.lineno` refers to it.
                Without a file, line 1 is the empty line at the start of the context.

        Returns:
            The trace of the call.

        Raises:
            SyntaxError: The code or the call does not compile.
            Exception: The module body raised an exception.
        """
        shown, filename = _main_lines(code, call), _SOURCE_NAME
        own = _module_lines(code)
        if file is None:
            module = ModuleType(name)
        else:
            filename = entry.absolute(os.fsdecode(file))
            module = entry.main_module(filename) if name == "__main__" else entry.named_module(name, filename)
            shown, own = shown[1:], own[1:]
        main = _main_function(call, len(own), module)
        compiled = compile("".join(own), filename, "exec", dont_inherit=True)
        # Tracebacks that the program formats then show its source lines, as for a file.
        linecache.cache[_SOURCE_NAME] = (sum(map(len, shown)), None, shown, _SOURCE_NAME)

        def context(*_: object) -> str:
            return source_context(code, call)

        with entry.shown_as(module):
            exec(compiled, vars(module))
            recording = Recording([_SOURCE_NAME, filename], [], **self._options)
            # Another recording may have replaced the entry in linecache.
            given = dict.fromkeys((_SOURCE_NAME, filename), shown)
            return self._run(recording, main, (), {}, given, context=context)

    def record_call(self, module: ModuleType, call: str) -> Trace:
        """Record an expression in an imported module, wrapped in `def main()` at the end of its source.

        Names in the expression are those of the module, which does not change. The recording covers `main` and the
        module's file; `scope` has no effect.

        Args:
            module: Module to evaluate the expression in.
            call: Expression to record.

        Returns:
            The trace of the call.

        Raises:
            SyntaxError: The call does not compile.
            TypeError: The module has no source.
        """
        filename, lines = module.__file__, sources.lines_of(module.__file__ or "")
        if filename is None or not lines:
            raise TypeError(f"the module {module.__name__} has no source")
        shown = _call_lines("".join(lines), call)
        main = _main_function(call, len(shown) - call.count("\n") - 2, module)
        recording = Recording([_SOURCE_NAME, filename], [], **self._options)
        return self._run(recording, main, (), {}, {_SOURCE_NAME: shown, filename: shown})

    def record_file(self, path: str | os.PathLike[str], argv: Sequence[str] = ()) -> Trace:
        """Record a script from its first line, run as `python PATH ARGV...` runs it.

        While the program runs, `sys.argv`, `sys.path`, and `sys.modules["__main__"]` are those of the script: `argv[0]`
        is `path` as given, and the real folder of the script comes first in `sys.path`, unless the interpreter was
        started with `-P`.

        Args:
            path: Script, or folder or zip file with a `__main__.py`.
            argv: Arguments of the script.

        Returns:
            The trace of the script.

        Raises:
            OSError: The file cannot be read.
            SyntaxError: The file does not compile.
            ValueError: The folder or zip file has no `__main__.py`.
        """
        return self._run_program(lambda: entry.load_program(path), argv)

    def record_module(self, name: str, argv: Sequence[str] = ()) -> Trace:
        """Record a module or package from its first line, run as `python -m NAME ARGV...` runs it.

        As in `record_file`, with the current folder first in `sys.path`, and the path of the module's file in
        `argv[0]`. Importing the parent packages is not recorded.

        Args:
            name: Module, or package with a `__main__` module, such as `"json.tool"`.
            argv: Arguments of the module.

        Returns:
            The trace of the module.

        Raises:
            SyntaxError: The module does not compile.
            ValueError: There is no such module, or the package has no `__main__` module.
        """
        return self._run_program(lambda: entry.load_module(name), argv)

    def _run_program(self, load: Callable[[], entry.Program], argv: Sequence[str]) -> Trace:
        if isinstance(argv, str | bytes):
            raise TypeError(f"argv: expected a list of strings, got the single {argv[:60]!r}")
        program = load()
        with program.in_place(argv):
            recording, given = self._recording(lambda: program.code.co_filename)
            return self._run(recording, exec, (program.code, vars(program.module)), {}, given)

    def __enter__(self) -> list[Trace]:
        """Record the activations that begin on this thread inside the block.

        Returns:
            A list that is filled when the block ends, with one trace for each outermost activation in scope.

        Raises:
            RuntimeError: This or another recorder is already recording on this thread.
            ValueError: `capture_output` is set.
        """
        if self._capture_output:
            raise ValueError("capture_output is not available for a with block, which produces several traces")
        if self._block is not None:
            raise RuntimeError("this recorder already records a block")
        caller = sys._getframe(1)
        recording, given = self._recording(lambda: caller.f_code.co_filename, split=True)
        traces: list[Trace] = []
        recording.start()
        self._block = (recording, traces, given)
        return traces

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Stop recording. Propagates exceptions, except `RecordingLimit`."""
        if self._block is None:
            raise RuntimeError("this recorder is not recording a block")
        recording, traces, given = self._block
        recording.stop()
        self._block = None
        nothing = sources.nothing_recorded(recording.scope(), recording.outside())
        traces.extend(trace for trace in finish(recording, given) if len(trace) or trace.truncated)
        if not traces and error is None:
            self.warn(nothing)
        return kind is RecordingLimit

    def warn(self, message: str) -> None:
        """Issue a RuntimeWarning about an empty recording. Override this method to report it elsewhere."""
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            level, frame = level + 1, frame.f_back
        warnings.warn(message, RuntimeWarning, stacklevel=level)

    def _run(
        self,
        recording: Recording,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Mapping[str, list[str]],
        *,
        context: Callable[[str, str, int, int], str] | None = None,
    ) -> Trace:
        output = _Output() if self._capture_output else None

        def snapshot(reason: str) -> Trace:
            lines = sources.reader(recording.sources(), given)
            marked = context or functools.partial(_context, lines)
            return recording.snapshot(lines, marked, reason, None if output is None else output.text)

        self._snapshot = snapshot
        try:
            with output or contextlib.nullcontext():
                recording.run(function, args, kwargs)
        finally:
            self._snapshot = None
            nothing = sources.nothing_recorded(recording.scope(), recording.outside())
            self.last = finish(recording, given, None if output is None else output.text, context)[0]
        if not len(self.last) and not self.last.truncated:
            self.warn(nothing)
        return self.last

    def snapshot(self, reason: str) -> Trace | None:
        """Return the trace so far without ending the recording, for a process that is about to exit.

        Safe to call from any thread.

        Args:
            reason: Value of `Trace.truncated`.

        Returns:
            The trace so far; None if no recording is running.

        Raises:
            RuntimeError: The recorder is processing an event, for example running a `__repr__`.
        """
        snapshot = self._snapshot
        return None if snapshot is None else snapshot(reason)

    def _recording(self, file: Callable[[], str], split: bool = False) -> tuple[Recording, dict[str, list[str]]]:
        """Return a recording of this scope, and the lines of `file()` if only a loader can provide them."""
        given: dict[str, list[str]] = {}
        if isinstance(self._scope, str):
            filename = file()
            files, folders = [filename], []
            if self._scope == "package":
                # A file that is a link can belong to one package by its name and to another by its location.
                paths = (os.path.abspath(filename), os.path.realpath(filename))
                folders = [folder for path in paths if (folder := _package_folder(path)) is not None]
            given = sources.lines_of_loader(filename)
        else:
            files = folders = self._scope
        return Recording(files, folders, split=split, **self._options), given


class _Output:
    """Replaces `sys.stdout` and keeps everything written to it, on any layer of the stream."""

    class _Bytes(io.BytesIO):
        def close(self) -> None:
            """Keep the output if the program closes the stream."""

    def __enter__(self) -> None:
        self._bytes = self._Bytes()
        self._stream = io.TextIOWrapper(self._bytes, "utf-8", "backslashreplace", newline="\n", write_through=True)
        self._previous, sys.stdout = sys.stdout, self._stream

    def __exit__(self, *error: object) -> None:
        sys.stdout = self._previous
        with contextlib.suppress(ValueError):  # the program closed it
            self._stream.flush()

    @property
    def text(self) -> str:
        return self._bytes.getvalue().decode("utf-8", "replace")


def record(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Trace:
    """Record `function(*args, **kwargs)` with the default options. See `Recorder.record`."""
    return Recorder().record(function, *args, **kwargs)


def record_source(code: str, call: str) -> Trace:
    """Record the expression `call` in the module `code` with the default options. See `Recorder.record_source`."""
    return Recorder().record_source(code, call)


def finish(
    recording: Recording,
    given: Mapping[str, list[str]] | None = None,
    output: str | None = None,
    context: Callable[[str, str, int, int], str] | None = None,
) -> list[Trace]:
    """Return the traces of a stopped recording. `given` maps names of files to known source lines."""
    lines = sources.reader(recording.sources(), given or {})
    return recording.finish(lines, context or functools.partial(_context, lines), output)


def _scope(scope: str | Sequence[str | os.PathLike[str]]) -> str | list[str]:
    """Return a scope with absolute paths, which keep their meaning if the working directory changes.

    Raises:
        TypeError: The scope is not a list of paths.
        ValueError: The scope is an unknown string.
    """
    expected = f'scope must be "file", "package", or a list of paths, got {scope!r}'
    if isinstance(scope, str | bytes):
        if scope not in ("file", "package"):
            raise ValueError(expected)
        return str(scope)
    try:
        return [os.path.abspath(os.fsdecode(path)) for path in scope]
    except TypeError:
        raise TypeError(expected) from None


def _count(name: str, value: SupportsIndex | None, optional: bool = True) -> int | None:
    """Return a limit as an integer that fits the native recorder, or None for no limit.

    Raises:
        TypeError: The limit is not an integer, and not None if it is optional.
        ValueError: The limit is below 0, or below 1 for `max_depth`.
    """
    if value is None and optional:
        return None
    try:
        count = operator.index(value)  # type: ignore[arg-type]  # None is a TypeError, too
    except TypeError:
        raise TypeError(f"{name} must be an integer{' or None' * optional}, got {value!r}") from None
    least = int(name == "max_depth")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return min(count, sys.maxsize)


def _seconds(value: float | None) -> float | None:
    """Return `max_seconds` as a float.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or not a number of seconds.
    """
    if value is None:
        return None
    if not isinstance(value, Real):
        raise TypeError(f"max_seconds must be a number or None, got {value!r}")
    if not value >= 0:
        raise ValueError(f"max_seconds must be at least 0, got {value}")
    return min(float(value), sys.float_info.max)


def _file_of(function: Callable[..., Any]) -> str:
    """Return the file to record for `function`.

    Raises:
        TypeError: The file is unknown.
    """
    found: Any = function
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found)
    if isinstance(origin := typing.get_origin(found), type):  # Box[int]
        found = origin
    if isinstance(found, type):
        file = _file_of_class(found)
    else:
        if not hasattr(found, "__code__"):
            found = inspect.getattr_static(type(found), "__call__", None)  # an object with a method __call__
        code = _code_of(found)
        file = code and code.co_filename
    if file is None:
        raise TypeError(f"the file of {function!r} is unknown; pass the paths to record as Recorder(scope=[...])")
    return file


def _file_of_class(cls: type) -> str | None:
    """Return the file of the `class` statement, even if `__init__` is inherited or generated by a decorator.

    Uses the file of the class's own functions, or of its module. Generated functions have files such as `<string>`.
    """
    members = [value.fget if isinstance(value, property) else value for value in vars(cls).values()]
    # Reading attributes of other objects may run code of the program.
    functions = [member for member in members if isinstance(member, FunctionType | classmethod | staticmethod)]
    codes = [code for function in functions if (code := _code_of(function)) is not None]
    own = [code.co_filename for code in codes if code.co_qualname.startswith(cls.__qualname__ + ".")]
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return next(iter(own), file if isinstance(file, str) else None)


def _code_of(function: Any) -> CodeType | None:
    """Return the code object of a function or method, unwrapped; None for other objects."""
    with contextlib.suppress(ValueError):  # circular wrappers
        function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _package_folder(filename: str) -> str | None:
    """Return the folder of a file's top-level package: the outermost folder with an `__init__.py`."""
    top, folder = None, os.path.dirname(filename)
    while folder != top and os.path.isfile(os.path.join(folder, "__init__.py")):
        top, folder = folder, os.path.dirname(folder)
    return top


def source_context(code: str, call: str) -> str:
    """Return the context that `record_source(code, call)` records, without running the code."""
    lines = _main_lines(code, call)
    return _mark(lines, len(lines) - str(call).count("\n") - 1)


def call_context(code: str, call: str) -> str:
    """Return the context that `Recorder.record_call` records for a module with this source, without running it."""
    lines = _call_lines(code, call)
    return _mark(lines, len(lines) - str(call).count("\n") - 1)


def source_lines(context: str) -> list[str]:
    """Return the lines of a context as frames show them: each ends in a newline and has no entry mark."""
    lines = [line + "\n" for line in context.removesuffix("\n").split("\n")] if context else []
    marked = [line for line in lines if line.endswith(MARK + "\n")]
    # A program can contain the same comment, so any of several may be the mark.
    kept = marked if len(marked) > 1 else []
    return [line.removesuffix(MARK + "\n") + "\n" if line in marked else line for line in lines] + kept


def last_return(frames: Sequence[Any], *, complete: bool, depth: int = 0) -> int | None:
    """Find the frame in which the entry function returned.

    The RETURN frame at the end of a truncated trace often belongs to an inner call.

    Args:
        frames: Frames in order, each with an `event`.
        complete: Whether the trace is complete.
        depth: Number of activations open before the first frame; 1 after a prompt with the frame that calls `main()`.

    Returns:
        The index of the last frame if it is the RETURN frame of the entry; None if the trace ends before, or if an
        exception ended the entry.
    """
    if not frames or frames[-1].event != "return":
        return None
    is_unwound = len(frames) > 1 and frames[-2].event == "exception" and frames[-1].arg == "None"
    open_after = depth + sum({"call": 1, "return": -1}.get(frame.event, 0) for frame in frames)
    return len(frames) - 1 if (complete or open_after == 0) and not is_unwound else None


def _main_lines(code: str, call: str) -> list[str]:
    r"""Return the physical lines of the module that `record_source` shows, split at `\n`, `\r\n`, and `\r` only."""
    return io.StringIO(f"\n{code}\ndef main():\n    return {call}\n", newline=None).readlines()


def _module_lines(code: str) -> list[str]:
    """Return the lines of the module that `record_source` runs, without `main`."""
    return io.StringIO(f"\n{code}\n", newline=None).readlines()


def _main_function(call: str, line: int, module: ModuleType) -> FunctionType:
    """Return a function `main` that evaluates `call` in a module, with its `def` after line number `line`.

    `main` is compiled separately: no name of the module changes, and the call can use a `main` of the program.

    Raises:
        SyntaxError: The call does not compile, or is not an expression.
    """
    names: dict[str, Any] = {}
    blank = "\n" * line
    compiled = compile(f"{blank}def main():\n    return {call}\n", _SOURCE_NAME, "exec", dont_inherit=True)
    try:
        ast.parse(call.strip(), mode="eval")
    except SyntaxError:  # `return` also takes nothing, or a first statement of several
        place = (_SOURCE_NAME, line + 2, None, call)
        raise SyntaxError(f"expected an expression to record, got {call!r}", place) from None
    exec(compiled, names)
    return FunctionType(names["main"].__code__, vars(module))


def _call_lines(code: str, call: str) -> list[str]:
    """Return the physical lines of a module's source, followed by `main`."""
    end = "" if code.endswith("\n") else "\n"
    return io.StringIO(f"{code}{end}def main():\n    return {call}\n", newline=None).readlines()


def _context(source: Callable[[str], list[str]], filename: str, name: str, first_line: int, line: int) -> str:
    """Return the source of a file with the entry marked, as `docs/concepts/trace-format.md` defines CONTEXT."""
    lines = list(source(filename))
    number = (line or first_line) if name == "<module>" else sources.def_line(lines, name, first_line)
    return _mark(lines, number)


def _mark(lines: list[str], number: int) -> str:
    """Return the lines as one text, with the entry mark on the line with this number (from 1)."""
    if 0 < number <= len(lines):
        lines[number - 1] = lines[number - 1].rstrip("\n") + MARK + "\n"
    return "".join(lines)
