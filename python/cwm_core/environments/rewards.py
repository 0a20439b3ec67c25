"""Whether a submitted diff does what a task asked for, and how near it is to the known solution."""

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from ..machines import Backend, Machine
from ..machines.applying import apply_diff
from .outcomes import PASSED, Outcome, TestRun, is_pytest, outcome_of, run_tests
from .patches import similarity
from .submissions import Applied, apply_submission, failure
from .tasks import Task


@dataclass(frozen=True)
class Reward:
    """A number between 0 and 1, why it is that, and what else is known.

    `fail_to_pass` and `pass_to_pass` have the outcomes of the task's tests, empty where they were not run or none are
    named. `similarity` is that of the diff to the task's solution; None without a solution. `ignored` has the paths of
    the diff that a submission may not change, each with the reason: there, the tests ran on the original.
    """

    value: float
    reason: str
    fail_to_pass: dict[str, Outcome] = field(default_factory=dict)
    pass_to_pass: dict[str, Outcome] = field(default_factory=dict)
    similarity: float | None = None
    ignored: dict[str, str] = field(default_factory=dict)


class RewardFunction(Protocol):
    """Judges the diff that an agent submitted; `judge` is the default."""

    def __call__(self, task: Task, diff: bytes | None, backend: Backend, /, *, seconds: float) -> Reward:
        """Return the reward of a diff, which is None if nothing was submitted.

        Args:
            task: The task that the agent worked on.
            diff: The submitted diff.
            backend: Opens fresh machines with the task's repository.
            seconds: Time limit of each command, in seconds.
        """
        ...


def judge(
    task: Task, diff: bytes | None, backend: Backend, *, seconds: float, by: Literal["tests", "similarity"] = "tests"
) -> Reward:
    """Apply the diff in a fresh machine and run the task's tests: 1.0 if they pass, else 0.0.

    Of the diff, only what `protection.Rules` allow is applied. Everything else, tests and configuration among it, comes
    from the original tree, and then from the task's `test_patch`. Tests to be passed must pass or fail as expected
    (xfail); of those that passed before, a skipped one is no regression, as in SWE-bench's own grading.

    With `by` "similarity" nothing is run, and the value is `patches.similarity` to the task's solution. Each command
    may take `seconds`. Raises as `Backend.open`, and ValueError for "similarity" without a solution.
    """
    if by == "similarity" and not task.solution:
        raise ValueError(f"task {task.name} has no solution to compare with")
    if diff is None:
        return Reward(0.0, "nothing was submitted", similarity=0.0 if task.solution else None)
    alike = similarity(diff.decode(errors="surrogateescape"), task.solution) if task.solution else None
    if by == "similarity":
        return Reward(alike or 0.0, "the similarity to the solution", similarity=alike)
    machine = backend.open(task)
    try:
        applied = apply_submission(machine, task, diff, seconds=seconds)
        reward = _tested(machine, task, applied, seconds)
    finally:
        machine.close()
    if reward.value == 0.0 and applied.ignored:
        reward = replace(reward, reason=f"{reward.reason}; changes that do not count: {applied.notes()}")
    return replace(reward, similarity=alike, ignored=applied.ignored)


def _tested(machine: Machine, task: Task, applied: Applied, seconds: float) -> Reward:
    """Run the tests on what a submission made of the tree."""
    if applied.problem:
        return Reward(0.0, applied.problem)
    if task.test_patch.strip():
        done = apply_diff(machine, task.test_patch, seconds=seconds)
        if done.exit_code != 0:
            return Reward(0.0, failure("the task's own tests do not apply", done))
    names = (*task.fail_to_pass, *task.pass_to_pass)
    if not names and not is_pytest(task.test_command):
        result = machine.run(task.test_command, seconds=seconds)
        passed = result.exit_code == 0
        return Reward(float(passed), "the tests passed" if passed else failure("the tests failed", result))
    files = task.test_files
    if files is None:
        files = tuple(dict.fromkeys(name.partition("::")[0] for name in names))
    run = run_tests(machine, task.test_command, files=files, seconds=seconds)
    if run.problem:
        return Reward(0.0, failure(f"the tests failed: {run.problem}", run.completed))
    return _graded(task, run) if names else _graded_whole(run)


def _graded_whole(run: TestRun) -> Reward:
    """Grade a suite of which no tests are named: all of them must pass, and there must be some."""
    bad = [*run.errors, *(name for name, outcome in run.outcomes.items() if outcome in ("failed", "error"))]
    if bad:
        return Reward(0.0, failure(f"the tests failed: {len(bad)} of them, first {bad[0]}", run.completed))
    if not any(outcome in PASSED for outcome in run.outcomes.values()):
        return Reward(0.0, failure("the tests failed: none passed", run.completed))
    return Reward(1.0, "the tests passed")


def _graded(task: Task, run: TestRun) -> Reward:
    fail_to_pass = {name: outcome_of(name, run.outcomes) for name in task.fail_to_pass}
    pass_to_pass = {name: outcome_of(name, run.outcomes) for name in task.pass_to_pass}
    still = [name for name, outcome in fail_to_pass.items() if outcome not in PASSED]
    broken = [name for name, outcome in pass_to_pass.items() if outcome not in (*PASSED, "skipped")]
    if not still and not broken:
        return Reward(1.0, "the tests passed", fail_to_pass, pass_to_pass)
    counts = [
        f"{len(names)} of {len(all_names)} tests that {what}"
        for names, all_names, what in (
            (still, fail_to_pass, "were to pass do not"),
            (broken, pass_to_pass, "passed before no longer do"),
        )
        if names
    ]
    reason = f"the tests failed: {' and '.join(counts)}, first {(still or broken)[0]}"
    return Reward(0.0, reason, fail_to_pass, pass_to_pass)
