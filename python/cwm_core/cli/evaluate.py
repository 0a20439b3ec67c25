"""`cwm eval`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import fingerprint, load_engine, named_tokenizer
from .options import INTERRUPTED, OK, add_cache, add_tokenizer, add_verb, machines, not_negative, positive, say, seconds

if TYPE_CHECKING:
    from cwm_core.evaluation import Report

TASKS = {
    "traces": "Predict executions and score them against real ones.",
    "output": "Predict what calls return.",
    "input": "Find arguments with which programs return given values.",
    "termination": "Tell whether calls end within a number of steps.",
}


def add_eval(verbs: Any) -> None:
    """Add `cwm eval`."""
    parser = add_verb(
        verbs,
        _eval,
        "Evaluate a model on a file of programs: executions, outputs, inputs, termination; and patches on tasks.",
        "cwm eval traces runs/tiny problems.jsonl -o results/traces",
        "FILE has a JSON object a line: `code` that defines f, `input` for its arguments, `output` for the repr of\n"
        "its result. Programs and what the model writes run only in a sandbox. Ctrl-C keeps what is done; the same\n"
        "command goes on. docs/guides/evaluate.md says what is measured.",
    )
    tasks = parser.add_subparsers(title="what to evaluate", dest="task", metavar="TASK", required=True)
    for task, purpose in TASKS.items():
        _add_task(tasks, task, purpose)
    _add_swe(tasks)


def _add_swe(tasks: Any) -> None:
    purpose = "Tell how many tasks of software engineering predicted patches resolve."
    parser = tasks.add_parser("swe", help=purpose, description=purpose)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="patches as SWE-bench has them, *.jsonl")
    parser.add_argument("file", type=Path, metavar="TASKS", help="rows of SWE-bench, or tasks of foraging, *.jsonl")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument(
        "--by", choices=("auto", "harness", "machines"), default="auto",
        help="SWE-bench's own harness, or our tests in machines (default: the harness where it can run)",
    )  # fmt: skip
    parser.add_argument(
        "--sandbox", choices=("bubblewrap", "docker", "process"), default="bubblewrap",
        help="for --by machines; 'process' does not isolate: for patches that you trust (default: bubblewrap)",
    )  # fmt: skip
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="tasks at a time (default: 1)")
    parser.add_argument("--max-seconds", type=seconds, default=1800.0, metavar="S", help="of a task (default: 1800)")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="of the bootstrap (default: 0)")
    parser.set_defaults(run=_eval_swe)


def _add_task(tasks: Any, task: str, purpose: str) -> None:
    parser = tasks.add_parser(task, help=purpose, description=purpose)
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model")
    parser.add_argument("file", type=Path, metavar="FILE", help="the problems, *.jsonl")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="folder for the results")
    add_tokenizer(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N problems")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="of all that is drawn (default: 0)")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="problems at a time (default: 64)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where to compute, as cuda (default: cpu)")
    add_cache(parser)
    tokens = 32768 if task == "termination" else 4096
    parser.add_argument(
        "--max-new-tokens", type=positive, default=tokens, metavar="N", help=f"of an answer (default: {tokens})"
    )
    if task in ("traces", "termination"):
        parser.add_argument(
            "--max-frames", type=positive, default=2000, metavar="N", help="steps of a program (default: 2000)"
        )
    if task == "traces":
        parser.add_argument(
            "--cruxeval", action="store_true", help="FILE is CruxEval's: show the published scores of CWM 32B beside"
        )
    if task in ("output", "termination"):
        default = "direct" if task == "output" else "trace"
        parser.add_argument(
            "--how", choices=("trace", "direct"), default=default, help=f"by a trace or by asking (default: {default})"
        )
    if task in ("output", "input"):
        parser.add_argument("--style", choices=("completion", "chat", "reasoning"), default="completion")
        parser.add_argument("--samples", type=positive, default=1, metavar="N", help="answers a problem, for pass@k")
        parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the most likely token")
        parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the most likely ones")
    if task != "traces":
        parser.add_argument("--template", type=Path, metavar="FILE", help="ask in these words instead of ours")
    if task != "output":
        parser.add_argument(
            "--sandbox", choices=("bubblewrap", "process"), default="bubblewrap",
            help="'process' only limits programs and does not isolate: for those you trust",
        )  # fmt: skip
        parser.add_argument("--max-seconds", type=seconds, default=10.0, metavar="S", help="of a program (default: 10)")


def _eval(args: argparse.Namespace) -> int:
    from cwm_core import evaluation
    from cwm_core.machines import SandboxError

    required = () if args.task in ("traces", "termination") else ("output",)
    problems = evaluation.read_problems(args.file, limit=args.limit, required=required)
    engine = load_engine(args.model, args.device, args.tokenizer, cache_bytes=(args.cache_gib or 0) << 30 or None)
    engine.max_batch = args.batch_size
    evaluate: Callable[..., Report] = getattr(evaluation, f"evaluate_{args.task}")
    try:
        with _bar() as progress:
            report = evaluate(
                engine,
                problems,
                folder=args.output,
                progress=progress,
                settings={"model": str(args.model), "weights": fingerprint(engine), **named_tokenizer(args)},
                **_options(args),
            )
    except KeyboardInterrupt:
        say(args, f"interrupted; the same command goes on from the results in {args.output}")
        return INTERRUPTED
    except SandboxError as error:
        raise ValueError(str(error)) from None
    return _finish(args, report)


def _eval_swe(args: argparse.Namespace) -> int:
    from cwm_core import evaluation

    predictions = evaluation.read_predictions(args.predictions)
    backend = machines(args.sandbox)
    try:
        with _bar() as progress:
            report = evaluation.evaluate_swe(
                args.file,
                predictions,
                by=args.by,
                folder=args.output,
                backend=backend,
                workers=args.workers,
                seconds=args.max_seconds,
                seed=args.seed,
                progress=progress,
                settings={"machines": args.sandbox},
            )
    except KeyboardInterrupt:
        say(args, f"interrupted; the same command goes on from the results in {args.output}")
        return INTERRUPTED
    return _finish(args, report)


def _finish(args: argparse.Namespace, report: Report) -> int:
    report.save(args.output / "report.json")
    _show(report)
    say(args, f"{args.output}: report.json, with every problem's result")
    return OK


def _options(args: argparse.Namespace) -> dict[str, Any]:
    # What a task does not have, its evaluation does not take.
    names = (
        "seed", "max_new_tokens", "max_frames", "cruxeval", "how", "style", "samples", "temperature", "top_p",
        "template",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names if hasattr(args, name)} | {"batch": args.batch_size}
    if hasattr(args, "sandbox"):
        from cwm_core.evaluation import DEFAULT_LIMITS

        cpu_seconds = max(int(args.max_seconds), 1)
        options["limits"] = dataclasses.replace(DEFAULT_LIMITS, seconds=args.max_seconds, cpu_seconds=cpu_seconds)
        options["sandbox"] = args.sandbox
    return options


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error, where a person looks on."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("measure", box=None)
    for heading in ("value", "95 % interval", "by", "problems"):
        table.add_column(heading, justify="right")
    has_published = any(measure.published is not None for measure in report.measures)
    if has_published:
        table.add_column("published", justify="right")
    for measure in report.measures:
        text = _number if measure.name.endswith("tokens") else _percent
        interval = "-" if measure.low is None else f"{text(measure.low)} to {text(measure.high)}"
        row = [measure.name, text(measure.value), interval, measure.interval, f"{measure.n:,}"]
        table.add_row(*row, *([text(measure.published)] if has_published else []))
    console.print(table)
    if has_published:
        console.print("published: CWM 32B on CruxEval, arXiv 2510.02387", markup=False)
    left_out = sum(report.left_out.values())
    console.print(f"{report.problems:,} problems, {left_out:,} left out", markup=False)
    for reason, count in report.left_out.items():
        console.print(f"  {count:,} x {reason}", markup=False)
    if report.confusion:
        confusion = Table("really \\ predicted", *next(iter(report.confusion.values())), box=None)
        for truth, said in report.confusion.items():
            confusion.add_row(truth, *map(str, said.values()))
        console.print(confusion)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
