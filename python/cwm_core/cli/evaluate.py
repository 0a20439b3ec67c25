"""Implement `cwm eval`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..support.imports import import_object
from .models import chosen_model, fingerprint, load_engine, named_tokenizer
from .options import (
    INTERRUPTED,
    OK,
    add_cache,
    add_json,
    add_model,
    add_tokenizer,
    add_verb,
    machines,
    not_negative,
    positive,
    say,
    seconds,
    share,
    shows_progress,
    temperature,
    warn,
    write,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cwm_core.evaluation import Report
    from cwm_core.inference import Engine

TASKS = {
    "traces": "Predict executions, and score them against real ones.",
    "output": "Predict the return values of calls.",
    "input": "Predict arguments with which programs return given values.",
    "termination": "Predict whether calls end within a number of frames.",
}


def add_eval(verbs: Any) -> None:
    """Add `cwm eval`."""
    parser = add_verb(
        verbs,
        _eval,
        "Evaluate a model on a file of programs, or patches on software engineering tasks.",
        "cwm eval traces runs/tiny problems.jsonl -o results/traces",
        "FILE has one JSON object per line: `code` that defines f, `input` with the arguments of f, and `output`, the\n"
        "repr of the result. Programs and the model's output run only in a sandbox. Ctrl-C keeps finished results;\n"
        "repeat the command to resume. docs/guides/evaluate.md describes the measures.",
    )
    tasks = parser.add_subparsers(title="what to evaluate", dest="task", metavar="TASK", required=True)
    for task, purpose in TASKS.items():
        _add_task(tasks, task, purpose)
    _add_recordings(tasks)
    _add_failures(tasks)
    _add_custom(tasks)
    _add_swe(tasks)


def _add_recordings(tasks: Any) -> None:
    purpose = "Predict executions that are recorded already, and score them by store and by length."
    parser = tasks.add_parser(
        "recordings",
        help=purpose,
        description=f"{purpose} FILE is a trace store, or a folder of them such as DIR/held-out of "
        "`cwm corpus programs`. Nothing runs.",
    )
    _add_stores(parser)
    parser.set_defaults(run=_eval_recordings)


def _add_failures(tasks: Any) -> None:
    purpose = "Show where predictions diverge from executions: an HTML report with plots and the worst cases."
    parser = tasks.add_parser(
        "failures",
        help=purpose,
        description=f"{purpose} FILE is a trace store, or a folder of them. The report has the first divergences by "
        "cause, the accuracy by distance from the start, and two probes: tracking a permutation, and nested functions "
        "of strings. It needs the extra plots.",
    )
    _add_stores(parser)
    parser.set_defaults(run=_eval_failures)


def _add_stores(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the tasks that predict recorded executions."""
    _add_model(parser, "trace store, *.cwmtraces, or a folder of them", "first N traces of each store or probe")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=4096, metavar="N", help="tokens of a prediction (default: 4096)"
    )


def _add_custom(tasks: Any) -> None:
    purpose = "Evaluate a model with a function of your own."
    parser = tasks.add_parser(
        "run",
        help=purpose,
        description=f"{purpose}\n\n"
        "FUNCTION takes an engine, a list of problems and a seed. For each problem it returns a dict of scores, or a\n"
        "string with the reason that the problem is left out. See docs/guides/evaluate.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="import path of the function")
    _add_model(parser)
    parser.set_defaults(run=_eval_custom)


def _add_swe(tasks: Any) -> None:
    purpose = "Evaluate patches on software engineering tasks."
    parser = tasks.add_parser("swe", help=purpose, description=purpose)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="patches in SWE-bench's format, *.jsonl")
    parser.add_argument("file", type=Path, metavar="TASKS", help="rows of SWE-bench or foraged tasks, *.jsonl")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument(
        "--by", choices=("auto", "harness", "machines"), default="auto",
        help="run SWE-bench's harness, or the tests in machines of cwm-core (default: the harness if it can run)",
    )  # fmt: skip
    parser.add_argument(
        "--sandbox", choices=("bubblewrap", "docker", "process"), default="bubblewrap",
        help="isolation with --by machines; 'process' provides no isolation: use it only for trusted patches "
        "(default: bubblewrap)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="number of parallel tasks (default: 1)"
    )
    parser.add_argument(
        "--max-seconds", type=seconds, default=1800.0, metavar="S", help="time limit of a task (default: 1800)"
    )
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    add_json(parser)
    parser.set_defaults(run=_eval_swe)


