"""Trying calls of a function in a sandbox, led by what they reach."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ... import machines
from ..inputs import endpoint, mutation, strategies
from ..unit import Unit
from ..sandbox import LIMITS, RunResult, Run, RecordingSandbox
from .choice import choose
from .coverage import CallCoverage, reached
from .discovery import DiscoveredFunctions, Function, find_functions

RECORDING = {"max_frames": 2000, "max_value_chars": 200}
"""Options of the recorder while calls are tried. Traces cut at a limit are not used: that of frames decides the same in
every run, where a clock would not."""

EXPLORING = replace(LIMITS, seconds=2.0, cpu_seconds=2)
"""Limits of a call that is tried."""

_TOGETHER = 16  # calls that share a process
_ROUND = 12  # mutated calls that are tried before their outcomes count
_STALE = 3  # rounds without anything new, after which no more are tried
_CLOCKS = 3  # calls ended by a clock, after which no more are tried
_EXAMPLES_SHARE, _DRAWN_SHARE = 0.4, 0.35  # of the budget; what is left is for mutations


@dataclass
class Exploration:
    """What came of a function."""

    function: Function
    unit: Unit | None
    """With the calls that are worth recording; None where there are none."""
    chosen: dict[str, CallCoverage] = field(default_factory=dict)
    tried: dict[str, CallCoverage] = field(default_factory=dict)
    """All calls that entered the function and ended within the limits, in the order in which they were tried."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """How many calls came to what: "returned", "raised", "not entered", "cut: LIMIT", or an `RunResult.reason`."""

    @property
    def steps(self) -> frozenset[tuple[int, int]]:
        """Everything that was reached; see `Reached.steps`."""
        return frozenset().union(*(r.steps for r in self.tried.values()))


Generate = Callable[[list[dict[str, str]]], str]


def explore(
    function: Function,
    worker: RecordingSandbox,
    *,
    seed: int = 0,
    budget: int = 100,
    most: int = 5,
    generate: Generate | None = None,
) -> Exploration:
    """Try calls of a function, and choose from them. A pure function of all but the worker, clocks aside.

    Args:
        function: To be called.
        worker: With the function's module loaded (`RecordingSandbox(preload=...)`), or to be found in its paths.
        seed: Of all that is drawn.
        budget: The most calls that are run.
        most: The most calls that are chosen.
        generate: Asked for calls too, where it is given: an answer for a list of chat messages.
    """
    trial = _Trial(function, worker, budget)
    trial.run(function.examples[: max(1, int(budget * _EXAMPLES_SHARE))])
    if generate is not None:
        trial.run(endpoint.calls(function, generate))
    drawn = strategies.calls(function, seed=f"{seed} {function.id}", count=max(1, int(budget * _DRAWN_SHARE)))
    trial.run(drawn)
    trial.mutate(random.Random(f"{seed} {function.id}"))
    tried = trial.tried
    calls = choose(tried, most)
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
    """Calls of one function that have been run."""

    def __init__(self, function: Function, worker: RecordingSandbox, budget: int) -> None:
        self.function, self.worker, self.left = function, worker, budget
        self.done: set[str] = set()
        self.tried: dict[str, CallCoverage] = {}
        self.kept: list[str] = []  # those that reached something new, in the order in which they did
        self.steps: set[tuple[int, int]] = set()
        self.outcomes: Counter[str] = Counter()
        self.clocks = 0

    def run(self, calls: Iterable[str]) -> bool:
        """Run those that have not been; whether any reached something new."""
        fresh = [call for call in dict.fromkeys(calls) if call not in self.done][: self.left]
        self.done.update(fresh)
        self.left -= len(fresh)
        new = False
        again = []
        for call, answer in zip(fresh, self.worker.run(map(self.order, fresh), together=_TOGETHER), strict=True):
            outcome = self.outcome(call, answer)
            self.outcomes[outcome] += 1
            if outcome == "cut: max_frames" and self.function.wrap == "list({})" and call.startswith("list("):
                again.append(f"[item for item, _ in zip({call[5:-1]}, range(10))]")
            if call in self.tried and not self.tried[call].steps <= self.steps:
                self.steps |= self.tried[call].steps
                self.kept.append(call)
                new = True
        return (self.run(again) if again else False) or new

    def order(self, call: str) -> Run:
        """To the worker."""
        return Run(self.function.code, call, module=self.function.module, options=RECORDING)

    def outcome(self, call: str, answer: RunResult) -> str:
        """What came of a call, in a word or two."""
        if answer.by_clock:
            self.clocks += 1
            if self.clocks >= _CLOCKS:
                self.left = 0
        if answer.trace is None:
            return answer.reason or "no trace"
        if answer.trace.truncated is not None:
            return f"cut: {answer.trace.truncated}"
        found = reached(self.function, answer.trace)
        if found is None:
            return "not entered"
        self.tried[call] = found
        return "raised" if found.raised else "returned"

    def mutate(self, chance: random.Random) -> None:
        """Change calls that reached something, the latest of them most often, until nothing new comes of it."""
        stale = 0
        while self.left > 0 and self.kept and stale < _STALE:
            calls = []
            for _ in range(_ROUND):
                parent = self.kept[int(len(self.kept) * chance.random() ** 0.5)]
                call = mutation.mutate(parent, chance.choice(self.kept), self.function.literals, chance)
                if call is not None:
                    calls.append(call)
            stale = 0 if self.run(calls) else stale + 1


def explore_all(
    functions: Iterable[Function],
    *,
    sandbox: machines.Sandbox = "bubblewrap",
    limits: machines.Limits = EXPLORING,
    **options: Any,
) -> Iterator[Exploration]:
    """`explore` functions, with one worker for each run of functions of the same module.

    A module that cannot be imported gives its functions the outcome "cannot be imported". `options` are those of
    `explore`. Raises `sandbox.SandboxError` where there is no sandbox.
    """
    for (module, paths), group in itertools.groupby(functions, key=lambda f: (f.module, f.paths)):
        try:
            worker = RecordingSandbox(limits=limits, sandbox=sandbox, paths=paths, preload=module)
        except ImportError:
            for function in group:
                yield Exploration(function, None, outcomes=Counter({"cannot be imported": 1}))
            continue
        with worker:
            for function in group:
                yield explore(function, worker, **options)


def units(
    source: str | os.PathLike[str] | DiscoveredFunctions,
    *,
    tests: Sequence[str | os.PathLike[str]] = (),
    paths: Sequence[str] | None = None,
    **options: Any,
) -> Iterator[Unit]:
    """One unit for each function of a source that has calls worth recording.

    Arguments are those of `find_functions`, or what it found; `options` those of `explore_all`.
    """
    found = source if isinstance(source, DiscoveredFunctions) else find_functions(source, tests=tests, paths=paths)
    with contextlib.closing(explore_all(found.functions, **options)) as explored:
        for one in explored:
            if one.unit is not None:
                yield one.unit
