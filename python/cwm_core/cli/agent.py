"""`cwm agent`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..support import secrets
from ..support.files import write_file
from .options import (
    FAILED,
    INTERRUPTED,
    OK,
    add_json,
    add_tokenizer,
    add_verb,
    machines,
    not_negative,
    positive,
    say,
    seconds,
    shows_progress,
    warn,
    write,
)

if TYPE_CHECKING:
    from cwm_core.environments import Agent, Budget, Trajectory


def add_agent(verbs: Any) -> None:
    """Add `cwm agent`."""
    parser = add_verb(
        verbs,
        _agent,
        "Let an agent work on a file of tasks, several at a time, and keep every trajectory and its reward.",
        "cwm agent tasks.jsonl --agent engine --model runs/tiny -o rollouts --workers 8",
        "The agent is a script (by default each task's known solution), a model on the built-in engine, or a model\n"
        "behind an OpenAI-compatible endpoint. What it runs, runs in a sandbox. Ctrl-C keeps what is done; the same\n"
        "command goes on. `cwm tokenize` turns the trajectories into training data. docs/guides/rollouts.md says more.",
    )
    parser.add_argument("tasks", type=Path, metavar="TASKS", help="the tasks, *.jsonl")
    parser.add_argument("--agent", required=True, choices=("script", "engine", "endpoint"), help="what acts")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder for the trajectories")
    parser.add_argument("--samples", type=positive, default=1, metavar="N", help="rollouts of each task (default: 1)")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="of all that is drawn (default: 0)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N tasks")
    parser.add_argument("--workers", type=positive, metavar="N", help="rollouts at a time (default: one a processor)")
    parser.add_argument("--ray", action="store_true", help="run the environments on a Ray cluster; see RAY_ADDRESS")
    parser.add_argument(
        "--sandbox", choices=("bubblewrap", "docker", "process"), default="bubblewrap",
        help="where commands run; 'process' only limits them and does not isolate: for agents you trust",
    )  # fmt: skip
    parser.add_argument("--image", metavar="IMAGE", help="of containers, for tasks that name none (with docker)")
    parser.add_argument("--retry-failed", action="store_true", help="make rollouts again that failed")
    add_json(parser)
    _add_budget(parser)
    script = parser.add_argument_group("a script")
    script.add_argument("--script", type=Path, metavar="FILE", help="JSON: by task's name, the list of actions")
    model = parser.add_argument_group("a model")
    model.add_argument("--model", metavar="MODEL", help="engine: its folder; endpoint: what the endpoint calls it")
    add_tokenizer(model)
    model.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: 1)")
    model.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the most likely tokens")
    model.add_argument("--reasoning", action="store_true", help="ask for reasoning before every action")
    model.add_argument("--device", default="cpu", metavar="DEVICE", help="engine: where to compute (default: cpu)")
    endpoint = parser.add_argument_group("an endpoint")
    endpoint.add_argument("--endpoint", metavar="URL", help="as http://127.0.0.1:8000/v1")
    endpoint.add_argument(
        "--key-variable", default="CWM_API_KEY", metavar="NAME", help="variable with the key (default: CWM_API_KEY)"
    )
    endpoint.add_argument(
        "--tool-role", choices=("user", "tool"), default="user", help="role of observations; tool for `cwm serve`"
    )
    endpoint.add_argument(
        "--field", action="append", default=[], metavar="NAME=JSON", help="more of each request; may be repeated"
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    from cwm_core.environments import Budget

    group = parser.add_argument_group("the budget of a rollout")
    for field in fields(Budget):
        kind: Callable[[str], Any] = seconds if "seconds" in field.name else positive
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, type=kind, default=field.default, metavar="N", help=f"default: {field.default:,}")


def _agent(args: argparse.Namespace) -> int:
    from cwm_core.environments import (
        TrajectoryReader,
        read_tasks,
        rollouts,
        summarize,
        system_prompt,
        trajectories,
    )

    tasks = list(islice(read_tasks(args.tasks), args.limit))
    if not tasks:
        raise ValueError(f"{args.tasks}: expected at least one task, found none")
    budget = _budget(args)
    agent = _make_agent(args)
    secrets.conceal()  # from what the agent runs
    file = args.output / rollouts.FILE
    if args.retry_failed and file.exists():
        say(args, f"{trajectories.drop_failed(file):,} rollouts that failed are made again")
    try:
        with _bar(args) as progress:
            rollouts.run_rollouts(
                tasks,
                agent,
                args.output,
                samples=args.samples,
                seed=args.seed,
                budget=budget,
                backend=machines(args.sandbox, args.image),
                workers=args.workers,
                ray=args.ray,
                system=system_prompt(reasoning=args.reasoning),
                settings={"backend": args.sandbox},
                progress=progress,
            )
    except KeyboardInterrupt:
        warn(args, f"interrupted; the same command goes on from the trajectories in {args.output}")
        return INTERRUPTED
    summary = summarize(TrajectoryReader(file))
    text = json.dumps(summary, indent=1) + "\n"
    write_file(args.output / "summary.json", text)
    if args.json:
        write(text)
    else:
        _show(summary)
    say(args, f"{file}: {summary['rollouts']:,} trajectories")
    if summary["failed"] == summary["rollouts"]:
        warn(
            args,
            f"every rollout failed, first with: {next(iter(summary['failures']))}; --retry-failed tries them again",
        )
        return FAILED
    return OK


def _budget(args: argparse.Namespace) -> Budget:
    from cwm_core.environments import Budget

    return Budget(**{field.name: getattr(args, field.name) for field in fields(Budget)})


def _make_agent(args: argparse.Namespace) -> Agent:
    from cwm_core import environments

    if args.agent == "script":
        script = environments.solution_actions if args.script is None else _script(args.script)
        return environments.ScriptedAgent(script)
    if args.model is None:
        args.error(f"--agent {args.agent} needs --model")
    if args.agent == "engine":
        return _engine_agent(args)
    if args.endpoint is None:
        args.error("--agent endpoint needs --endpoint")
    sampling = {"temperature": args.temperature, "top_p": args.top_p}
    reasoning = {"reasoning_effort": "medium"} if args.reasoning else {}
    return environments.EndpointAgent(
        args.endpoint,
        args.model,
        key_variable=args.key_variable,
        fields={**sampling, **reasoning, **dict(map(_field, args.field))},
        tool_role=args.tool_role,
    )


def _engine_agent(args: argparse.Namespace) -> Agent:
    from cwm_core import environments

    from .models import fingerprint, load_engine, named_tokenizer

    engine = load_engine(Path(args.model), args.device, args.tokenizer, keep_prefixes=True)
    settings = {"model": args.model, "weights": fingerprint(engine), **named_tokenizer(args)}
    return environments.EngineAgent(
        engine, temperature=args.temperature, top_p=args.top_p, reasoning=args.reasoning, settings=settings
    )


def _script(path: Path) -> dict[str, list[str]]:
    try:
        script = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(script, dict) or not all(
        isinstance(actions, list) and all(isinstance(action, str) for action in actions) for actions in script.values()
    ):
        raise ValueError(f"{path}: this is no JSON object of lists of texts")
    return script


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise ValueError(f"--field {text}: what follows the = is no JSON") from None


@contextmanager
def _bar(args: argparse.Namespace) -> Iterator[Callable[[int, int, Trajectory | None], None] | None]:
    """A progress bar on standard error, where a person looks on."""
    if not shows_progress(args):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    solved = failed = 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, newest: Trajectory | None) -> None:
            nonlocal solved, failed
            if newest is not None:
                solved += newest.solved
                failed += newest.failure is not None
            bar.update(task, completed=done, total=total, description=f"{solved:,} solved, {failed:,} failed")

        yield show


def _show(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("", "count", box=None, show_header=False)
    table.columns[1].justify = "right"
    table.add_row("rollouts", f"{summary['rollouts']:,}")
    table.add_row("solved", f"{summary['solved']:,}")
    table.add_row("tasks", f"{summary['tasks']:,}")
    table.add_row("tasks solved", f"{summary['tasks_solved']:,}")
    for name, form in (("reward", ".3f"), ("turns", ",.1f"), ("tokens", ",.0f"), ("seconds", ",.2f")):
        value = summary[name]
        table.add_row(f"mean {name}", "-" if value is None else format(value, form))
    console.print(table)
    for title in ("ends", "reasons", "failures"):
        for reason, count in summary[title].items():
            console.print(f"{title.removesuffix('s'):<8} {count:>7,} x {reason}", markup=False)
