"""`cwm record` and `cwm view`."""

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
        "A script is recorded from its first line, as `python FILE` runs it; FILE may be a folder or zip file with a\n"
        "__main__.py. With --call, FILE's body runs as a script does, unrecorded, then the expression is recorded.\n"
        "The program runs in this process, unprotected; what it raises is part of the trace and no failure.\n"
        "Ctrl-C, a signal that ends the process, and os._exit end the recording and keep what there is.",
    )
    parser.usage = "cwm record FILE [--call EXPR] [-o OUT] [options] [-- ARG ...]"
    parser.add_argument("file", metavar="FILE", help="the program; arguments after -- are its own")
    parser.add_argument("--call", metavar="EXPR", help="expression to record, in the names of the file's module")
    parser.add_argument(
        "--as-module",
        action="store_true",
        help="with --call: FILE is imported under its name, so that if __name__ == '__main__' does not hold",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="trace to write (default: FILE's name.cwmtrace), or a store, *.cwmtraces, to add it to",
    )
    parser.add_argument(
        "--scope",
        action="append",
        metavar="SCOPE",
        help="code to record: 'file' (the default), 'package' (files under FILE's top-level package), or a file or "
        "folder; may be given several times",
    )
    parser.add_argument("--max-frames", type=positive, metavar="N", help="stop the program after N frames")
    parser.add_argument("--max-seconds", type=seconds, metavar="S", help="stop the program after S seconds")
    parser.add_argument(
        "--max-value-chars", type=positive, default=1000, metavar="N", help="cut longer values (default: 1000)"
    )
    parser.add_argument(
        "--object-state", action="store_true", help="show plain instances with their attributes: Point(x=1, y=2)"
    )
    parser.add_argument("--calls-only", action="store_true", help="write CALL and RETURN frames only")
    parser.add_argument("--max-depth", type=positive, metavar="N", help="leave out calls nested deeper than N")
    parser.add_argument(
        "--loop-budget",
        type=loop_budget,
        metavar="FIRST,LAST",
        help="write only so many first and last iterations of each loop",
    )
    parser.add_argument("--changes-only", action="store_true", help="write only the variables that changed")
    parser.add_argument("--text", action="store_true", help="also print the trace's text form")


class _CommandRecorder(Recorder):
    """A recorder that warns as the command does."""

    def __init__(self, args: argparse.Namespace, **options: Any) -> None:
        super().__init__(**options)
        self._args = args

    def warn(self, message: str) -> None:
        """Print the warning on standard error."""
        warn(self._args, f"warning: {message}")


def _record(args: argparse.Namespace) -> int:
    if args.call is not None and args.scope:
        args.error("--scope cannot be combined with --call, which records FILE's own code")
    if args.as_module and args.call is None:
        args.error("--as-module goes with --call: without it, FILE runs as a script")
    recorder = _CommandRecorder(
        args,
        scope=_scope(args),
        max_frames=args.max_frames,
        max_seconds=args.max_seconds,
        max_value_chars=args.max_value_chars,
        object_state=args.object_state,
        # A loop is told from all its frames.
        calls_only=args.calls_only and args.loop_budget is None,
        max_depth=args.max_depth if args.loop_budget is None else None,
    )
    output = args.output or Path(Path(args.file).absolute().stem + TRACE)
    target = new_file(output)
    if args.owns_process and not sys.flags.safe_path:
        del sys.path[0]  # the folder of `cwm` itself, which Python put there
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
    with redirect_stdout(sys.stdout), redirect_stderr(sys.stderr):  # a program may leave others in their place
        try:
            with last_words.watch():
                _run(args, recorder)
        except KeyboardInterrupt:
            interrupted = True
    if not last_words.is_own_process:
        return OK  # the trace belongs to the process that forked this copy
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
    if target.suffix == STORE:
        with TraceWriter(target, append=True) as writer:
            writer.add(trace, source=args.file)
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
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a trace that `cwm record` wrote, or a store of many")
    parser.add_argument(
        "--trace", dest="which", metavar="KEY", help="which trace of a store: its key, or its number from 0"
    )
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a self-contained page to step through instead")
    parser.add_argument("--predicted", type=Path, metavar="PRED", help="a predicted trace to mark differences from")
    parser.add_argument("--start", type=not_negative, metavar="N", help="first frame to print (default: 0)")
    parser.add_argument("--limit", type=not_negative, metavar="N", help="most frames to print (default: all)")


def _view(args: argparse.Namespace) -> int:
    from cwm_core import view

    if args.html and (args.start is not None or args.limit is not None):
        args.error("--start and --limit are for the terminal, not for --html")
    trace = _load_trace(args.trace, args.which)
    predicted = Trace.load(args.predicted) if args.predicted else None
    if args.html:
        write_file(args.html, view.html(trace, predicted=predicted, title=args.trace.name))
        say(args, f"wrote {args.html}, {len(trace):,} frames")
    else:
        write(view.terminal(trace, predicted=predicted, start=args.start or 0, limit=args.limit))
    return OK


def _load_trace(path: Path, which: str | None) -> Trace:
    if path.suffix != STORE:
        if which is not None:
            raise ValueError(f"{path} is no store; --trace is for *{STORE}")
        return Trace.load(path)
    reader = TraceReader(path)
    if which is None:
        if len(reader) == 1:
            return reader[0]
        raise ValueError(f"{path} holds {len(reader):,} traces; --trace says which")
    found = reader.get(which)
    if found is None and which.isdecimal() and int(which) < len(reader):
        found = reader[int(which)]
    if found is None:
        raise ValueError(f"{path} holds {len(reader):,} traces, and none is {which!r}")
    return found