def _add_model(
    parser: argparse.ArgumentParser, file: str = "problems, *.jsonl", first: str = "first N problems"
) -> None:
    """Add the arguments of all tasks that evaluate a model.

    Args:
        parser: Parser of the task.
        file: Help of FILE.
        first: The problems that `--limit N` selects.
    """
    add_model(parser)
    parser.add_argument("file", type=Path, metavar="FILE", help=file)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="folder for the results")
    add_tokenizer(parser)
    add_json(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help=f"evaluate only the {first}")
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed of all random choices (default: 0)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="problems to predict together (default: 64)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="PyTorch device, such as cuda (default: cpu)")
    add_cache(parser)


def _add_task(tasks: Any, task: str, purpose: str) -> None:
    parser = tasks.add_parser(task, help=purpose, description=purpose)
    _add_model(parser)
    tokens = 32768 if task == "termination" else 4096
    parser.add_argument(
        "--max-new-tokens", type=positive, default=tokens, metavar="N", help=f"tokens of an answer (default: {tokens})"
    )
    if task in ("traces", "termination"):
        parser.add_argument(
            "--max-frames", type=positive, default=2000, metavar="N", help="maximum frames of a program (default: 2000)"
        )
    if task == "traces":
        parser.add_argument(
            "--cruxeval", action="store_true", help="show the published scores of CWM 32B; FILE must be CruxEval's"
        )
    if task in ("output", "termination"):
        default = "direct" if task == "output" else "trace"
        parser.add_argument(
            "--how", choices=("trace", "direct"), default=default,
            help=f"predict a trace, or ask a question (default: {default})",
        )  # fmt: skip
    if task in ("output", "input"):
        parser.add_argument(
            "--style", choices=("completion", "chat", "reasoning"), default="completion",
            help="form of the question (default: completion)",
        )  # fmt: skip
        parser.add_argument(
            "--samples", type=positive, default=1, metavar="N", help="answers to each problem, for pass@k (default: 1)"
        )
        parser.add_argument(
            "--temperature", type=temperature, default=0.0, metavar="T",
            help="sampling temperature; 0 takes the most likely token (default)",
        )  # fmt: skip
        parser.add_argument(
            "--top-p", type=share, default=1.0, metavar="P",
            help="nucleus sampling threshold (default: 1)",
        )  # fmt: skip
    if task != "traces":
        parser.add_argument(
            "--template", type=Path, metavar="FILE", help="file with the question, instead of the built-in one"
        )
    if task != "output":
        parser.add_argument(
            "--sandbox", choices=("bubblewrap", "process"), default="bubblewrap",
            help="isolation of programs; 'process' provides no isolation: use it only for trusted ones "
            "(default: bubblewrap)",
        )  # fmt: skip
        parser.add_argument(
            "--max-seconds", type=seconds, default=10.0, metavar="S", help="time limit of a program (default: 10)"
        )


def _eval(args: argparse.Namespace) -> int:
    from cwm_core import evaluation

    required = () if args.task in ("traces", "termination") else ("output",)
    evaluate: Callable[..., Report] = getattr(evaluation, f"evaluate_{args.task}")
    return _evaluate(args, evaluate, evaluation.read_problems(args.file, limit=args.limit, required=required))


def _eval_recordings(args: argparse.Namespace) -> int:
    from cwm_core import evaluation

    recordings = evaluation.read_recordings(args.file, limit=args.limit)
    return _evaluate(args, evaluation.evaluate_recordings, recordings)


def _eval_failures(args: argparse.Namespace) -> int:
    import matplotlib  # noqa: F401  # fail before the predictions

    from cwm_core import evaluation
    from cwm_core.evaluation.failures import PROBES
    from cwm_core.evaluation.failures_page import DATA, REPORT, write_failures

    recordings = evaluation.read_recordings(args.file, limit=args.limit)
    engine = _load_engine(args)
    try:
        with _bar(args) as progress:
            report = evaluation.analyze_failures(
                engine,
                recordings,
                folder=args.output,
                probes=min(args.limit or PROBES, PROBES),
                progress=progress,
                settings=_model_settings(args, engine),
                **_options(args),
            )
    except KeyboardInterrupt:
        return _interrupted(args)
    write_failures(report, args.output)
    if args.json:
        write((args.output / DATA).read_text("utf-8"))
    else:
        for cause, number in report.causes.items():
            write(f"{cause:<18}{number:>7,}\n")
    say(args, f"wrote {args.output / REPORT}")
    return OK


