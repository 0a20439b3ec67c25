"""Try calls of a function in a sandbox, guided by the lines that they reach."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ... import machines
from ..inputs import endpoint, mutation, strategies
from ..reasons import DropReason
from ..sandbox import LIMITS, RecordingSandbox, Run, RunResult
from ..unit import Unit
from .choice import choose
from .coverage import CallCoverage, call_coverage
from .discovery import DiscoveredFunctions, Function, find_functions

RECORDING: dict[str, Any] = {"max_frames": 2000, "max_value_chars": 200}
"""Options of the recorder while calls are tried. A trace that a limit cuts is not used. The limit on frames decides the
same in every run, unlike a clock."""

EXPLORING = replace(LIMITS, seconds=2.0, cpu_seconds=2)
"""Limits of a call that is tried."""

_PER_PROCESS = 16  # calls that share a process
_ROUND = 12  # mutated calls that are tried before their outcomes count
_STALE = 3  # rounds without anything new after which exploration stops
_CLOCKS = 3  # calls ended by a clock after which exploration stops
_EXAMPLES_SHARE, _DRAWN_SHARE = 0.4, 0.35  # of the budget; the rest is for mutations


class CallOutcome(StrEnum):
    """Result of a tried call that stayed within all limits."""

    RETURNED = "returned"
    RAISED = "raised"
    NOT_ENTERED = "not entered"


@dataclass
class Exploration:
    """Result of exploring a function."""

    function: Function
    """The function."""
    unit: Unit | None
    """The calls worth recording; None if there are none."""
    chosen: dict[str, CallCoverage] = field(default_factory=dict)
    """Calls of the unit, with their coverage."""
    tried: dict[str, CallCoverage] = field(default_factory=dict)
    """All calls that entered the function and ended within the limits, in the order in which they were tried."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Numbers of calls by outcome: a `CallOutcome`, `cut: LIMIT`, or the text of a `RunFailure`."""

    @property
    def steps(self) -> frozenset[tuple[int, int]]:
        """Steps that any call reached; see `CallCoverage.steps`."""
        return frozenset().union(*(coverage.steps for coverage in self.tried.values()))


Generate = Callable[[list[dict[str, str]]], str]
"""Answers a list of chat messages."""


def explore(
    function: Function,
    sandbox: RecordingSandbox,
    *,
    seed: int = 0,
    budget: int = 100,
    max_calls: int = 5,
    generate: Generate | None = None,
) -> Exploration:
    """Try calls of a function and choose from them. The result depends only on the arguments, apart from clocks.

    Args:
        function: Function to call.
        sandbox: Sandbox with the module of the function preloaded, or with the module in its paths.
        seed: Seed of all random choices.
        budget: Maximum number of calls to try.
        max_calls: Maximum number of calls to choose.
        generate: Language model to ask for calls too.
    """
    trial = _Trial(function, sandbox, budget)
    trial.run(function.examples[: max(1, int(budget * _EXAMPLES_SHARE))])
    if generate is not None:
        trial.run(endpoint.calls(function, generate))
    drawn = strategies.calls(function, seed=f"{seed} {function.id}", count=max(1, int(budget * _DRAWN_SHARE)))
    trial.run(drawn)
    trial.mutate(random.Random(f"{seed} {function.id}"))
    tried = trial.tried
    calls = choose(tried, max_calls)
    unit = None
    if calls:
        unit = Unit(
            id=function.id,
            code=function.code,
            calls=tuple(calls),
            module=function.module,
            paths=function.paths,
            provenance={**function.provenance, "seed": seed},
        )
    return Exploration(function, unit, {call: tried[call] for call in calls}, tried, trial.outcomes)


