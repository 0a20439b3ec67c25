"""Choosing one of many candidate patches: by generated tests, then by majority."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..machines import Backend, Machine
from .patches import normalize
from .submissions import apply_submission
from .tasks import Task

CandidateTest = Callable[[Machine], bool]
"""Whether the repository in a machine, with a candidate applied, is as it should be."""


@dataclass(frozen=True)
class Selection:
    """The index of the chosen candidate; by candidate, the tests passed, and the votes.

    Votes are of those candidates that pass most tests: how many of them have an equal patch; 0 for the others.
    """

    index: int
    passed: tuple[int, ...]
    votes: tuple[int, ...]


def select(patches: Sequence[str], outcomes: Sequence[Sequence[bool]]) -> Selection:
    """The patch that passes most tests; of those the most frequent one; of those the shortest, then the first.

    `outcomes` holds, for each patch, whether it passes each test (with no tests at all, majority decides). Patches
    are equal when `patches.normalize` makes them so; empty ones, and those that change nothing by that measure, are
    chosen only if all are. The order of the CWM report's (arXiv 2510.02387) test-time scaling: tests, then majority.

    Raises ValueError for no patches, and for outcomes of another shape.
    """
    if not patches:
        raise ValueError("there are no patches to choose from")
    if len(outcomes) != len(patches) or len({len(row) for row in outcomes}) > 1:
        raise ValueError(f"{len(patches)} patches need as many rows of outcomes, all of one length")
    normalized = [normalize(patch) for patch in patches]
    passed = tuple(sum(map(bool, row)) for row in outcomes)
    real = [i for i, text in enumerate(normalized) if text] or list(range(len(patches)))
    most = max(passed[i] for i in real)
    counts = Counter(normalized[i] for i in real if passed[i] == most)
    votes = tuple(counts[text] if n == most else 0 for text, n in zip(normalized, passed, strict=True))
    index = min(real, key=lambda i: (-votes[i], len(patches[i]), i))
    return Selection(index, passed, votes)


def judge_candidates(
    task: Task,
    patches: Sequence[str],
    tests: Sequence[CandidateTest],
    backend: Backend,
    *,
    seconds: float,
    workers: int = 1,
) -> list[list[bool]]:
    """Outcomes for `select`: each patch is applied in a fresh machine, in which the tests are called in turn.

    Equal patches are tried once. Of a patch, what a submission may change is applied, as by `judge`. A patch that does
    not apply passes no test; a test that raises ValueError or OSError
    is not passed. `seconds` is for applying; a test limits itself. What a test leaves in the machine, later ones see.
    Raises as `Backend.open`.
    """

    def outcomes(patch: str) -> list[bool]:
        machine = backend.open(task)
        try:
            applied = apply_submission(machine, task, patch.encode(errors="surrogateescape"), seconds=seconds)
            if applied.problem:
                return [False] * len(tests)
            return [_passes(test, machine) for test in tests]
        finally:
            machine.close()

    different = list(dict.fromkeys(patches))
    with ThreadPoolExecutor(workers) as pool:
        by_patch = dict(zip(different, pool.map(outcomes, different), strict=True))
    return [by_patch[patch] for patch in patches]


def _passes(test: CandidateTest, machine: Machine) -> bool:
    try:
        return bool(test(machine))
    except (ValueError, OSError):
        return False


def written_test(source: str, *, command: str = "python -m pytest -q", seconds: float) -> CandidateTest:
    """A test of a generated pytest module: whether all tests in it pass, and there are some.

    It lies at the repository's root while it runs, so that it can import what is there.
    """

    def passes(machine: Machine) -> bool:
        name = "test_cwm_written.py"
        script = f"cat > {name} && {command} {shlex.quote(name)} </dev/null; code=$?; rm -f {name}; exit $code"
        return machine.run(script, stdin=source.encode(errors="replace"), seconds=seconds).exit_code == 0

    return passes
