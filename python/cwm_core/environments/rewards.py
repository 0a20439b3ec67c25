"""Judge submitted diffs by the task's tests or by similarity to the known solution."""

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from ..machines import Backend, Machine
from ..machines.applying import apply_diff
from .outcomes import PASSED, TestOutcome, TestRun, is_pytest, outcome_of, run_tests
from .patches import similarity
from .submissions import Applied, apply_submission, failure
from .tasks import Task


@dataclass(frozen=True)
class Reward:
    """A reward, its reason, and details."""

    value: float
    """Reward, from 0 to 1."""
    reason: str
    """Reason for the reward."""
    fail_to_pass: dict[str, TestOutcome] = field(default_factory=dict)
    """Outcomes of the task's `fail_to_pass` tests; empty if they did not run."""
    pass_to_pass: dict[str, TestOutcome] = field(default_factory=dict)
    """Outcomes of the task's `pass_to_pass` tests; empty if they did not run."""
    similarity: float | None = None
    """Similarity of the diff to the task's solution, from 0 to 1; None without a solution."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Paths of the diff that a submission may not change, with reasons. The tests ran on their original content."""


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
    """Return the reward of a diff: 1.0 if the task's tests pass with it in a fresh machine, else 0.0.

    Only the changes that `protection.Rules` allow are applied. All other files, including tests and configuration, come
    from the original tree, and then from the task's `test_patch`. `fail_to_pass` tests must pass or fail as declared
    (xfail). `pass_to_pass` tests may also be skipped, as in the grading of SWE-bench.

    Args:
        task: The task.
        diff: The submitted diff; None if nothing was submitted.
        backend: Opens the machine.
        seconds: Time limit of each command, in seconds.
        by: "tests", or "similarity" to return `patches.similarity` to the task's solution without running anything.

    Raises:
        SandboxError: This host cannot run the machine.
        ValueError: The backend cannot open the task, or there is no solution to compare with.
        OSError: The task's folder cannot be copied.
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
    """Run the tests after a submission was applied."""
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
    """Grade a suite without named tests: none may fail, and at least one must pass."""
    bad = [
        *run.errors,
        *(name for name, outcome in run.outcomes.items() if outcome in (TestOutcome.FAILED, TestOutcome.ERROR)),
    ]
    if bad:
        return Reward(0.0, failure(f"the tests failed: {len(bad)} of them, first {bad[0]}", run.completed))
    if not any(outcome in PASSED for outcome in run.outcomes.values()):
        return Reward(0.0, failure("the tests failed: none passed", run.completed))
    return Reward(1.0, "the tests passed")


def _graded(task: Task, run: TestRun) -> Reward:
    fail_to_pass = {name: outcome_of(name, run.outcomes) for name in task.fail_to_pass}
    pass_to_pass = {name: outcome_of(name, run.outcomes) for name in task.pass_to_pass}
    still = [name for name, outcome in fail_to_pass.items() if outcome not in PASSED]
    broken = [name for name, outcome in pass_to_pass.items() if outcome not in (*PASSED, TestOutcome.SKIPPED)]
    if not still and not broken:
        return Reward(1.0, "the tests passed", fail_to_pass, pass_to_pass)
    counts = [
        f"{len(names)} of {len(all_names)} tests that {what}"
        for names, all_names, what in (
            (still, fail_to_pass, "should pass do not"),
            (broken, pass_to_pass, "passed before fail now"),
        )
        if names
    ]
    reason = f"the tests failed: {' and '.join(counts)}, first {(still or broken)[0]}"
    return Reward(0.0, reason, fail_to_pass, pass_to_pass)