class _Trial:
    """The calls of one function that have been tried."""

    def __init__(self, function: Function, sandbox: RecordingSandbox, budget: int) -> None:
        self.function, self.sandbox, self.left = function, sandbox, budget
        self.done: set[str] = set()
        self.tried: dict[str, CallCoverage] = {}
        self.useful: list[str] = []  # calls that reached something new, in order
        self.steps: set[tuple[int, int]] = set()
        self.outcomes: Counter[str] = Counter()
        self.clocks = 0

    def run(self, calls: Iterable[str]) -> bool:
        """Try the calls that are new, and return whether any of them reached something new."""
        fresh = [call for call in dict.fromkeys(calls) if call not in self.done][: self.left]
        self.done.update(fresh)
        self.left -= len(fresh)
        new = False
        again = []
        runs = (Run(self.function.code, call, module=self.function.module, options=RECORDING) for call in fresh)
        for call, result in zip(fresh, self.sandbox.run(runs, runs_per_process=_PER_PROCESS), strict=True):
            outcome = self.outcome(call, result)
            self.outcomes[outcome] += 1
            if outcome == "cut: max_frames" and self.function.wrap == "list({})" and call.startswith("list("):
                again.append(f"[item for item, _ in zip({call[5:-1]}, range(10))]")
            if call in self.tried and not self.tried[call].steps <= self.steps:
                self.steps |= self.tried[call].steps
                self.useful.append(call)
                new = True
        return (self.run(again) if again else False) or new

    def outcome(self, call: str, result: RunResult) -> str:
        """Return what happened to a call, as in `Exploration.outcomes`."""
        if result.by_clock:
            self.clocks += 1
            if self.clocks >= _CLOCKS:
                self.left = 0
        if result.trace is None:
            return str(result.reason)
        if result.trace.truncated is not None:
            return f"cut: {result.trace.truncated}"
        coverage = call_coverage(self.function, result.trace)
        if coverage is None:
            return CallOutcome.NOT_ENTERED
        self.tried[call] = coverage
        return CallOutcome.RAISED if coverage.raised else CallOutcome.RETURNED

    def mutate(self, rng: random.Random) -> None:
        """Change useful calls, the latest of them most often, until nothing new is reached."""
        stale = 0
        while self.left > 0 and self.useful and stale < _STALE:
            calls = []
            for _ in range(_ROUND):
                parent = self.useful[int(len(self.useful) * rng.random() ** 0.5)]
                call = mutation.mutate(parent, rng.choice(self.useful), self.function.literals, rng)
                if call is not None:
                    calls.append(call)
            stale = 0 if self.run(calls) else stale + 1


def explore_all(
    functions: Iterable[Function],
    *,
    sandbox: machines.Sandbox = "bubblewrap",
    limits: machines.Limits = EXPLORING,
    **options: Any,
) -> Generator[Exploration, None, None]:
    """Yield an `Exploration` of each function, with one sandbox for consecutive functions of the same module.

    Functions of a module that cannot be imported have the outcome `cannot be imported`.

    Args:
        functions: Functions to explore.
        sandbox: Kind of isolation.
        limits: Limits of a call.
        **options: Options of `explore`.

    Raises:
        SandboxError: The sandbox does not work on this machine.
    """
    for (module, paths), group in itertools.groupby(functions, key=lambda f: (f.module, f.paths)):
        try:
            recording_sandbox = RecordingSandbox(limits=limits, sandbox=sandbox, paths=paths, preload=module)
        except ImportError:
            for function in group:
                yield Exploration(function, None, outcomes=Counter({str(DropReason.NOT_IMPORTED): 1}))
            continue
        with recording_sandbox:
            for function in group:
                yield explore(function, recording_sandbox, **options)


def units(
    source: str | os.PathLike[str] | DiscoveredFunctions,
    *,
    tests: Sequence[str | os.PathLike[str]] = (),
    paths: Sequence[str] | None = None,
    **options: Any,
) -> Iterator[Unit]:
    """Yield a unit for each function that has calls worth recording.

    Args:
        source: A source, as in `find_functions`, or what `find_functions` returned.
        tests: Argument of `find_functions`.
        paths: Argument of `find_functions`.
        **options: Options of `explore_all`.
    """
    found = source if isinstance(source, DiscoveredFunctions) else find_functions(source, tests=tests, paths=paths)
    with contextlib.closing(explore_all(found.functions, **options)) as explorations:
        for exploration in explorations:
            if exploration.unit is not None:
                yield exploration.unit
