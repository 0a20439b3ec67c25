"""Choose one of many candidate patches by generated tests and majority vote."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..machines import Backend, Machine
from .outcomes import PASSED, TestOutcome, run_tests
from .patches import normalize
from .submissions import apply_submission
from .tasks import Task

CandidateTest = Callable[[Machine], bool]
"""Returns whether the repository on a machine, with a candidate applied, is correct."""


@dataclass(frozen=True)
class Selection:
    """Result of a selection."""

    index: int
    """Index of the chosen candidate."""
    passed: tuple[int, ...]
    """Number of passed tests of each candidate."""
    votes: tuple[int, ...]
    """Number of equal patches among the candidates that pass the most tests; 0 for all other candidates."""


def select(patches: Sequence[str], outcomes: Sequence[Sequence[bool]]) -> Selection:
    """Choose the patch that passes the most tests; among those the most frequent, the shortest, and the first.

    This is the test-time scaling of the Code World Model (arXiv 2510.02387): tests first, then majority.

    Args:
        patches: The candidates. Two are equal if `patches.normalize` returns the same text. A patch that changes
            nothing by this measure is chosen only if all do.
        outcomes: For each patch, whether it passes each test. Without tests, the majority decides.

    Raises:
        ValueError: There are no patches, or the outcomes have another shape.
    """
    if not patches:
        raise ValueError("there are no patches to choose from")
    if len(outcomes) != len(patches) or len({len(row) for row in outcomes}) > 1:
        raise ValueError(f"expected a row of outcomes for each of {len(patches)} patches, all of one length")
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
    """Return outcomes for `select`, by calling the tests in turn on a fresh machine for each patch.

    Identical patches are tried once. As in `judge`, only the changes that a submission may make are applied. A patch
    that does not apply passes no test. A test that raises ValueError or OSError fails. Later tests see the files that
    earlier tests leave on the machine.

    Args:
        task: The task.
        patches: The candidates.
        tests: The tests, which limit their own time.
        backend: Opens the machines.
        seconds: Time limit of each command that applies a patch, in seconds.
        workers: Number of concurrent machines.

    Raises:
        SandboxError: This host cannot run the machines.
        ValueError: The backend cannot open the task.
        OSError: The task's folder cannot be copied.
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
    """Return a test that runs a generated pytest module: no test in it may fail, and at least one must pass.

    The module is in the root of the repository while it runs. A candidate that ends the process early does not pass.

    Args:
        source: Source of the module.
        command: Command that runs pytest.
        seconds: Time limit, in seconds.
    """

    def passes(machine: Machine) -> bool:
        name = "test_cwm_written.py"
        if machine.run(f"cat > {name}", stdin=source.encode(errors="replace"), seconds=seconds).exit_code != 0:
            return False
        run = run_tests(machine, command, files=[name], seconds=seconds)
        machine.run(f"rm -f {name}", seconds=seconds)
        outcomes = set(run.outcomes.values())
        return (
            not run.problem
            and not run.errors
            and outcomes <= {*PASSED, TestOutcome.SKIPPED}
            and bool(outcomes & {*PASSED})
        )

    return passes
