"""Implement `cwm forage`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from .options import (
    FAILED,
    MACHINES,
    OK,
    add_json,
    add_verb,
    machines,
    not_negative,
    one_of_or_path,
    positive,
    seconds,
    status_line,
    warn,
    write,
)


def add_forage(verbs: Any) -> None:
    """Add `cwm forage`."""
    parser = add_verb(
        verbs,
        _forage,
        "Make tasks for agents from repositories, by breaking code in one place, and from SWE-bench issues.",
        "cwm forage repositories/* --count 100 -o tasks",
        "A change becomes a task if it breaks some, but not all, of the repository's tests. `cwm agent` reads the\n"
        "resulting DIR/tasks.jsonl. After an interruption, the same command resumes. See docs/guides/forage.md.",
    )
    add = parser.add_argument
    add("repositories", nargs="*", type=Path, metavar="REPOSITORY", help="folder with tests that pass")
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="folder for the tasks")
    add("--count", required=True, type=positive, metavar="N", help="number of tasks to make")
    add("--issues", type=Path, action="append", default=[], metavar="FILE", help="SWE-bench instances, *.jsonl")
    add("--test-command", default="python -m pytest -q", metavar="COMMAND", help="command that runs the whole suite")
    add("--seed", type=not_negative, default=0, metavar="N", help="seed of all sampling (default: 0)")
    add("--workers", type=positive, default=os.cpu_count(), metavar="N", help="concurrent suites (default: processors)")
    add("--suite-seconds", type=seconds, default=600.0, metavar="S", help="time limit of a suite (default: 600)")
    add(
        "--sandbox", type=one_of_or_path(*MACHINES), default="bubblewrap", metavar="SANDBOX",
        help="where tests run: bubblewrap (default), docker, process (limits but does not isolate: only for code that "
        "you trust), or the import path of a machine backend, MODULE:NAME",
    )  # fmt: skip
    add_json(parser)
    add("--image", metavar="IMAGE", help="container image (with --sandbox docker)")


def _forage(args: argparse.Namespace) -> int:
    from cwm_core.environments import read_issues
    from cwm_core.environments.foraging import Repository, forage

    repositories = [
        Repository(path.name, path.absolute(), test_command=args.test_command) for path in args.repositories
    ]
    with status_line(args) as show:
        harvest = forage(
            repositories,
            args.output,
            count=args.count,
            backend=machines(args.sandbox, args.image),
            issues=list(chain.from_iterable(map(read_issues, args.issues))),
            seed=args.seed,
            workers=args.workers,
            seconds=args.suite_seconds,
            status=show,
        )
    if args.json:
        write(json.dumps(asdict(harvest), indent=1) + "\n")
    else:
        write("".join(f"{name}\t{value}\n" for name, value in _table(asdict(harvest))))
    if harvest.unscored:
        warn(
            args, f"{harvest.unscored:,} issues were not checked: they have no known solution or need --sandbox docker"
        )
    if harvest.short:
        warn(args, f"{harvest.short:,} tasks are missing: there are no more candidates")
    return OK if any(harvest.tasks.values()) else FAILED


def _table(harvest: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return rows with the number of tasks of each kind, and with the reasons why candidates were dropped."""
    rows = [(f"{kind}", f"{count} of {harvest['tried'].get(kind, count)}") for kind, count in harvest["tasks"].items()]
    reasons = ((f"left out: {kind}, {why}", n) for kind, all in harvest["left_out"].items() for why, n in all.items())
    repositories = ((f"left out: {name}", why) for name, why in harvest["repositories_left_out"].items())
    return [*rows, *reasons, *repositories]
