"""`cwm forage`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from .options import FAILED, OK, add_json, add_verb, machines, not_negative, positive, seconds, status_line, warn, write


def add_forage(verbs: Any) -> None:
    """Add `cwm forage`."""
    parser = add_verb(
        verbs,
        _forage,
        "Make tasks for agents: repositories broken in one place, and issues of SWE-bench's form.",
        "cwm forage repositories/* --count 100 -o tasks",
        "A change becomes a task if it breaks some of the repository's tests and not all. DIR/tasks.jsonl is what\n"
        "`cwm agent` takes. Ctrl-C, or any other end, keeps what is known; the same command goes on.",
    )
    add = parser.add_argument
    add("repositories", nargs="*", type=Path, metavar="REPOSITORY", help="a folder with tests that pass")
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="folder for the tasks")
    add("--count", required=True, type=positive, metavar="N", help="tasks to make")
    add("--issues", type=Path, action="append", default=[], metavar="FILE", help="instances of SWE-bench, *.jsonl")
    add("--test-command", default="python -m pytest -q", metavar="COMMAND", help="pytest's, for the whole suite")
    add("--seed", type=not_negative, default=0, metavar="N", help="of all that is drawn (default: 0)")
    add("--workers", type=positive, default=os.cpu_count(), metavar="N", help="suites at a time (one a processor)")
    add("--suite-seconds", type=seconds, default=600.0, metavar="S", help="that the tests may take (default: 600)")
    add(
        "--sandbox", choices=("bubblewrap", "docker", "process"), default="bubblewrap",
        help="where tests run; 'process' only limits them and does not isolate: for code that you trust",
    )  # fmt: skip
    add_json(parser)
    add("--image", metavar="IMAGE", help="of containers (with docker)")


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
        warn(args, f"{harvest.unscored:,} issues were taken untried: they have no solution, or need --sandbox docker")
    if harvest.short:
        warn(args, f"{harvest.short:,} tasks fewer than asked for: everything was tried")
    return OK if any(harvest.tasks.values()) else FAILED


def _table(harvest: dict[str, Any]) -> list[tuple[str, Any]]:
    """The tasks by kind, and why others were left out."""
    rows = [(f"{kind}", f"{count} of {harvest['tried'].get(kind, count)}") for kind, count in harvest["tasks"].items()]
    reasons = ((f"left out: {kind}, {why}", n) for kind, all in harvest["left_out"].items() for why, n in all.items())
    repositories = ((f"left out: {name}", why) for name, why in harvest["repositories_left_out"].items())
    return [*rows, *reasons, *repositories]
