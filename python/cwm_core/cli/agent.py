"""Implement `cwm agent`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..support import secrets
from ..support.files import write_file
from ..support.imports import import_object
from ..support.jsonl import loads
from .options import (
    FAILED,
    INTERRUPTED,
    MACHINES,
    OK,
    add_json,
    add_tokenizer,
    add_verb,
    extension,
    machines,
    not_negative,
    one_of_or_path,
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
    from cwm_core.environments import Agent, Budget, RolloutSummary, Trajectory


def add_agent(verbs: Any) -> None:
    """Add `cwm agent`."""
    parser = add_verb(
        verbs,
        _agent,
        "Roll out an agent on a file of tasks and save each trajectory with its reward.",
        "cwm agent tasks.jsonl --agent engine --model runs/tiny -o rollouts --workers 8",
        "The agent is a script (by default the known solution of each task), a model on the built-in engine, a model\n"
        "behind an OpenAI-compatible endpoint, or a class of your own. Its commands run in a sandbox. After Ctrl-C,\n"
        "the same command resumes. `cwm tokenize` makes training data of trajectories. See docs/guides/rollouts.md.",
    )
    add = parser.add_argument
    add("tasks", type=Path, metavar="TASKS", help="tasks, *.jsonl")
    add(
        "--agent", required=True, type=one_of_or_path("script", "engine", "endpoint"), metavar="AGENT",
        help="script, engine, endpoint, or the import path of an agent, MODULE:NAME",
    )  # fmt: skip
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="folder for the trajectories")
    add("--samples", type=positive, default=1, metavar="N", help="rollouts of each task (default: 1)")
    add("--seed", type=not_negative, default=0, metavar="N", help="seed of all sampling (default: 0)")
    add("--limit", type=positive, metavar="N", help="use only the first N tasks")
    add("--workers", type=positive, metavar="N", help="concurrent rollouts (default: the number of processors)")
    add("--ray", action="store_true", help="run the environments on the Ray cluster at RAY_ADDRESS")
    add(
        "--sandbox", type=one_of_or_path(*MACHINES), default="bubblewrap", metavar="SANDBOX",
        help="where commands run: bubblewrap (default), docker, process (limits but does not isolate: only for agents "
        "that you trust), or the import path of a machine backend, MODULE:NAME",
    )  # fmt: skip
    add("--image", metavar="IMAGE", help="container image for tasks that name none (with --sandbox docker)")
    add(
        "--tool", action="append", default=[], metavar="MODULE:NAME",
        help="add a tool: a function of a machine and a text; may be repeated",
    )  # fmt: skip
    add("--reward", metavar="MODULE:NAME", help="function that judges the submitted diff (default: the task's tests)")
    add("--retry-failed", action="store_true", help="repeat rollouts that failed")
    add_json(parser)
    _add_budget(parser)
    script = parser.add_argument_group("script")
    script.add_argument(
        "--script", type=Path, metavar="FILE", help="JSON object mapping task names to lists of actions"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="MODEL", help="folder of the model, or its name at the endpoint")
    add_tokenizer(model)
    model.add_argument(
        "--temperature", type=temperature, default=1.0, metavar="T", help="sampling temperature (default: 1)"
    )
    model.add_argument("--top-p", type=share, default=1.0, metavar="P", help="nucleus sampling threshold (default: 1)")
    model.add_argument("--reasoning", action="store_true", help="ask for reasoning before every action")
    model.add_argument("--device", default="cpu", metavar="DEVICE", help="device of the engine (default: cpu)")
    endpoint = parser.add_argument_group("endpoint")
    endpoint.add_argument("--endpoint", metavar="URL", help="base URL, such as http://127.0.0.1:8000/v1")
    endpoint.add_argument(
        "--key-variable", default="CWM_API_KEY", metavar="NAME",
        help="environment variable that holds the key (default: CWM_API_KEY)",
    )  # fmt: skip
    endpoint.add_argument(
        "--tool-role", choices=("user", "tool"), default="user",
        help="role of observations (default: user); use tool for `cwm serve`",
    )  # fmt: skip
    endpoint.add_argument(
        "--field", action="append", default=[], metavar="NAME=JSON", help="extra field of each request; may be repeated"
    )


_BUDGET = {
    "turns": "maximum number of turns",
    "seconds": "maximum wall-clock time of a rollout in seconds",
    "command_seconds": "time limit of each command in seconds",
    "context_tokens": "maximum number of tokens in the conversation",
    "action_tokens": "maximum number of tokens in a reply",
    "prompt_tokens": "maximum number of tokens in the system message and the first user message",
}
"""Help of the options for the fields of `Budget`."""


def _add_budget(parser: argparse.ArgumentParser) -> None:
    from cwm_core.environments import Budget

    group = parser.add_argument_group("budget of a rollout")
    for field in fields(Budget):
        kind: Callable[[str], Any] = seconds if "seconds" in field.name else positive
        name = f"max_{field.name}" if field.name in ("turns", "seconds") else field.name
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=field.name,
            type=kind,
            default=field.default,
            metavar="S" if kind is seconds else "N",
            help=f"{_BUDGET[field.name]} (default: {field.default:,})",
        )


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
    tools = [import_object(path) for path in args.tool]
    reward = import_object(args.reward) if args.reward else None
    paths = {"tools": args.tool} if args.tool else {}
    paths |= {"reward": args.reward} if args.reward else {}
    secrets.conceal()  # from the commands that the agent runs
    file = args.output / rollouts.FILE
    if args.retry_failed and file.exists():
        say(args, f"{trajectories.drop_failed(file):,} failed rollouts are repeated")
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
                system=system_prompt(reasoning=args.reasoning, tools=tools),
                tools=tools,
                reward=reward,
                settings={"backend": args.sandbox, **paths},
                progress=progress,
            )
    except KeyboardInterrupt:
        warn(args, f"interrupted; run the same command to resume from the trajectories in {args.output}")
        return INTERRUPTED
    summary = summarize(TrajectoryReader(file))
    text = json.dumps(asdict(summary), indent=1) + "\n"
    write_file(args.output / "summary.json", text)
    if args.json:
        write(text)
    else:
        _show(summary)
    say(args, f"{file}: {summary.rollouts:,} trajectories")
    if summary.failed == summary.rollouts:
        warn(
            args,
            f"every rollout failed, most often with: {next(iter(summary.failures))}; repeat them with --retry-failed",
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
    if ":" in args.agent:
        agent: Agent = extension(args.agent, "start")
        return agent
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
        script = loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(script, dict) or not all(
        isinstance(actions, list) and all(isinstance(action, str) for action in actions) for actions in script.values()
    ):
        raise ValueError(f"{path}: expected a JSON object mapping task names to lists of strings")
    return script


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise ValueError(f"--field {text}: expected NAME=JSON, but the value is not valid JSON") from None


@contextmanager
def _bar(args: argparse.Namespace) -> Iterator[Callable[[int, int, Trajectory | None], None] | None]:
    """Show a progress bar on standard error, unless progress is turned off."""
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


def _show(summary: RolloutSummary) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("", "count", box=None, show_header=False)
    table.columns[1].justify = "right"
    table.add_row("rollouts", f"{summary.rollouts:,}")
    table.add_row("solved", f"{summary.solved:,}")
    table.add_row("tasks", f"{summary.tasks:,}")
    table.add_row("tasks solved", f"{summary.tasks_solved:,}")
    for name, form in (("reward", ".3f"), ("turns", ",.1f"), ("tokens", ",.0f"), ("seconds", ",.2f")):
        value = getattr(summary, name)
        table.add_row(f"mean {name}", "-" if value is None else format(value, form))
    console.print(table)
    for title in ("ends", "reasons", "failures"):
        for reason, count in getattr(summary, title).items():
            console.print(f"{title.removesuffix('s'):<8} {count:>7,} x {reason}", markup=False)