def _eval_custom(args: argparse.Namespace) -> int:
    from cwm_core import evaluation

    task: evaluation.EvaluationTask = import_object(args.function)
    if not callable(task):
        raise ValueError(f"{args.function}: expected a function, got {type(task).__name__}")
    evaluate = functools.partial(evaluation.evaluate_task, task=task, name=args.function)
    return _evaluate(args, evaluate, evaluation.read_problems(args.file, limit=args.limit, required=()))


def _evaluate(args: argparse.Namespace, evaluate: Callable[..., Report], problems: Sequence[Any]) -> int:
    from cwm_core.machines import SandboxError

    engine = _load_engine(args)
    try:
        with _bar(args) as progress:
            report = evaluate(
                engine,
                problems,
                folder=args.output,
                progress=progress,
                settings=_model_settings(args, engine),
                **_options(args),
            )
    except KeyboardInterrupt:
        return _interrupted(args)
    except SandboxError as error:
        raise ValueError(str(error)) from None
    return _finish(args, report)


def _load_engine(args: argparse.Namespace) -> Engine:
    cache_bytes = (args.cache_gib or 0) << 30 or None
    engine = load_engine(chosen_model(args), args.device, args.tokenizer, cache_bytes=cache_bytes)
    engine.max_batch = args.batch_size
    return engine


def _model_settings(args: argparse.Namespace, engine: Engine) -> dict[str, str]:
    """Return the settings of results that identify the model."""
    from cwm_core.model import SHIPPED_NAME

    return {"model": str(args.model or SHIPPED_NAME), "weights": fingerprint(engine), **named_tokenizer(args)}


def _interrupted(args: argparse.Namespace) -> int:
    warn(args, f"interrupted; repeat the command to resume from the results in {args.output}")
    return INTERRUPTED


def _eval_swe(args: argparse.Namespace) -> int:
    from cwm_core import evaluation

    predictions = evaluation.read_predictions(args.predictions)
    backend = machines(args.sandbox)
    try:
        with _bar(args) as progress:
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
        return _interrupted(args)
    return _finish(args, report)


def _finish(args: argparse.Namespace, report: Report) -> int:
    report.save(args.output / "report.json")
    if args.json:
        write((args.output / "report.json").read_text("utf-8"))
    elif report.task == "recordings":
        _show_groups(report)
    else:
        _show(report)
    say(args, f"wrote the result of every problem to {args.output / 'report.json'}")
    return OK


def _options(args: argparse.Namespace) -> dict[str, Any]:
    # An evaluation takes only the options that its task has on the command line.
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
def _bar(args: argparse.Namespace) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on standard error if it is a terminal."""
    if not shows_progress(args):
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
    is_own = ":" in str(report.settings.get("task"))  # a user's task, whose means can have any unit
    for measure in report.measures:
        is_count = measure.name.endswith("tokens") or (is_own and measure.interval != "wilson")
        text = _number if is_count else _percent
        interval = "-" if measure.low is None else f"{text(measure.low)} to {text(measure.high)}"
        row = [measure.name, text(measure.value), interval, measure.interval, f"{measure.n:,}"]
        table.add_row(*row, *([text(measure.published)] if has_published else []))
    console.print(table)
    if has_published:
        console.print("published: CWM 32B on CruxEval, arXiv 2510.02387", markup=False)
    _show_left_out(console, report)
    if report.confusion:
        confusion = Table("actual \\ predicted", *next(iter(report.confusion.values())), box=None)
        for truth, said in report.confusion.items():
            confusion.add_row(truth, *map(str, said.values()))
        console.print(confusion)


def _show_groups(report: Report) -> None:
    """Print a line for each group with its scores."""
    from rich.console import Console

    from cwm_core.evaluation.recordings import SCORES

    measures = {measure.name: measure for measure in report.measures}
    groups = dict.fromkeys(name.rpartition(": ")[0] for name in measures)
    width = max(map(len, groups), default=0)
    write("".join([f"{'':<{width}}  traces", *(f"{score:>20}" for score in SCORES), "\n"]))
    for group in groups:
        row = [measures[f"{group}: {score}"] for score in SCORES]
        cells = (f"{_percent(one.value)} ({_percent(one.low)}-{_percent(one.high)})" for one in row)
        write("".join([f"{group:<{width}}{row[0].n:>8,}", *(f"{cell:>20}" for cell in cells), "\n"]))
    write("Percent, with 95 % intervals.\n")
    _show_left_out(Console(highlight=False), report)


def _show_left_out(console: Console, report: Report) -> None:
    left_out = sum(report.left_out.values())
    console.print(f"{report.problems:,} problems, {left_out:,} left out", markup=False)
    for reason, count in report.left_out.items():
        console.print(f"  {count:,} x {reason}", markup=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
