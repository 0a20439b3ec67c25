"""Implement `cwm record` and `cwm view`."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from ..formats.traces import STORE, TRACE
from ..support.files import write_file
from ..trace import Recorder, Trace, TraceReader, TraceWriter
from .last_words import LastWords
from .options import (
    INTERRUPTED,
    OK,
    add_verb,
    loop_budget,
    new_file,
    not_negative,
    positive,
    program,
    record_call,
    say,
    seconds,
    summary,
    warn,
    write,
)


def add_record(verbs: Any) -> None:
    """Add `cwm record`."""
    parser = add_verb(
        verbs,
        _record,
        "Run a Python program and record its execution as a trace.",
        "cwm record sort.py --call 'bubble_sort([3, 1, 2])' -o sort.cwmtrace",
        "Records a script from its first line, as `python FILE` runs it. FILE can be a folder or zip file with a\n"
        "__main__.py. With --call, runs the body of FILE as a script, unrecorded, and then records the expression.\n"
        "The program runs in this process without a sandbox. An exception in the program becomes part of the trace\n"
        "and is not a failure of this command. After Ctrl-C, a signal that ends the process, or os._exit, the trace\n"
        "up to then is saved. SIGKILL and a crash of the interpreter lose it.",
    )
    parser.usage = "cwm record {FILE [--call EXPR] | -m MODULE} [-o OUT] [options] [-- ARG ...]"
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="program to record; arguments after -- are passed to it"
    )
    parser.add_argument("-m", "--module", metavar="MODULE", help="record a module or package, as `python -m` runs it")
    parser.add_argument("--call", metavar="EXPR", help="expression to record, evaluated in the module of FILE")
    parser.add_argument(
        "--as-module",
        action="store_true",
        help="with --call, run FILE under its module name, so that `if __name__ == '__main__'` is false",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="trace to write (default: name of FILE or MODULE with .cwmtrace), or store, *.cwmtraces, to append to",
    )
    parser.add_argument(
        "--scope",
        action="append",
        metavar="SCOPE",
        help="code to record: 'file' (the default), 'package' (the top-level package of FILE), or the path of a file "
        "or folder; repeatable",
    )
    parser.add_argument("--max-frames", type=positive, metavar="N", help="stop the program after N frames")
    parser.add_argument("--max-seconds", type=seconds, metavar="S", help="stop the program after S seconds")
    parser.add_argument(
        "--max-value-chars",
        type=positive,
        default=1000,
        metavar="N",
        help="cut values longer than N characters (default: 1000)",
    )
    parser.add_argument(
        "--object-state",
        action="store_true",
        help="show instances without a __repr__ with their attributes: Point(x=1, y=2)",
    )
    parser.add_argument("--calls-only", action="store_true", help="write only CALL and RETURN frames")
    parser.add_argument("--max-depth", type=positive, metavar="N", help="leave out calls nested deeper than N")
    parser.add_argument(
        "--loop-budget",
        type=loop_budget,
        metavar="FIRST,LAST",
        help="write only this many first and last iterations of each loop",
    )
    parser.add_argument("--changes-only", action="store_true", help="write only the variables that changed")
    parser.add_argument("--text", action="store_true", help="also print the text form of the trace")


class _CommandRecorder(Recorder):
    """A recorder that reports warnings on standard error."""

    def __init__(self, args: argparse.Namespace, **options: Any) -> None:
        super().__init__(**options)
        self._args = args

    def warn(self, message: str) -> None:
        """Print the warning on standard error."""
        warn(self._args, f"warning: {message}")


def _record(args: argparse.Namespace) -> int:
    if (args.file is None) == (args.module is None):
        args.error("expected a FILE or -m MODULE, with the program's own arguments after --")
    if args.call is not None and args.module is not None:
        args.error("--call requires a FILE; it cannot be combined with -m")
    if args.call is not None and args.scope:
        args.error("--scope cannot be combined with --call, which records FILE's own code")
    if args.as_module and args.call is None:
        args.error("--as-module requires --call: otherwise FILE runs as a script")
    recorder = _CommandRecorder(
        args,
        scope=_scope(args),
        max_frames=args.max_frames,
        max_seconds=args.max_seconds,
        max_value_chars=args.max_value_chars,
        object_state=args.object_state,
        # Finding loops requires all frames.
        calls_only=args.calls_only and args.loop_budget is None,
        max_depth=args.max_depth if args.loop_budget is None else None,
    )
    output = args.output or Path((args.module or Path(args.file).absolute().stem) + TRACE)
    target = new_file(output)
    if args.owns_process and not sys.flags.safe_path:
        del sys.path[0]  # added by Python: the folder of the `cwm` script
    stderr = sys.stderr

    def keep(reason: str) -> None:
        trace = recorder.snapshot(reason)
        if trace is not None:
            trace = _coarsened(args, trace)
            _store(args, target, trace)
            if not args.quiet:
                print(f"cwm record: {output}: {summary(trace)}", file=stderr, flush=True)

    last_words = LastWords(keep)
    interrupted = False
    with redirect_stdout(sys.stdout), redirect_stderr(sys.stderr):  # in case the program replaces them
        try:
            with last_words.watch():
                _run(args, recorder)
        except KeyboardInterrupt:
            interrupted = True
    if not last_words.is_own_process:
        return OK  # the parent process saves the trace
    if recorder.last is None:
        raise KeyboardInterrupt
    trace = _coarsened(args, recorder.last)
    _store(args, target, trace)
    if args.text:
        write(trace.to_text())
    say(args, f"{output}: {summary(trace)}" + (", interrupted" if interrupted else ""))
    last_words.finish()
    return INTERRUPTED if interrupted else OK


def _run(args: argparse.Namespace, recorder: Recorder) -> None:
    if args.module is not None:
        recorder.record_module(args.module, args.program_args)
        return
    if args.call is None:
        recorder.record_file(args.file, args.program_args)
        return
    name = Path(args.file).stem if args.as_module else "__main__"
    record_call(recorder, args.file, program(args.file, args.call), args.call, args.program_args, name=name)


def _coarsened(args: argparse.Namespace, trace: Trace) -> Trace:
    return trace.coarsen(
        calls_only=args.calls_only,
        max_depth=args.max_depth,
        loop_budget=args.loop_budget,
        changes_only=args.changes_only,
    )


def _store(args: argparse.Namespace, target: Path, trace: Trace) -> None:
    if target.suffix.lower() == STORE:
        with TraceWriter(target, append=True) as writer:
            writer.add(trace, source=args.module or args.file)
    else:
        trace.save(target)


def _scope(args: argparse.Namespace) -> str | list[str]:
    scope = args.scope or ["file"]
    if len(scope) == 1 and scope[0] in ("file", "package"):
        return str(scope[0])
    for path in scope:
        if not os.path.exists(path):
            raise FileNotFoundError(2, "no such file or folder to record", path)
    return list(scope)


def add_view(verbs: Any) -> None:
    """Add `cwm view`."""
    parser = add_verb(
        verbs,
        _view,
        "Show a trace in the terminal or as an HTML page, alone or beside a prediction.",
        "cwm view sort.cwmtrace --html sort.html",
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="trace or trace store written by `cwm record`")
    parser.add_argument("--trace", dest="which", metavar="KEY", help="trace of a store to show: key, or number from 0")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a self-contained interactive page instead")
    parser.add_argument("--predicted", type=Path, metavar="PRED", help="predicted trace to compare with")
    parser.add_argument("--start", type=not_negative, metavar="N", help="first frame to print (default: 0)")
    parser.add_argument(
        "--limit", type=not_negative, metavar="N", help="maximum number of frames to print (default: all)"
    )


def _view(args: argparse.Namespace) -> int:
    from cwm_core import view

    if args.html and (args.start is not None or args.limit is not None):
        args.error("--start and --limit cannot be combined with --html")
    trace = _load_trace(args.trace, args.which)
    predicted = Trace.load(args.predicted) if args.predicted else None
    if args.html:
        write_file(args.html, view.html(trace, predicted=predicted, title=args.trace.name))
        say(args, f"wrote {args.html}, {len(trace):,} frames")
    else:
        write(view.terminal(trace, predicted=predicted, start=args.start or 0, limit=args.limit))
    return OK


def _load_trace(path: Path, which: str | None) -> Trace:
    if path.suffix.lower() != STORE:
        if which is not None:
            raise ValueError(f"{path}: --trace requires a trace store (*{STORE})")
        return Trace.load(path)
    reader = TraceReader(path)
    if which is None:
        if len(reader) == 1:
            return reader[0]
        raise ValueError(
            f"{path} has {len(reader):,} traces; choose one with --trace: a key, or a number from 0 to "
            f"{len(reader) - 1}"
        )
    found = reader.get(which)
    if found is None and which.isdecimal() and int(which) < len(reader):
        found = reader[int(which)]
    if found is None:
        raise ValueError(f"{path}: no trace {which!r} among {len(reader):,} traces")
    return found
