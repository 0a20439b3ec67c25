"""The `cwm` command: one verb a room, described in `docs/command-line.md`."""

from __future__ import annotations

import argparse
import os
import sys
import time
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cwm_core.data import Shards, ShardWriter
from cwm_core.exchange import STORE, export_traces, import_traces, read_traces, trace_files
from cwm_core.store import TraceReader, TraceWriter
from cwm_core.tokenizer import GPT2_PATTERN, LLAMA3_PATTERN, Tokenizer
from cwm_core.trace import ParsedTrace, Recorder, Trace

if TYPE_CHECKING:
    from cwm_core.inference import Engine

OK, FAILED, INTERRUPTED = 0, 1, 130

_PATTERNS = {"llama3": LLAMA3_PATTERN, "gpt2": GPT2_PATTERN}
_EXTRAS = {"torch": "train", "rich": "train", "safetensors": "train", "pyarrow": "parquet"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 fine, 1 the work failed, 130 interrupted.

    Raises SystemExit, as argparse does, with 2 for wrong usage and 0 after `--help` and `--version`.
    """
    args = _parse(list(sys.argv[1:] if argv is None else argv))
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say(args, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # who read our output has seen enough; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OSError, ValueError, SyntaxError, FloatingPointError, ModuleNotFoundError) as error:
        is_ours = not isinstance(error, ModuleNotFoundError) or error.name in _EXTRAS
        if not is_ours or os.environ.get("CWM_TRACEBACK"):
            raise
        _say(args, _sentence(error))
        return FAILED


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cwm",
        description="Record what Python programs do, turn the traces into training data, and train and use models\n"
        "that predict executions.",
        epilog="exit codes: 0 fine, 1 the work failed, 2 wrong usage, 130 interrupted.\n"
        "CWM_TRACEBACK=1 in the environment shows where in the code an error arose.\n"
        "`cwm VERB --help` explains a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cwm {version('cwm-core')}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    adds = (
        _add_record,
        _add_view,
        _add_import,
        _add_export,
        _add_tokenize,
        _add_pack,
        _add_inspect,
        _add_train,
        _add_predict,
        _add_demo,
    )
    for add in adds:
        add(verbs)
    program_args: list[str] = []
    if argv[:1] == ["record"] and "--" in argv:  # argparse would mix these with FILE
        at = argv.index("--")
        argv, program_args = argv[:at], argv[at + 1 :]
    args = parser.parse_args(argv)
    args.program_args = program_args
    args.error = verbs.choices[args.verb].error
    return args


def _verb(verbs: Any, run: Any, purpose: str, example: str, more: str = "") -> argparse.ArgumentParser:
    """Add the verb that `run` is named after."""
    parser = verbs.add_parser(
        run.__name__.removeprefix("_"),
        help=purpose,
        description=f"{purpose}\n\n{more}".strip(),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# ---- record


def _add_record(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _record,
        "Run a Python program and record its execution as a trace.",
        "cwm record sort.py --call 'bubble_sort([3, 1, 2])' -o sort.cwmtrace",
        "A script is recorded from its first line. With --call, the body of the file's module runs unrecorded, then\n"
        "the expression is recorded. The program runs in this process, unprotected; what it raises is part of the\n"
        "trace and no failure. Ctrl-C ends the recording and keeps what there is.",
    )
    parser.usage = "cwm record FILE [--call EXPR] [-o OUT] [options] [-- ARG ...]"
    parser.add_argument("file", metavar="FILE", help="the program; arguments after -- are its own")
    parser.add_argument("--call", metavar="EXPR", help="expression to record, in the names of the file's module")
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
    parser.add_argument("--max-frames", type=_positive, metavar="N", help="stop the program after N frames")
    parser.add_argument("--max-seconds", type=_seconds, metavar="S", help="stop the program after S seconds")
    parser.add_argument(
        "--max-value-chars", type=_positive, default=1000, metavar="N", help="cut longer values (default: 1000)"
    )
    parser.add_argument(
        "--object-state", action="store_true", help="show plain instances with their attributes: Point(x=1, y=2)"
    )
    parser.add_argument("--calls-only", action="store_true", help="write CALL and RETURN frames only")
    parser.add_argument("--max-depth", type=_positive, metavar="N", help="leave out calls nested deeper than N")
    parser.add_argument(
        "--loop-budget",
        type=_loop_budget,
        metavar="FIRST,LAST",
        help="write only so many first and last iterations of each loop",
    )
    parser.add_argument("--changes-only", action="store_true", help="write only the variables that changed")
    parser.add_argument("--text", action="store_true", help="also print the trace's text form")


def _record(args: argparse.Namespace) -> int:
    if args.call is not None and args.scope:
        args.error("--scope cannot be combined with --call, which records FILE's own code")
    recorder = Recorder(
        scope=_scope(args),
        max_frames=args.max_frames,
        max_seconds=args.max_seconds,
        max_value_chars=args.max_value_chars,
        object_state=args.object_state,
        # A loop is told from all its frames.
        calls_only=args.calls_only and args.loop_budget is None,
        max_depth=args.max_depth if args.loop_budget is None else None,
    )
    output = args.output or Path(args.file).with_suffix(".cwmtrace").name
    target = _new_file(output)
    interrupted = False
    with redirect_stdout(sys.stdout), redirect_stderr(sys.stderr):  # a program may leave others in their place
        try:
            if args.call is None:
                recorder.record_file(args.file, args.program_args)
            else:
                _record_call(recorder, args.file, _program(args.file, args.call), args.call, args.program_args)
        except KeyboardInterrupt:
            interrupted = True
    if recorder.last is None:
        raise KeyboardInterrupt
    trace = recorder.last.coarsen(
        calls_only=args.calls_only,
        max_depth=args.max_depth,
        loop_budget=args.loop_budget,
        changes_only=args.changes_only,
    )
    if target.suffix == STORE:
        with TraceWriter(target, append=True) as writer:
            writer.add(trace, source=args.file)
    else:
        trace.save(target)
    if args.text:
        _print(trace.to_text())
    _say(args, f"{output}: {_summary(trace)}" + (", interrupted" if interrupted else ""))
    return INTERRUPTED if interrupted else OK


def _scope(args: argparse.Namespace) -> str | list[str]:
    scope = args.scope or ["file"]
    if len(scope) == 1 and scope[0] in ("file", "package"):
        return str(scope[0])
    for path in scope:
        if not os.path.exists(path):
            raise FileNotFoundError(2, "no such file or folder to record", path)
    return list(scope)


def _record_call(recorder: Recorder, file: str, code: str, call: str, program_args: Sequence[str] = ()) -> Trace:
    """`record_source` with the arguments and the import path of a script."""
    old_argv, old_path = sys.argv, sys.path
    sys.argv, sys.path = [file, *program_args], [os.path.dirname(os.path.abspath(file)), *old_path]
    try:
        return recorder.record_source(code, call)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"{file} raised {error!r} before the call, so there is nothing to record") from error
    finally:
        sys.argv, sys.path = old_argv, old_path


def _program(file: str, call: str) -> str:
    """The text of a program that compiles, as does the call. Raises OSError and SyntaxError."""
    with tokenize.open(file) as source:
        code = source.read()
    compile(code, file, "exec", dont_inherit=True)
    compile(call, "--call", "eval", dont_inherit=True)
    return code


# ---- view


def _add_view(verbs: Any) -> None:
    parser = _verb(
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
    parser.add_argument("--start", type=_not_negative, metavar="N", help="first frame to print (default: 0)")
    parser.add_argument("--limit", type=_not_negative, metavar="N", help="most frames to print (default: all)")


def _view(args: argparse.Namespace) -> int:
    from cwm_core import view

    if args.html and (args.start is not None or args.limit is not None):
        args.error("--start and --limit are for the terminal, not for --html")
    trace = _load_trace(args.trace, args.which)
    predicted = Trace.load(args.predicted) if args.predicted else None
    if args.html:
        args.html.write_text(view.html(trace, predicted=predicted, title=args.trace.name), "utf-8")
        _say(args, f"wrote {args.html}, {len(trace):,} frames")
    else:
        _print(view.terminal(trace, predicted=predicted, start=args.start or 0, limit=args.limit))
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


# ---- import and export


def _add_import(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _import,
        "Put traces into a new store, or token ids into shards: from Parquet, JSONL and other files.",
        "cwm import traces/ more.parquet all.cwmtraces\n  cwm import ids.parquet shards --tokenizer vocabulary",
        "Into a store go Parquet and JSONL files that `cwm export` wrote, other stores, single traces and folders; a\n"
        "single trace in a folder gets its path for a key. Any other OUT is a folder of shards, into it go Parquet\n"
        "files with a column of token ids, or what is missing of them after an interruption.\n"
        "Parquet needs pyarrow: pip install 'cwm-core[parquet]'.",
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="IN", help="*.parquet, *.jsonl, *.cwmtraces, *.cwmtrace, or a folder"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="*.cwmtraces to write, or a folder of shards")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of token ids: the vocabulary they are of")
    parser.add_argument("--ids", metavar="COLUMN", default="input_ids", help="of token ids (default: input_ids)")
    parser.add_argument("--source", metavar="COLUMN", help="of token ids: the documents' source tags")


def _import(args: argparse.Namespace) -> int:
    if args.output.suffix == STORE:
        with _counter() as progress:
            count = import_traces(args.sources, args.output, progress)
        _say(args, f"{args.output}: {count:,} traces")
        return OK
    from cwm_core.data.parquet import import_parquet

    if args.tokenizer is None:
        args.error(f"--tokenizer is missing: OUT is a folder of shards unless it ends in {STORE}")
    tokenizer = _load_tokenizer(args.tokenizer)
    with _counter("rows") as show:
        progress_of_rows = (lambda done, _: show(done)) if show else None
        done = import_parquet(
            args.sources, args.output, tokenizer, ids=args.ids, source=args.source, progress=progress_of_rows
        )
    _say(args, f"{args.output}: {done.tokens:,} tokens of {done.documents:,} documents, {done.new_documents:,} new")
    return OK


def _add_export(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _export,
        "Write the traces of a store, or shards, to a file that other tools read.",
        "cwm export all.cwmtraces all.parquet\n  cwm export shards/traces traces_document.idx --drop-masks",
        "Traces go to Parquet or JSONL, and come back by `cwm import`: a row holds key, source, licence, outcome,\n"
        "frames, context, text, metadata, and the trace itself, lossless. Shards go to Megatron's indexed dataset,\n"
        "OUT.idx and OUT.bin, which has no place for sources, spans and masks.\n"
        "Parquet needs pyarrow: pip install 'cwm-core[parquet]'.",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="*.cwmtraces, or a folder of shards")
    parser.add_argument("output", type=Path, metavar="OUT", help="*.parquet, *.jsonl or *.idx; never overwritten")
    parser.add_argument("--drop-masks", action="store_true", help="to *.idx: let all tokens be learned")


def _export(args: argparse.Namespace) -> int:
    if args.output.suffix == ".idx":
        from cwm_core.data import megatron

        count = megatron.write(args.output.with_suffix(""), Shards(args.input), drop_masks=args.drop_masks)
        _say(args, f"{args.output}: {count:,} documents")
        return OK
    with _counter() as progress:
        count = export_traces(args.input, args.output, progress)
    _say(args, f"{args.output}: {count:,} traces")
    return OK


@contextmanager
def _counter(unit: str = "traces") -> Iterator[Callable[[int], None] | None]:
    """What shows how many traces are done, or of another unit, where a person looks on."""
    if not sys.stderr.isatty():
        yield None
        return
    shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            print(f"\r{done:,} {unit}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


# ---- tokenize


def _add_tokenize(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _tokenize,
        "Turn stored traces into a folder of token shards, ready for training.",
        "cwm tokenize traces/ --tokenizer vocabulary --train-vocab 4096 -o shards",
        "Everything after a trace's first frame carries loss: what stands before it is the prompt of a prediction.\n"
        "A document's source is that of its metadata in a store, else the name of the folder that its trace lies in.",
    )
    parser.add_argument(
        "traces", nargs="+", type=Path, metavar="TRACES", help="traces, stores of traces, and folders of both"
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="vocabulary: a folder with tokenizer.json, or a tiktoken rank file",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="SHARDS", help="folder to write shards to")
    parser.add_argument(
        "--train-vocab",
        type=_positive,
        metavar="N",
        help="first learn a vocabulary of N ordinary tokens (256 special ones are added) and save it to FOLDER",
    )
    parser.add_argument(
        "--pattern",
        metavar="PATTERN",
        help="how --train-vocab splits text: llama3 (the default), gpt2, or a regular expression",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on behind the shards that an interrupted run over the same traces left",
    )


def _tokenize(args: argparse.Namespace) -> int:
    from cwm_core.training.traces import encode_for_training, training_texts

    if args.pattern and not args.train_vocab:
        args.error("--pattern is for --train-vocab; a stored vocabulary has its own")
    files = list(trace_files(args.traces))
    if args.train_vocab:
        if args.tokenizer.is_file() or (args.tokenizer / "tokenizer.json").exists():
            raise ValueError(f"{args.tokenizer} already holds a vocabulary; leave out --train-vocab to use it")
        texts = (text for file in files for entry in read_traces(file) for text in training_texts(entry.trace))
        tokenizer = Tokenizer.train(
            texts, args.train_vocab, pattern=_PATTERNS.get(args.pattern or "llama3", args.pattern)
        )
        tokenizer.save(args.tokenizer)
        _say(args, f"{args.tokenizer}: {tokenizer.vocab_size:,} tokens, special ones included")
    else:
        tokenizer = _load_tokenizer(args.tokenizer)
    entries = ((file, entry) for file in files for entry in read_traces(file))
    with ShardWriter(args.output, tokenizer, append=args.resume) as writer, _counter() as progress:
        for file, entry in islice(entries, writer.documents, None):
            ids, loss_mask, spans = encode_for_training(tokenizer, entry.trace)
            source = entry.metadata.get("source")
            writer.add(ids, loss_mask, source if isinstance(source, str) else file.resolve().parent.name, spans)
            if progress:
                progress(writer.documents)
    shards = Shards(args.output)
    _say(args, f"{args.output}: {shards.tokens:,} tokens of {len(shards):,} traces")
    return OK


# ---- pack and inspect


def _add_pack(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _pack,
        "Say what a training run would get from shards: lengths, sources, and how well rows fill.",
        "cwm pack shards/traces shards/code --seq-len 8192 --batch-size 16",
        "Plans one epoch of all shards from the lengths of their documents; reads no tokens and writes nothing.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders of shards")
    parser.add_argument("--seq-len", required=True, type=_positive, metavar="N", help="tokens in a row")
    parser.add_argument("--batch-size", type=_positive, default=1, metavar="N", help="rows in a step (default: 1)")
    parser.add_argument(
        "--packing", choices=["best_fit", "stream"], default="best_fit", help="how documents lie in rows"
    )
    parser.add_argument(
        "--lookahead", type=_positive, default=32_768, metavar="N", help="documents packed together (default: 32768)"
    )
    parser.add_argument(
        "--seed", type=_not_negative, default=0, metavar="N", help="of the documents' order (default: 0)"
    )


def _pack(args: argparse.Namespace) -> int:
    from cwm_core.data.report import packing

    options = {name: getattr(args, name) for name in ("batch_size", "packing", "lookahead", "seed")}
    with _counter("steps") as progress:
        for line in packing(args.shards, args.seq_len, progress=progress, **options):
            _print(line + "\n")
    return OK


def _add_inspect(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _inspect,
        "Show what shards hold: lengths, sources, what is learned, and some documents.",
        "cwm inspect shards/traces --tokenizer vocabulary --samples 3",
    )
    parser.add_argument("shards", nargs="+", type=Path, metavar="SHARDS", help="folders of shards")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="vocabulary to decode documents with")
    parser.add_argument("--samples", type=_not_negative, default=3, metavar="N", help="documents to show (default: 3)")
    parser.add_argument("--seed", type=_not_negative, default=0, metavar="N", help="of their choice (default: 0)")
    parser.add_argument("--verify", action="store_true", help="first check every byte of the shards")


def _inspect(args: argparse.Namespace) -> int:
    from cwm_core.data.report import inspect

    tokenizer = _load_tokenizer(args.tokenizer) if args.tokenizer else None
    for folder in args.shards:
        if args.verify:
            Shards(folder).verify()
            _say(args, f"{folder}: every byte is as it was written")
        for line in inspect(folder, tokenizer, args.samples, args.seed):
            _print(line + "\n")
    return OK


# ---- train


def _add_train(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _train,
        "Train a model as a TOML file describes, going on from its last checkpoint if there is one.",
        "cwm train configs/tiny.toml --set training.max_steps=200 --set output=runs/short",
        "Ctrl-C ends the run after the current step, with a checkpoint; the same command goes on from there.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run; docs/command-line.md lists its keys")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the file; may be repeated"
    )


def _train(args: argparse.Namespace) -> int:
    from cwm_core.training.run import RunConfig, run, show_progress

    config = RunConfig.from_toml(args.config, args.set)
    with show_progress() as on_step:
        reason = run(config, on_step)
    if reason == "signal":
        _say(args, f"interrupted; the same command goes on from the checkpoint in {config.output}")
        return INTERRUPTED
    _say(args, f"{config.output}: the model and its vocabulary")
    return OK


# ---- predict


def _add_predict(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _predict,
        "Predict the execution of a call with a model, without running the program.",
        "cwm predict runs/tiny sort.py --call 'bubble_sort([3, 1, 2])' --verify",
        "With --verify the program is also run and recorded, in this process and unprotected, to show where the\n"
        "prediction differs and how it scores; the program's output then goes to standard error.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model with its tokenizer.json")
    parser.add_argument("file", metavar="FILE", help="the program")
    parser.add_argument("--call", required=True, metavar="EXPR", help="expression to predict, in FILE's names")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="write the predicted trace, for `cwm view`")
    parser.add_argument(
        "--max-new-tokens", type=_positive, default=4096, metavar="N", help="stop after N tokens (default: 4096)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where to compute, as cuda (default: cpu)")
    parser.add_argument("--verify", action="store_true", help="RUN FILE's code here, unprotected, and compare")


def _predict(args: argparse.Namespace) -> int:
    from cwm_core import evaluation, inference, view

    code = _program(args.file, args.call)
    target = _new_file(args.output) if args.output else None
    engine = _load_engine(args.model, args.device)
    real = _run_for_real(args, code) if args.verify else None
    prediction = inference.predict_trace(engine, code, args.call, max_new_tokens=args.max_new_tokens)
    # As a whole trace, with what stood in the prompt, which is how it is stored and shown.
    prompt = inference.trace_prompt(engine.tokenizer, code, args.call)
    whole = engine.tokenizer.parse_trace(np.concatenate([prompt, prediction.ids]))
    if target:
        whole.trace.save(target)
    if real is None:
        _print(view.terminal(whole.trace))
    else:
        _print(view.terminal(real, predicted=whole))
        scores = asdict(evaluation.score_trace(real, prediction.parsed))
        for name, score in scores.items():
            _print(f"{name:<12} {'-' if score is None else f'{score:.3f}'}\n")
    _print(_verdict(prediction.parsed, args.max_new_tokens, len(prediction.ids)) + "\n")
    return OK


def _run_for_real(args: argparse.Namespace, code: str) -> Trace:
    # A frame takes several tokens: no prediction can reach further than this.
    recorder = Recorder(max_frames=args.max_new_tokens)
    with redirect_stdout(sys.stderr), redirect_stderr(sys.stderr):
        return _record_call(recorder, args.file, code, args.call)


def _load_engine(folder: Path, device: str) -> Engine:
    from safetensors import SafetensorError

    from cwm_core import inference, model

    tokenizer = _load_tokenizer(folder)
    try:
        return inference.Engine(model.load(folder, device=device), tokenizer)
    except (SafetensorError, RuntimeError, AssertionError) as error:  # RuntimeError: PyTorch has no such device
        raise ValueError(f"{folder}: {error}") from None


def _verdict(parsed: ParsedTrace, limit: int, tokens: int) -> str:
    if parsed.complete:
        return f"The prediction is complete: {len(parsed.frames):,} frames, {tokens:,} tokens."
    if tokens >= limit:
        return f"The prediction did not end within {limit:,} tokens; {len(parsed.frames):,} whole frames were parsed."
    reason = parsed.error or "it ends between two frames"
    return f"The prediction breaks the form after {len(parsed.frames):,} frames: {reason}."


# ---- demo


def _add_demo(verbs: Any) -> None:
    parser = _verb(
        verbs,
        _demo,
        "Go the whole way in little: record, tokenize, pack, train, predict and score.",
        "cwm demo --short --out demo",
    )
    parser.add_argument(
        "--out", default="cwm-demo", metavar="DIR", help="folder for what it writes (default: cwm-demo)"
    )
    parser.add_argument("--short", action="store_true", help="the same in about a minute, with worse scores")


def _demo(args: argparse.Namespace) -> int:
    from cwm_core import demo

    return demo.main(["--out", args.out, *(["--short"] if args.short else [])])


# ---- shared


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.load(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _new_file(path: str | Path) -> Path:
    """The absolute path, checked before the work whose result it is to hold; the program may change the folder."""
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "no such folder to write to", str(target.parent))
    return target


def _summary(trace: Trace) -> str:
    """One line on a trace, fit for a terminal."""
    from cwm_core import view

    return view.terminal(trace, limit=0, color=False).splitlines()[0]


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {error.name}: pip install 'cwm-core[{_EXTRAS[str(error.name)]}]'"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _say(args: argparse.Namespace, text: str) -> None:
    print(f"cwm {args.verb}: {text}", file=sys.stderr)


def _print(text: str) -> None:
    """Write to standard output, what its encoding lacks as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _loop_budget(text: str) -> tuple[int, int]:
    first, comma, last = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST,LAST")
    return _not_negative(first), _positive(last)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
